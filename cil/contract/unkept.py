"""What would be lost at a boundary: data in an attribute that was not kept, wherever in it they are; and copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Size, Tensor, nn
from torch.optim import Optimizer

from cil.data import Samples
from cil.memory import ExemplarMemory

DATA = (Tensor, nn.Module, ExemplarMemory, Samples, Optimizer, np.ndarray)
PLAIN = frozenset({type(None), bool, int, float, str})
DEPTH = 6  # of containers, functions and what these hold


def data_in(value: Any, depth: int = DEPTH) -> Any:
    """The first tensor, module, array, memory, samples or optimizer in a value; None where there is none.

    Looked into: containers, and functions with what they close over.
    """
    if type(value) in PLAIN:  # most attributes: a learner is grown once for each experience behind it
        return None
    if isinstance(value, DATA):
        return value
    inside = (data_in(part, depth - 1) for part in _parts(value)) if depth else ()
    return next((found for found in inside if found is not None), None)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType):
        return parts_of_function(value)
    return ()


def parts_of_function(function: FunctionType) -> Iterator[Any]:
    """Values of the enclosing scopes and of defaults."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def lost_buffers(name: str, module: nn.Module) -> list[str]:
    """Buffers of a kept module that its state dict leaves out, and that are not declared ``constants`` of their layer.

    Those of timm, torchvision and open_clip are tables that follow from the structure.
    """
    found = []
    for path, layer in module.named_modules():
        own = type(layer)
        if own.__module__.partition(".")[0] not in ("torch", "timm", "torchvision", "open_clip"):
            lost = layer._non_persistent_buffers_set - set(getattr(own, "constants", ()))
            found += [".".join(filter(None, (name, path, key))) for key in sorted(lost)]
    return found


def copied_by(module: nn.Module, others: Mapping[str, Any]) -> str | None:
    """The name of a network that ``module`` is a frozen copy of, by class and shapes; None where it is of none."""
    shapes = _shapes(module)
    if not shapes or any(parameter.requires_grad for parameter in module.parameters()):  # a loss has no weights
        return None
    alike = (name for name, other in others.items() if type(other) is type(module) and other is not module)
    return next((name for name in alike if _shapes(others[name]) == shapes), None)


def _shapes(module: nn.Module) -> dict[str, Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}
