"""Stream builders by name; those of other packages are found through entry points and loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cil.plugins import BUILT_IN, Registry, find
from cil.streams.base import Stream
from cil.streams.shifts import ShiftStream

Builder = Callable[..., Stream | ShiftStream]
B = TypeVar("B", bound=Builder)
_BRIDGES = BUILT_IN["cil.streams"]  # of other rooms, imported when they are asked for


def _load(name: str) -> None:
    if name in _BRIDGES:
        find("cil.streams", name)


STREAMS: Registry[Builder] = Registry("stream", "cil.streams", lambda: _BRIDGES, _load)

stream_names = STREAMS.names
stream_builder = STREAMS.find


def register_stream(name: str) -> Callable[[B], B]:
    """Make ``builder(**options) -> Stream``, or ``ShiftStream``, known by ``name``.

    Other packages name such a builder in an entry point of the group ``cil.streams``.

    Raises:
        ConfigError: where another builder has the name.
    """
    return STREAMS.register(name)
