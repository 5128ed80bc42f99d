"""Data that can be reached from an object, by whatever way Python has: what containers, functions and objects hold."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import fields
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, GeneratorType, ModuleType, TracebackType
from typing import Any
from weakref import ReferenceType

import numpy as np
from torch import Tensor, nn

from cil.contract.unkept import DATA, PLAIN, parts_of_function
from cil.data import Batch
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


def data_beside(attributes: Mapping[str, Any], kept: Mapping[str, Any], context: Any) -> Iterator[tuple[str, Any]]:
    """Data of a learner that are no part of what it keeps, with the name of the attribute that leads there.

    Args:
        attributes: Of the learner; those that are kept are left out, but for what networks have beside their layers,
            parameters and buffers: attributes and hooks.
        kept: Entries by name.
        context: Of its fields nothing is looked at, of what was set beside them all.
    """
    known = {field.name for field in fields(context)}
    roots = {name: [value] for name, value in attributes.items() if name not in kept}
    roots["context"] = [value for name, value in vars(context).items() if name not in known]
    roots |= {name: list(_beside_layers(value)) for name, value in kept.items() if isinstance(value, nn.Module)}
    own: set[int] = set()
    for name, values in roots.items():
        for found in reachable_data(values, _is_lent):
            if isinstance(found, nn.Module) and all(tensor.is_meta for tensor in found.state_dict().values()):
                continue  # no values: a layer without any, or the template that a factory makes when it is asked
            own = own or set(map(id, _parts_of(kept.values())))
            if id(found) not in own:
                yield name, found


def data_of_phase(functions: Iterable[Any], kept: Iterable[Any]) -> Iterator[Any]:
    """Tensors, modules and arrays that functions of a phase close over and that are no part of what is kept.

    Samples and batches, which the engine hands over, are left out.
    """
    own = set(map(id, _parts_of(kept)))
    for found in reachable_data(functions, _is_lent):
        if id(found) not in own and isinstance(found, Tensor | nn.Module | np.ndarray):
            yield found


def _beside_layers(module: nn.Module) -> Iterator[Any]:
    for layer in module.modules():
        own = vars(layer)
        yield from (own[name] for name in own.keys() - {"_modules", "_parameters", "_buffers"})


def _is_lent(value: Any) -> bool:
    """True for batches and parts of the stream, which the engine hands over: a learner may remember the last one."""
    return isinstance(value, Batch) or type(value).__module__.startswith("cil.streams.")


def _parts_of(values: Iterable[Any]) -> Iterator[Any]:
    """Values with the layers, parameters and buffers of modules and the tensors of mappings."""
    for value in values:
        yield value
        if isinstance(value, nn.Module):
            yield from value.modules()
            yield from value.parameters()
            yield from value.buffers()
        elif isinstance(value, Mapping):
            yield from value.values()


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
