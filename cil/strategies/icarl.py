"""iCaRL: rehearse herded exemplars, distil the old classes, answer by the nearest mean."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory, State, class_means
from cil.models import GrowingNet, NetFactory, Output, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import distillation, features, nearest_mean, store_exemplars
from cil.strategies.registry import register
from cil.streams import Experience


@register("icarl")
class ICaRL(Strategy):
    """Incremental classifier and representation learning.

    Args:
        temperature: Softens teacher and student in the distillation term; > 0.
        strength: Weight of the distillation term; 0 trains as Replay does.
        selection, codec: See ``ExemplarMemory``; ``herding`` is the paper's rule.

    Source:
        Rebuffi, Kolesnikov, Sperl, Lampert. CVPR 2017, arXiv:1611.07725, Algorithms 1 to 5. Departure: cross-entropy
        and distillation in place of the binary cross-entropy, as in the survey of Zhou et al. 2024.
    """

    answers_by = "nearest_mean"
    memory: ExemplarMemory
    teacher: GrowingNet | None
    means: Tensor  # (C, D), unit length

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        temperature: float = 2.0,
        strength: float = 1.0,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.above(0, "icarl", temperature=temperature)
        check.at_least(0, "icarl", strength=strength)
        self.temperature, self.strength = temperature, strength
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")
        self.keep("means", None, kind="temporary")  # recomputed from the exemplars, so neither carried nor charged

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.strength:  # the network is still as the last experience left it
            self.teacher = frozen_copy(self.net)

    @plain_at_first("classes")
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.net(batch.images).logits  # (N, C)
        terms = {"classes": F.cross_entropy(logits, batch.slots)}
        if self.teacher is not None:
            old = self.teacher(batch.images).logits  # (N, C_old)
            # Algorithm 3, its distillation
            terms["distillation"] = self.strength * distillation(logits[:, : old.shape[1]], old, self.temperature)
        return terms

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)  # Algorithms 4 and 5

    def load_state(self, state: State) -> None:
        super().load_state(state)
        if len(self.memory):
            exemplars = self.memory.samples()
            self.means = class_means(features(self, exemplars), exemplars.slots, self.num_classes).to(self.device)

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen by minus the distance to its mean (Algorithm 1): (N, ...) to (N, C)."""
        output = self.net(images)
        if self.means is None:  # no room for a single exemplar: the head answers
            return output.logits
        return nearest_mean(output.features, self.means)

    def further_answers(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        return {"head": output.logits}
