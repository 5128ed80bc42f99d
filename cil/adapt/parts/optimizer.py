"""A carried optimizer: its moments are allocated at their final size, so that they are billed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cil.adapt.base import check
from cil.adapt.parts.parameters import assign, flat
from cil.adapt.parts.published_defaults import default_by_classes

OPTIMIZERS = ("adam", "sgd")


class CarriedOptimizer(nn.Module):
    """Adam, or SGD with momentum, on given parameters, without weight decay; steps are those of ``torch.optim``.

    Keep it with ``kind="optimizer", lifetime="carried"``. The parameters belong to the network, not to this module.

    Args:
        tuned: Parameters that it moves.
        name: ``adam`` or ``sgd``.
        lr: Learning rate.
        momentum: Momentum of SGD; 0 needs no moments.
        nesterov: Nesterov's momentum, for SGD.
        betas: Averaging factors of Adam.

    Attributes:
        tuned: The parameters.
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
        move: Tensor = first / unbiased / ((second / scale).sqrt() + 1e-8)
        return move


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
        tuned: Parameters that it moves.
        adapter: Name of the method, for messages.
        num_classes: K; nearest to 10 or 100 (CIFAR) or to 1000 (ImageNet).
        optimizer: None: Adam on CIFAR, SGD with Nesterov momentum on ImageNet.
        lr: None: 1e-3 on CIFAR, ``imagenet_lr`` on ImageNet.
        momentum: Momentum of SGD.
        imagenet_lr: 2.5e-4 in most papers.
        nesterov: Nesterov's momentum, for SGD.

    Raises:
        ConfigError: for a value that is not allowed.
    """
    check.one_of((None, *OPTIMIZERS), adapter, optimizer=optimizer)
    check.at_least(0, adapter, lr=lr)
    check.between(0, 1, adapter, momentum=momentum)
    name = default_by_classes(optimizer, num_classes, {10: "adam", 100: "adam", 1000: "sgd"})
    rate = default_by_classes(lr, num_classes, {10: 1e-3, 100: 1e-3, 1000: imagenet_lr})
    return CarriedOptimizer(tuned, name, rate, momentum, nesterov)
