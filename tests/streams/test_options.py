"""Options that stream builders share: seen in their signatures, taken out of the keywords, checked once."""

import inspect
from dataclasses import dataclass
from typing import Protocol, SupportsFloat, TypedDict

import pytest

from cil.errors import ConfigError
from cil.streams import SplitOptions, class_incremental
from cil.streams.options import accepts, check_integers, take
from cil.targets import check_arguments


@dataclass(frozen=True, kw_only=True)
class Colours:
    red: int = 1
    green: float | None = None


@accepts(Colours)
def open_builder(path: str, *, size: int = 8, **options):
    return take(Colours, options), options


@accepts(Colours, only=True)
def closed_builder(path: str, *, size: int = 8, **options):
    return Colours(**options)


def test_shared_fields_count_as_keys_with_their_types_and_defaults():
    parameters = inspect.signature(open_builder).parameters
    assert list(parameters) == ["path", "size", "red", "green", "options"]
    assert parameters["red"].default == 1
    check_arguments(open_builder, {"path": "here", "red": 2, "anything": 0}, "stream")
    with pytest.raises(ConfigError, match=r"stream\.green is 'much'; it must be a number or null"):
        check_arguments(open_builder, {"green": "much"}, "stream")


class Frame(TypedDict):
    width: int


class Drawn(Protocol):
    def draw(self) -> int: ...


def framed_builder(frame: Frame | None = None, edge: SupportsFloat = 0.0, drawn: Drawn | None = None):
    return frame, edge, drawn


def test_hints_of_mappings_and_protocols_are_asked_of_plain_values():
    check_arguments(framed_builder, {"frame": {"width": 3}, "edge": 1.0, "drawn": None}, "stream")
    for key, value in (("frame", 3), ("edge", []), ("drawn", {}), ("drawn", 3)):
        with pytest.raises(
            ConfigError, match=rf"stream\.{key} is .*; it must be an object of the class \w+( or null)?$"
        ):
            check_arguments(framed_builder, {key: value}, "stream")


def test_other_keys_are_refused_where_there_are_no_options_of_a_data_set():
    with pytest.raises(ConfigError, match=r"unknown key stream\.gren; closed_builder has none; did you mean"):
        check_arguments(closed_builder, {"gren": 1.0}, "stream")


def test_taking_options_leaves_those_of_the_data_set():
    assert open_builder("here", green=0.5, in_memory=True) == (Colours(green=0.5), {"in_memory": True})


def test_values_are_checked_whichever_builder_is_given_them():
    with pytest.raises(ConfigError, match=r"stream\.classes is 0; it must be a whole number from 1 on, or null"):
        SplitOptions(classes=0)
    with pytest.raises(ConfigError, match=r"stream\.rounds is 0; it must be a whole number from 1 to 2\^32 - 1"):
        check_integers(1, 2**32 - 1, rounds=0)
    assert "validation" in inspect.signature(class_incremental).parameters
