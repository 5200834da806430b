"""What a harness found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """*tried* counts the points, cuts or cells tried, *violations* describes each broken promise.

    *unit* says what was counted; *counts* are further figures by name; *skipped* says why nothing could be tried here.
    """

    unit: str
    tried: int = 0
    violations: list[str] = field(default_factory=list)
    counts: dict[str, int | float | str] = field(default_factory=dict)
    skipped: str = ""

    def add(self, name: str, number: int | float = 1) -> None:
        """Add *number* to the count *name*."""
        self.counts[name] = self.counts.get(name, 0) + number  # type: ignore[operator]

    def raise_to(self, name: str, number: int | float) -> None:
        """Keep the largest *number* seen as the count *name*."""
        self.counts[name] = max(self.counts.get(name, 0), number)

    def violated(self, what: str) -> None:
        """Note one broken promise."""
        self.violations.append(what)
