"""Networks that no longer change: teachers, earlier branches, and networks in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TypeVar

from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def freeze(module: Net) -> Net:
    """Stop a module from changing, in place and for good: no gradients, and evaluation mode whatever anyone asks.

    ``train()`` on it or on a network around it leaves it in evaluation mode, so batch-norm statistics stay put.
    """
    module.requires_grad_(False)
    module.eval()
    module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)


def frozen_copy(net: Net) -> Net:
    """A deep copy that is frozen (see ``freeze``): a teacher. The network itself is left as it is."""
    return freeze(copy.deepcopy(net))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each layer is given its own mode back, but for those that are frozen inside."""
    modes = [(layer, layer.training, is_frozen(layer)) for layer in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for layer, mode, _ in modes:
            layer.training = mode
        for layer, _, frozen_before in modes:
            if is_frozen(layer) and not frozen_before:
                layer.eval()


@contextmanager
def constant(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Within this context no gradient reaches these parameters."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def is_frozen(module: nn.Module) -> bool:
    """True where ``freeze`` was called for this module."""
    return getattr(module.train, "__func__", None) is _stay_in_eval
