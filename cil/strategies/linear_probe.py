"""Linear probe: a frozen backbone, and a linear head that is trained on its features as classes arrive."""

from __future__ import annotations

from collections.abc import Iterator

from cil.contract import Phase
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.frozen_linear import FrozenLinear
from cil.strategies.registry import register
from cil.streams import Experience


@register("linear_probe")
class LinearProbe(FrozenLinear):
    """Rows for new classes are trained, all else stays fixed: the lower bound of plasticity on a frozen backbone.

    Args:
        rehearsal: Whether exemplars are kept. Without any the softmax is over the new classes alone; with them new data
            and exemplars are shuffled together, and it is over all classes seen.
        lr: Learning rate of the head; its weight decay is 0.
        train_old_head: Whether rows of classes that are not here are trained too; this matters with rehearsal alone.
        selection, codec: See ``ExemplarMemory``.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Baseline: logistic regression on fixed features, by stochastic gradients.
    """

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rehearsal: bool = False,
        lr: float = 0.1,
        train_old_head: bool = True,
        selection: str = "herding",
        codec: str = "raw",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget, train_first, first_head)
        check.at_least(0, "linear_probe", lr=lr)
        self.lr = lr
        self.keep_head(rehearsal, train_old_head, selection, codec)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield from self.train_then_freeze(experience)
        groups = [{"params": list(self.head.parameters()), "lr": self.lr, "weight_decay": 0.0}]
        yield Phase("head", self.training_set(experience), self.loss, groups, fresh=False)
