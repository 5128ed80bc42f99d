"""SI: synaptic intelligence, a pull back of each weight by its share in lowering the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import Strategy, check
from cil.strategies.parts import new_class_cross_entropy
from cil.strategies.parts.heads import hold_rows, rows_without_data
from cil.strategies.parts.importance import learning_parameters, padded_to, quadratic_penalty, snapshot
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("si")
class SI(Strategy):
    """Cross-entropy over the new outputs plus c sum_j Omega_j (theta_j - theta*_j)^2, Omega a path integral.

    Args:
        strength: c; 0 gives Finetune.
        damping: xi, keeps the importance of a weight that hardly moved bounded; > 0.
        heads: Whether the head is pulled back too. If not, rows of old classes stay as they are: no data move them, and
            FACIL keeps them from the optimizer, which would let them decay.
        clamp: Whether Omega is kept from going below 0. A path integral of noisy gradients may be negative, and the
            weight is then pushed away from its old value.

    The penalty acts through its gradient in closed form, added after backward: before that, the path integral reads
    the gradient of the task loss alone, whatever is accumulated, scaled or clipped. The term in the log has no graph.

    Source:
        Zenke, Poole, Ganguli. ICML 2017, arXiv:1703.04200, equations 3 to 5. c, xi and the backbone alone as in FACIL
        (Masana et al. 2022).
    """

    importance: dict[str, Tensor]
    anchor: dict[str, Tensor]
    path: dict[str, Tensor]
    gradients: dict[str, Tensor]
    before: dict[str, Tensor]
    rows: dict[str, Tensor]

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        strength: float = 0.1,
        damping: float = 0.1,
        heads: bool = False,
        clamp: bool = False,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "si", strength=strength)
        check.above(0, "si", damping=damping)
        self.strength, self.damping, self.heads, self.clamp = strength, damping, heads, clamp
        self.keep("importance", {}, kind="statistics")  # Omega
        self.keep("anchor", None, kind="temporary")  # theta*: the weights at the boundary, so it is not carried
        self.keep("path", None, kind="temporary")  # omega, of this experience
        self.keep("gradients", None, kind="gradients")  # of the task loss alone, in the step that is taken
        self.keep("before", None, kind="temporary")  # the weights before it
        self.keep("rows", {}, kind="temporary")  # of old classes, which stay

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.importance = padded_to(self.importance, self._weights())

    def prepare(self, experience: Experience) -> None:
        self.anchor = snapshot(self._weights())
        self.path = {name: torch.zeros_like(value) for name, value in self.anchor.items()}
        self.rows = {} if self.heads else rows_without_data(self, self.net)

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        terms = {"new": new_class_cross_entropy(self.net(batch.images).logits, batch.slots, self.first_slot)}
        if self._pulls():  # equation 4
            with torch.no_grad():
                terms["penalty"] = self.strength * quadratic_penalty(self._weights(), self.anchor, self.importance)
        return terms

    def adjust_gradients(self, batch: Batch) -> None:
        weights = self._weights()
        self.before = snapshot(weights)
        self.gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in weights.items()}
        if self._pulls():
            for name, weight in weights.items():
                pull = 2 * self.strength * self.importance[name] * (weight.detach() - self.anchor[name])
                weight.grad = pull if weight.grad is None else weight.grad + pull
        hold_rows(self.net, self.rows)

    def after_step(self, batch: Batch) -> None:
        for name, weight in self._weights().items():  # equation 3
            moved = weight.detach() - self.before[name]
            # an overflow of the loss scale skips the step: nothing moved, and the gradient is not a number
            self.path[name] -= torch.where(moved != 0, self.gradients[name] * moved, 0)
        hold_rows(self.net, self.rows)

    def after_experience(self, experience: Experience) -> None:
        for name, weight in self._weights().items():  # equation 5
            moved = weight.detach() - self.anchor[name]
            self.importance[name] += self.path[name] / (moved.square() + self.damping)
            if self.clamp:
                self.importance[name].clamp_(min=0)

    def _pulls(self) -> bool:
        return self.old_classes > 0 and self.strength > 0

    def _weights(self) -> dict[str, nn.Parameter]:
        return learning_parameters(self.net, self.heads)
