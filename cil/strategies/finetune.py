"""Finetune: train on what comes, keep nothing. The lower bound."""

from __future__ import annotations

from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.strategies.base import Strategy
from cil.strategies.parts import new_class_cross_entropy
from cil.strategies.registry import register


@register("finetune")
class Finetune(Strategy):
    """Cross-entropy over the new outputs alone.

    Source:
        Zhou et al. 2024, baseline 'Finetune'. Over all outputs it would be another, worse baseline that pushes old
        logits down; here old rows change by weight decay only.
    """

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor:
        return new_class_cross_entropy(self.net(batch.images).logits, batch.slots, self.first_slot)
