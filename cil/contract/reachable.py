"""Data that can be reached from an object, by whatever way Python has: what containers, functions and objects hold."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GeneratorType,
    ModuleType,
    TracebackType,
)
from typing import Any
from weakref import ReferenceType

from torch import nn

from cil.contract.unkept import DATA, PLAIN, parts_of_function
from cil.errors import LIBRARIES

MOST = 50_000  # objects that are looked at
_STOPS = (ModuleType, FrameType, TracebackType, CodeType, BuiltinFunctionType)


def is_data(value: Any) -> bool:
    """True for a tensor, module, array, memory, samples and optimizer."""
    return isinstance(value, DATA)


def reachable_data(
    roots: Iterable[Any], stops: Callable[[Any], bool] = lambda value: False, is_data: Callable[[Any], bool] = is_data
) -> Iterator[Any]:
    """All data that can be reached, each once; not what is in them.

    Modules of Python, frames, learners and classes of libraries are not looked into.

    Args:
        stops: Tells what else is not looked into, and is no data.
        is_data: Tells what is yielded.
    """
    left, seen = list(roots), dict[int, Any]()  # held, so that no number is used twice
    while left and len(seen) < MOST:
        one = left.pop()
        if type(one) in PLAIN or id(one) in seen:
            continue
        seen[id(one)] = one
        if stops(one):
            continue
        if is_data(one):
            yield one
        else:
            left += _inside(one)


def beside_parts(module: nn.Module) -> Iterator[Any]:
    """What the layers of a network have beside parameters, buffers and layers: attributes and hooks."""
    for layer in module.modules():
        own = vars(layer)
        yield from (own[name] for name in own.keys() - {"_modules", "_parameters", "_buffers"})


def _inside(one: Any) -> Iterable[Any]:
    if isinstance(one, type):
        return [] if of_library(one) else list(vars(one).values())
    if isinstance(one, _STOPS) or "_kept" in getattr(one, "__dict__", {}):
        return []
    if isinstance(one, FunctionType):
        return [*parts_of_function(one), *vars(one).values()]
    if isinstance(one, GeneratorType):
        return [] if one.gi_frame is None else list(one.gi_frame.f_locals.values())
    if isinstance(one, ContextVar):
        return [one.get(None)]
    if isinstance(one, ReferenceType):
        return [one()]
    return gc.get_referents(one)


def of_library(kind: type) -> bool:
    """True for classes of Python, of this package and of what it is built on."""
    top = str(kind.__module__).partition(".")[0]
    return top in LIBRARIES or top == "cil"
