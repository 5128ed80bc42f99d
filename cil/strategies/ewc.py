"""EWC: elastic weight consolidation, a quadratic pull towards the old weights, each by its importance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import Strategy, check
from cil.strategies.parts import new_class_cross_entropy
from cil.strategies.parts.importance import (
    learning_parameters,
    padded_to,
    quadratic_penalty,
    snapshot,
    sum_of_gradients,
)
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("ewc")
class EWC(Strategy):
    """Cross-entropy over the new outputs plus (lambda / 2) sum_j F_j (theta_j - theta*_j)^2.

    Args:
        strength: lambda; 0 gives Finetune.
        cap: Upper bound on each entry of the Fisher matrix's diagonal.
        batch_size: Mini-batch whose mean gradient is squared.
        fisher_mode: The Fisher is taken in ``evaluation`` mode on images as they are; or as the survey's code does, in
            ``training`` mode on augmented ones, which moves running statistics, and gives about a third of it.

    Source:
        Kirkpatrick et al., PNAS 2017, arXiv:1612.00796, equation 3. Departures, as in the survey's code: the squared
        gradient of a batch mean (with true labels, over all outputs) in place of the per-sample Fisher, capped, and one
        merged diagonal, F <- (C_o / C) F_old + (1 - C_o / C) F_new, where a class that comes back counts again.
        Departure from that code: ``fisher_mode``.
    """

    fisher: dict[str, Tensor]
    anchor: dict[str, Tensor] | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        strength: float = 1000.0,
        cap: float = 1e-4,
        batch_size: int = 128,
        fisher_mode: str = "evaluation",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "ewc", strength=strength, cap=cap)
        check.at_least(1, "ewc", batch_size=batch_size)
        check.one_of(("evaluation", "training"), "ewc", fisher_mode=fisher_mode)
        self.strength, self.cap, self.batch_size, self.fisher_mode = strength, cap, batch_size, fisher_mode
        self.keep("fisher", {}, kind="statistics")
        self.keep("anchor", None, kind="temporary")  # equals the weights at the boundary, so it is not carried

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.fisher = padded_to(self.fisher, learning_parameters(self.net))

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.strength:
            self.anchor = snapshot(learning_parameters(self.net))

    @plain_at_first("new")
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.net(batch.images).logits
        terms = {"new": new_class_cross_entropy(logits, batch.slots, self.first_slot)}
        if self.anchor is not None:  # equation 3
            weights = learning_parameters(self.net)
            terms["penalty"] = self.strength / 2 * quadratic_penalty(weights, self.anchor, self.fisher)
        return terms

    def after_experience(self, experience: Experience) -> None:
        share = self.share_before
        new_rows = {name: slice(self.old_classes, None) for name in ("head.weight", "head.bias")}
        for name, new in self._fisher_of(experience).items():
            merged = torch.lerp(new, self.fisher[name], share)  # share old + (1 - share) new, never above the cap
            if name in new_rows:
                merged[new_rows[name]] = new[new_rows[name]]
            self.fisher[name] = merged

    def _fisher_of(self, experience: Experience) -> dict[str, Tensor]:
        """Mean over mini-batches of the squared gradient, capped."""
        generator = self.generator("fisher")
        order = torch.randperm(len(experience.train), generator=generator)
        as_trained = self.fisher_mode == "training"
        batches = experience.train[order].batches(self.batch_size, self.device, joined=as_trained)
        self.net.train() if as_trained else self.net.eval()

        def loss(batch: Batch) -> Tensor:
            images = self.context.augment(batch.pixels, generator, batch.slots) if as_trained else batch.images
            return F.cross_entropy(self.net(images).logits, batch.slots)

        total, count = sum_of_gradients(learning_parameters(self.net), batches, loss, torch.square)
        return {name: (value / count).clamp_(max=self.cap) for name, value in total.items()}
