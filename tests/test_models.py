"""The mixin of tracked models."""

from __future__ import annotations

from typing import ClassVar

from outtray import AnalyticsTrackedModelMixin


class Stack(AnalyticsTrackedModelMixin):
    ANALYTICS_FIELDS: ClassVar[list[str]] = ["name", "size", "missing"]

    name: str
    secret: str = "hidden"

    @property
    def size(self) -> int:
        return len(self.name)


def test_the_metadata_are_the_named_fields_and_no_others() -> None:
    assert Stack(name="abc").get_analytics_metadata() == {"name": "abc", "size": 3, "missing": None}


def test_without_named_fields_there_are_no_metadata() -> None:
    assert AnalyticsTrackedModelMixin().get_analytics_metadata() == {}


def test_the_named_fields_are_no_field_of_the_model() -> None:
    assert set(Stack.model_fields) == {"name", "secret"}
    assert Stack(name="a").model_dump() == {"name": "a", "secret": "hidden"}


def test_a_subclass_names_its_own() -> None:
    class Small(Stack):
        ANALYTICS_FIELDS: ClassVar[list[str]] = ["secret"]

    assert Small(name="a").get_analytics_metadata() == {"secret": "hidden"}
    assert Stack.ANALYTICS_FIELDS == ["name", "size", "missing"]
