"""Joint: a fresh network on all data of the classes seen. The upper bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory
from cil.strategies.base import Strategy
from cil.strategies.registry import register
from cil.streams import Experience


@register("joint")
class Joint(Strategy):
    """Retrain from scratch on everything seen so far, after every experience.

    It keeps all past data and is charged for them in full; a budget only reports on it. It is a bound, not a
    competitor, so tables keep it out of rankings.

    Source:
        Zhou et al. 2024, 'oracle'; the reference model of Chaudhry et al. 2018 for intransigence. Variant: retrained
        for each experience.
    """

    bound = True
    memory: ExemplarMemory

    def __init__(self, make_net: NetFactory, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.keep("memory", ExemplarMemory(), kind="exemplars")

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return dict(counts)

    def prepare(self, experience: Experience) -> None:
        if experience.index == 0:
            return  # the network is fresh
        fresh = self.make_net()
        fresh.grow(self.num_classes)
        self.net.load_state_dict(fresh.state_dict())

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield Phase("main", self.training_set(experience), self.loss, fresh=True)

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_experience(self, experience: Experience) -> None:
        self.memory.replace([self.memory.samples(), experience.train])
