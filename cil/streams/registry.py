"""Stream builders by name; those of other packages are found through entry points and loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cil.plugins import Registry
from cil.streams.base import Stream
from cil.streams.shifts import ShiftStream

Builder = Callable[..., Stream | ShiftStream]
B = TypeVar("B", bound=Builder)
STREAMS: Registry[Builder] = Registry("stream", "cil.streams")

stream_names = STREAMS.names
stream_builder = STREAMS.find


def register_stream(name: str) -> Callable[[B], B]:
    """Make ``builder(**options) -> Stream``, or ``ShiftStream``, known by ``name``.

    Other packages name such a builder in an entry point of the group ``cil.streams``.

    Raises:
        ConfigError: where another builder has the name.
    """
    return STREAMS.register(name)
