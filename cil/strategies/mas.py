"""MAS: memory aware synapses, importance by how much a weight moves the outputs; no labels are needed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cil.contract.plain import not_at_first, plain_at_first
from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory, evaluating
from cil.strategies.base import Strategy, check
from cil.strategies.parts import new_class_cross_entropy
from cil.strategies.parts.heads import hold_rows, rows_without_data
from cil.strategies.parts.importance import (
    learning_parameters,
    old_part,
    padded_to,
    quadratic_penalty,
    snapshot,
    sum_of_gradients,
)
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("mas")
class MAS(Strategy):
    """Cross-entropy over the new outputs plus lambda sum_j Omega_j (theta_j - theta*_j)^2.

    Args:
        strength: lambda; 0 gives Finetune. FACIL has half of it in its penalty: its 1 is 0.5 here.
        function: Function of the logits whose gradient is taken: ``squared`` length (the paper's), or the length
            itself, ``norm`` (FACIL's), which gives importances at another scale: 37 times smaller on a toy.
        batch_size: Images whose gradients are summed before the absolute value is taken. 1 is the definition; more is
            faster and cancels (FACIL).
        merge: Merging of the importances so far and those of this experience: their ``sum`` (the paper's), ``half`` of
            each (FACIL's), or weighted by their ``classes`` (C_o / C and the rest; a class that comes back counts
            again). New weights take the new ones whole.
        heads: Whether the head is pulled back too. If not, rows of old classes stay as they are.

    Source:
        Aljundi et al., ECCV 2018, arXiv:1711.09601, section 4.1. Departures: importances are of the backbone alone, as
        in FACIL (Masana et al. 2022), and taken in evaluation mode, on images that are not augmented.
    """

    importance: dict[str, Tensor]
    anchor: dict[str, Tensor] | None
    rows: dict[str, Tensor]

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        strength: float = 1.0,
        function: str = "squared",
        batch_size: int = 1,
        merge: str = "sum",
        heads: bool = False,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "mas", strength=strength)
        check.at_least(1, "mas", batch_size=batch_size)
        check.one_of(("squared", "norm"), "mas", function=function)
        check.one_of(("half", "classes", "sum"), "mas", merge=merge)
        self.strength, self.function, self.batch_size = strength, function, batch_size
        self.merge, self.heads = merge, heads
        self.keep("importance", {}, kind="statistics")  # Omega
        self.keep("anchor", None, kind="temporary")  # theta*: the weights at the boundary, so it is not carried
        self.keep("rows", {}, kind="temporary")  # of old classes, which stay

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.importance = padded_to(self.importance, self._weights())

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes:
            self.anchor = snapshot(self._weights())

    @plain_at_first("new")
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        # L(theta) = L_n(theta) + lambda sum_j Omega_j (theta_j - theta*_j)^2, section 4.1
        terms = {"new": new_class_cross_entropy(self.net(batch.images).logits, batch.slots, self.first_slot)}
        if self.anchor is not None and self.strength:
            terms["penalty"] = self.strength * quadratic_penalty(self._weights(), self.anchor, self.importance)
        return terms

    def prepare(self, experience: Experience) -> None:
        self.rows = {} if self.heads else rows_without_data(self, self.net)

    @not_at_first
    def adjust_gradients(self, batch: Batch) -> None:
        hold_rows(self.net, self.rows)

    after_step = adjust_gradients

    def after_experience(self, experience: Experience) -> None:
        importance = self._importance_of(experience)
        for name, old in (self.anchor or {}).items():
            before, new = old_part(self.importance[name], old), old_part(importance[name], old)
            if self.merge == "sum":
                new += before
            else:
                new.lerp_(before, 0.5 if self.merge == "half" else self.share_before)
        self.importance = importance

    def _importance_of(self, experience: Experience) -> dict[str, Tensor]:
        """Omega_j = (1 / N) sum_x |d ||f(x)||^2 / d theta_j|."""
        order = torch.randperm(len(experience.train), generator=self.generator("importance"))
        batches = experience.train[order].batches(self.batch_size, self.device)

        def length(batch: Batch) -> Tensor:  # section 4.1, the squared l2 norm of the output
            lengths: Tensor = torch.linalg.vector_norm(self.net(batch.images).logits.float(), dim=1)  # (N,)
            return lengths.sum() if self.function == "norm" else lengths.square().sum()

        with evaluating(self.net):
            total, _ = sum_of_gradients(self._weights(), batches, length, torch.abs)
        return {name: value / len(experience.train) for name, value in total.items()}

    def _weights(self) -> dict[str, nn.Parameter]:
        return learning_parameters(self.net, self.heads)
