"""LwF: learning without forgetting, by distilling the old outputs on the new data."""

from __future__ import annotations

from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.memory import Budget
from cil.models import GrowingNet, NetFactory, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import distillation, new_class_cross_entropy
from cil.strategies.registry import register
from cil.streams import Experience


@register("lwf")
class LwF(Strategy):
    """Cross-entropy over the new outputs plus distillation over the old ones, on new data only.

    Args:
        strength: Weight lambda of the distillation term; 0 gives Finetune.
        temperature: Softens teacher and student; > 0.

    Source:
        Li and Hoiem, ECCV 2016, arXiv:1606.09282. Departures, as in the survey's code: one softmax over all old
        classes (not one a task), no warm-up of the new head, lambda 3 (1 in the survey's text).
    """

    teacher: GrowingNet | None

    def __init__(
        self, make_net: NetFactory, budget: Budget, *, strength: float = 3.0, temperature: float = 2.0
    ) -> None:
        super().__init__(make_net, budget)
        check.above(0, "lwf", temperature=temperature)
        check.at_least(0, "lwf", strength=strength)
        self.strength, self.temperature = strength, temperature
        self.keep("teacher", None, kind="teacher")

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.strength:
            self.teacher = frozen_copy(self.net)

    @plain_at_first("new")
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.net(batch.images).logits
        # L_new + lambda L_old
        terms = {"new": new_class_cross_entropy(logits, batch.slots, self.first_slot)}
        if self.teacher is not None:
            old = self.teacher(batch.images).logits
            terms["distillation"] = self.strength * distillation(logits[:, : old.shape[1]], old, self.temperature)
        return terms
