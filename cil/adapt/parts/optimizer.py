"""A carried optimizer, parameters as one vector, a slow teacher, and settings published for a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from cil.adapt.base import check

T = TypeVar("T")


class CarriedOptimizer(nn.Module):
    """Adam, or SGD with momentum, on given parameters, without weight decay; steps are those of ``torch.optim``.

    Keep it with ``kind="optimizer", lifetime="carried"``: moments are there at their final size, so that they are
    billed at once. The parameters belong to the network, not to this module.

    Args:
        name: ``adam`` or ``sgd``.
        momentum: Momentum of SGD; 0 needs no moments.

    Attributes:
        tuned: The parameters that it moves.
        moments: (2, P) for Adam, (1, P) for SGD, (0, P) for SGD without momentum: 4 bytes each.
    """

    moments: Tensor
    steps: Tensor

    def __init__(
        self,
        tuned: Sequence[nn.Parameter],
        name: str = "adam",
        lr: float = 1e-3,
        momentum: float = 0.9,
        nesterov: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        self.tuned = list(tuned)
        self.name, self.lr, self.momentum, self.nesterov, self.betas = name, lr, momentum, nesterov, betas
        count = 2 if name == "adam" else 1 if momentum else 0
        size, device = sum(p.numel() for p in self.tuned), self.tuned[0].device
        self.register_buffer("moments", torch.zeros(count, size, device=device))
        if name == "adam":
            self.register_buffer("steps", torch.zeros((), device=device))

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters, given the gradient of each."""
        gradient = flat(gradients).float()
        move = self._adam(gradient) if self.name == "adam" else self._sgd(gradient)
        assign(self.tuned, flat(self.tuned) - self.lr * move)

    def restart(self) -> None:
        """Forget all earlier gradients."""
        for value in self.buffers():
            value.zero_()

    def _sgd(self, gradient: Tensor) -> Tensor:
        if not self.momentum:
            return gradient
        moment = self.moments[0].mul_(self.momentum).add_(gradient)
        return gradient.add(moment, alpha=self.momentum) if self.nesterov else moment

    def _adam(self, gradient: Tensor) -> Tensor:
        (first, second), (b1, b2) = self.moments, self.betas
        self.steps += 1
        first.lerp_(gradient, 1 - b1)
        second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        # 1 - b^t, without the rounding error of b^t near 1
        unbiased, scale = (-torch.expm1(self.steps * math.log(b)) for b in (b1, b2))
        found: Tensor = first / unbiased / ((second / scale).sqrt() + 1e-8)
        return found


def make_optimizer(
    tuned: Sequence[nn.Parameter],
    adapter: str,
    num_classes: int,
    optimizer: str | None,
    lr: float | None,
    momentum: float,
    imagenet_lr: float = 2.5e-4,
    nesterov: bool = True,
) -> CarriedOptimizer:
    """The optimizer asked for, with the settings published for the data set where they are left open.

    Args:
        num_classes: K; nearest to 10 or 100 (CIFAR) or to 1000 (ImageNet).
        optimizer: None: Adam on CIFAR, SGD with Nesterov momentum on ImageNet.
        lr: None: 1e-3 on CIFAR, ``imagenet_lr`` on ImageNet.
        imagenet_lr: 2.5e-4 in most papers.

    Raises:
        ConfigError: for a value that is not allowed.
    """
    check.one_of((None, "adam", "sgd"), adapter, optimizer=optimizer)
    check.at_least(0, adapter, lr=lr)
    check.at_least(0, adapter, momentum=momentum)
    check.below(1, adapter, momentum=momentum)
    name = default_by_classes(optimizer, num_classes, {10: "adam", 100: "adam", 1000: "sgd"})
    rate = default_by_classes(lr, num_classes, {10: 1e-3, 100: 1e-3, 1000: imagenet_lr})
    return CarriedOptimizer(tuned, name, rate, momentum, nesterov)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in order, (P,); gradients pass through."""
    return torch.cat([tensor.flatten() for tensor in tensors])


@torch.no_grad()
def assign(tensors: Sequence[Tensor], values: Tensor) -> None:
    """Give tensors the values of a vector (P,), in place."""
    parts = values.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, all parameters, in place; buffers stay."""
    for own, new in zip(teacher.parameters(), student.parameters(), strict=True):
        own.lerp_(new, 1 - momentum)


def default_by_classes(given: T | None, num_classes: int, published: Mapping[int, T]) -> T:
    """The given value, or the one published for the data set whose number of classes is nearest by ratio.

    Args:
        published: By number of classes: 10 (CIFAR-10), 100 (CIFAR-100), 1000 (ImageNet).

    >>> published = {10: "CIFAR-10", 100: "CIFAR-100", 1000: "ImageNet"}
    >>> [default_by_classes(None, classes, published) for classes in (2, 31, 32, 200, 1000)]
    ['CIFAR-10', 'CIFAR-10', 'CIFAR-100', 'CIFAR-100', 'ImageNet']
    """
    if given is not None:
        return given
    return published[min(published, key=lambda classes: abs(math.log(max(1, num_classes) / classes)))]
