"""EWC online: one running Fisher diagonal pulls the shared backbone towards its weights after the last task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cil.contract import Settings
from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory, TaskNet
from cil.strategies.base import check
from cil.strategies.parts.importance import quadratic_penalty, snapshot, sum_of_gradients
from cil.strategies.parts.task_learner import SEARCH, TaskLearner, task_loss
from cil.strategies.registry import register
from cil.streams import Experience


@register("ewc_online")
class EWCOnline(TaskLearner):
    """Previous, plus (lambda / 2) sum_j F_j (theta_j - theta*_j)^2 over the backbone; F <- gamma F + F_t after a task.

    Its use shows where earlier tasks are evaluated again (``stream.reevaluate=all_seen``). Lambda is no part of the
    search, which is judged on the new task and would always take the smallest.

    Args:
        search: See ``TaskRecipe``.
        strength: lambda; 0 gives Previous.
        decay: gamma, in [0, 1].
        cap: Upper bound on each entry of F, so that lr lambda F stays where a step is stable.
        examples: Images of a task, drawn at random, whose squared gradients are averaged for F_t.

    Source:
        Schwarz et al., "Progress & Compress", ICML 2018, arXiv:1805.06370, section 3.2 (online EWC); F_t is the
        empirical Fisher diagonal, sample by sample and with true labels, in evaluation mode. Departure: the cap.
        ``ewc`` is its like on class-incremental streams.
    """

    net: TaskNet
    fisher: dict[str, Tensor]
    anchor: dict[str, Tensor] | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        search: Mapping[str, Any] = SEARCH,
        strength: float = 100.0,
        decay: float = 0.9,
        cap: float = 0.1,
        examples: int = 500,
    ) -> None:
        super().__init__(make_net, budget, search=search)
        check.at_least(0, "ewc_online", strength=strength, cap=cap)
        check.at_least(1, "ewc_online", examples=examples)
        check.between(0, 1, "ewc_online", decay=decay)
        self.strength, self.decay, self.cap, self.examples = strength, decay, cap, examples
        zeros = {name: torch.zeros_like(weight) for name, weight in self._weights().items()}
        self.keep("fisher", zeros, kind="statistics")
        self.keep("anchor", None, kind="temporary")  # equals the weights at the boundary, so it is not carried

    def prepare(self, experience: Experience) -> None:
        if experience.index and self.strength:
            self.anchor = snapshot(self._weights())

    def loss_with(self, settings: Settings, batch: Batch) -> dict[str, Tensor]:
        terms = {"task": self.loss_of(self.task, batch, settings)}
        if self.anchor is not None:
            terms["penalty"] = self.strength / 2 * quadratic_penalty(self._weights(), self.anchor, self.fisher)
        return terms

    def after_experience(self, experience: Experience) -> None:
        new = self._fisher_of(experience)
        for name, old in self.fisher.items():
            self.fisher[name] = (self.decay * old + new[name]).clamp_(max=self.cap)

    def _fisher_of(self, experience: Experience) -> dict[str, Tensor]:
        """Mean over samples of the squared gradient of each one's loss."""
        self.net.eval()
        order = torch.randperm(len(experience.train), generator=self.generator("fisher"))[: self.examples]

        def loss(batch: Batch) -> Tensor:
            return task_loss(self.net(batch.images, self.task.name).logits, batch, self.task, smoothing=0.0)

        images = experience.train[order].batches(1, self.device)
        total, _ = sum_of_gradients(self._weights(), images, loss, torch.square)
        return {name: value / len(order) for name, value in total.items()}

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.net.backbone.named_parameters() if weight.requires_grad}
