"""Models that say which of their fields describe them in events."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel


class AnalyticsTrackedModelMixin(BaseModel):
    """A base for models that `track_decorator` finds among arguments and results.

    `ANALYTICS_FIELDS` names the attributes that become properties of the event.
    """

    ANALYTICS_FIELDS: ClassVar[list[str]] = []

    def get_analytics_metadata(self) -> dict[str, Any]:
        """Return the named attributes, None for one that the model does not have."""
        return {name: getattr(self, name, None) for name in self.ANALYTICS_FIELDS}
