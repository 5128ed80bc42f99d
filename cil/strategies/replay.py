"""Replay: train on new data and stored exemplars together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory
from cil.strategies.base import Strategy
from cil.strategies.parts import store_exemplars
from cil.strategies.registry import register
from cil.streams import Experience


@register("replay")
class Replay(Strategy):
    """Cross-entropy over all outputs on the new data and the exemplars, shuffled together without balancing.

    Args:
        selection, codec: See ``ExemplarMemory``.

    Source:
        Zhou et al. 2024, baseline 'Replay'.
    """

    memory: ExemplarMemory

    def __init__(self, make_net: NetFactory, budget: Budget, *, selection: str = "herding", codec: str = "raw") -> None:
        super().__init__(make_net, budget)
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)
