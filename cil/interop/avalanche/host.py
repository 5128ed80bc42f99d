"""What a strategy of Avalanche has on our side, which the parts that are carried read and fill."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cil.memory import ExemplarMemory
from cil.strategies.base import Strategy


class Logits(nn.Module):
    """A network of ours as Avalanche calls one: images to logits of the classes seen."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images).logits
        return logits


class Host(Strategy):
    """A strategy that holds what plugins of Avalanche carry.

    Attributes:
        options: The arguments of Avalanche's class.
        experiences: Those before the one that is learned.
        arrivals: By slot the experience in which it came.
    """

    options: dict[str, Any]
    experiences: int
    arrivals: dict[int, int]
    memory: ExemplarMemory
    teacher: nn.Module | None
