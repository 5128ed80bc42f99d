"""Stream builders by name; those of other packages are found through entry points and loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from cil.errors import ConfigError, nearest
from cil.streams.base import Stream
from cil.streams.shifts import ShiftStream

GROUP = "cil.streams"

Builder = Callable[..., Stream | ShiftStream]
B = TypeVar("B", bound=Builder)
_builders: dict[str, Builder] = {}


def register_stream(name: str) -> Callable[[B], B]:
    """Make ``builder(**options) -> Stream``, or ``ShiftStream``, known by ``name``.

    Other packages name such a builder in an entry point of the group ``cil.streams``.

    Raises:
        ConfigError: where another builder has the name.
    """

    def registered(builder: B) -> B:
        if _builders.get(name, builder) is not builder:
            raise ConfigError(f"the stream name '{name}' is taken by {_builders[name].__module__}; choose another")
        _builders[name] = builder
        return builder

    return registered


def stream_names() -> list[str]:
    """Names of all builders, those of installed plugins too; no plugin is imported for it."""
    return sorted({*_builders, *(entry.name for entry in entry_points(group=GROUP))})


def stream_builder(name: str) -> Builder:
    """The builder of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known ones.
    """
    if name not in _builders:
        for entry in entry_points(group=GROUP, name=name):
            _builders[name] = entry.load()
    if name not in _builders:
        raise ConfigError(f"unknown stream '{name}'; {nearest(name, stream_names())}")
    return _builders[name]
