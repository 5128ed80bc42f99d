"""What a strategy of Avalanche carries from one experience to the next, as kept values that are charged by kind.

Its own object does not survive a boundary. Before an experience a fresh one is made and given what was carried; after
it, what it holds is taken out of its plugins again. What strategies hold is in ``carried_weights`` and
``carried_images``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cil.data import Samples
from cil.memory import ExemplarMemory
from cil.strategies.base import Strategy


class Logits(nn.Module):
    """A network of ours as Avalanche calls one: images to logits of the classes seen."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images).logits
        return found


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


class Carried:
    """What is held beside the network: nothing, unless a subclass says so.

    Args:
        learner: Whose values are kept, and charged.
    """

    def __init__(self, learner: Host) -> None:
        self.learner = learner

    def grow(self) -> None:
        """Allocate at the size after the experience that begins, without data."""

    def before(self) -> None:
        """The network is still as the last experience left it."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the strategy that follow from the budget."""
        return {}

    def restore(self, strategy: Any, data: Any) -> None:
        """Give a fresh strategy what was carried.

        Args:
            data: The exemplars as a data set of Avalanche, in their order.
        """

    def save(self, strategy: Any, pool: Samples) -> None:
        """Keep what the strategy holds after training.

        Args:
            pool: Exemplars and new images; the attribute ``rows`` of a data set of Avalanche counts in it.
        """

    def plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        """Exemplars of each slot; see ``Strategy.exemplar_plan``."""
        return {}

    def side_bytes(self) -> int:
        """Bytes beside network and exemplars that the method holds by design."""
        return 0


def plugin_of(strategy: Any, kind: str) -> Any:
    """The plugin of a strategy, by the name of its class."""
    return next(plugin for plugin in strategy.plugins if type(plugin).__name__ == kind)
