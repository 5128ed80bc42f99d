"""Training memory by the rule behind EcoTTA's table: arithmetic on the layers, not the tensors that autograd saves.

Trainable layers keep their inputs, frozen ones nothing, a ReLU one bit a value, and frozen parameters are counted at
eight bits (TinyTL, EcoTTA). The exact accounting is in ``training_memory``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Published:
    """Training memory by the rule that reproduces the MB of the EcoTTA paper.

    bytes = 4 (trainable + copied) + frozen + 4 inputs + relus / 8

    Attributes:
        trainable, frozen: Numbers of parameter values; frozen ones count one byte each (eight bits).
        inputs: Values, of the whole batch, that enter layers whose weights are trained.
        relus: Values, of the whole batch, that enter ReLUs: a bit each.
        copied: Parameter values in float copies that a method holds beside the network: those of CoTTA's teacher and
            source.

    Source: Song et al. (EcoTTA), CVPR 2023, Table 1, after the accounting of TinyTL (Cai et al., NeurIPS 2020).
    """

    trainable: int
    frozen: int
    inputs: int
    relus: int
    copied: int = 0

    @property
    def parameters(self) -> int:
        return 4 * (self.trainable + self.copied) + self.frozen

    @property
    def activations(self) -> int:
        """Bytes kept for backward."""
        return 4 * self.inputs + -(-self.relus // 8)

    @property
    def bytes(self) -> int:
        """Parameters and activations together."""
        return self.parameters + self.activations


def published(net: nn.Module, images: Tensor, *, original: nn.Module | None = None, copies: int = 0) -> Published:
    """The quantities of the published accounting, from one forward pass; ``meta`` tensors suffice.

    Args:
        net: Adapted network; its trained parameters require a gradient.
        images: A batch, as ``net`` takes it.
        original: Network whose ReLUs are counted, ``net`` if None; for meta networks, the network without them.
        copies: Float copies of the trained parameters that are held: a teacher 1, a teacher and the source 2.

    >>> published(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.rand(2, 3, 4, 4))
    Published(trainable=224, frozen=0, inputs=96, relus=256, copied=0)
    """
    with counting_inputs([net]) as count:
        net(images)
    inputs, relus = count.inputs, count.relus
    if original is not None:
        with counting_inputs([]) as count, torch.no_grad():
            original(images)
        relus = count.relus
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    return Published(trainable, frozen, inputs, relus, copies * trainable)


@dataclass
class LayerInputs:
    """Values that entered trained layers, and ReLUs; of the latter also those that a gradient passes."""

    inputs: int = 0
    relus: int = 0
    relus_on_the_way: int = 0


@contextmanager
def counting_inputs(modules: Iterable[nn.Module]) -> Iterator[LayerInputs]:
    """Count the inputs of trained layers of ``modules``, and of all ReLUs, modules or not, inside the context.

    A trained layer is a module with parameters of its own that require a gradient, and no such module inside.
    """
    count = LayerInputs()

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            count.inputs += next((value.numel() for value in inputs if isinstance(value, Tensor)), 0)

    with ExitStack() as stack:
        for layer in {id(m): m for module in modules for m in module.modules() if _is_trained(m)}.values():
            stack.callback(layer.register_forward_pre_hook(enter).remove)
        stack.enter_context(_Relus(count))
        yield count


def _is_trained(module: nn.Module) -> bool:
    own = any(p.requires_grad for p in module.parameters(recurse=False))
    return own and not any(p.requires_grad for child in module.children() for p in child.parameters())


class _Relus(TorchDispatchMode):
    """Adds up the inputs of ``relu``, whoever calls it."""

    def __init__(self, count: LayerInputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "_overloadpacket", None) in (torch.ops.aten.relu, torch.ops.aten.relu_):
            self.count.relus += args[0].numel()
            self.count.relus_on_the_way += args[0].numel() if args[0].requires_grad else 0
        return func(*args, **(kwargs or {}))
