"""GEM: gradient episodic memory, no step that raises the loss on an old task's exemplars, to first order."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import not_at_first, plain_at_first
from cil.data import Batch, Samples
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory, evaluating
from cil.strategies.base import Strategy, check
from cil.strategies.parts import draw_batch, new_class_cross_entropy, store_exemplars
from cil.strategies.parts.frozen_backbone import to_float64
from cil.strategies.registry import register
from cil.streams import Experience, Signature

AT_ONCE = 500  # exemplars in one forward pass, where they need not be together
COLUMNS = 2**18  # of the gradient matrix that are turned to float64 at once


@register("gem")
class GEM(Strategy):
    """Cross-entropy over the new outputs; its gradient is projected so that no old task's loss rises.

    A task is an experience: its classes are those that arrived in it, its loss is the cross-entropy over their outputs
    alone, on their exemplars, augmented anew at every step.

    Args:
        margin: Added to the dual variables after a violation, which favours old tasks; 0 or more.
        constraint_batch: Exemplars of a task whose gradient is taken at a step, drawn at random; null: all of them, as
            in the paper. The cost of a step grows with it: with all 2,000 it is that of sixteen batches of 128.
        statistics: Statistics that normalise exemplars in batch-norm layers: those of the ``batch``, all exemplars of a
            task in one pass, as in the paper's code, so that running statistics see exemplars too, before the new
            images; or the ``running`` ones, which then stay those of new data.
        selection, codec: See ``ExemplarMemory``.

    Source:
        Lopez-Paz and Ranzato, NIPS 2017, arXiv:1706.08840, Algorithm 1 and equation 11. Margin 0, herded exemplars and
        a fixed total as in the survey's code, which augments exemplars once an experience. The authors'
        code bounds the dual variables by the margin, and does not add it.
    """

    same_draws = True  # of exemplars: constraints are of no rows of the batch
    memory: ExemplarMemory
    constraints: Tensor | None  # (tasks, weights)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        margin: float = 0.0,
        constraint_batch: int | None = None,
        statistics: str = "batch",
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(0, "gem", margin=margin)
        check.at_least(1, "gem", constraint_batch=constraint_batch)
        check.one_of(("batch", "running"), "gem", statistics=statistics)
        self.margin, self.constraint_batch, self.statistics = margin, constraint_batch, statistics
        self.bounds = [0]  # where the slots of a task end; follows from the structure, so it is not carried
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("constraints", None, kind="gradients")
        self.constrained = False  # whether the constraints are those of the step that is taken

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        if signature.new_slots:
            self.bounds.append(self.num_classes)

    def training_set(self, experience: Experience) -> Samples:
        return experience.train  # exemplars constrain, and are never mixed in

    @plain_at_first()
    def loss(self, batch: Batch) -> Tensor:
        if not self.constrained:  # old tasks first: their gradients are of the network before it sees the batch
            tasks = [task for task in pairwise(self.bounds) if task[1] <= self.old_classes]
            with self.context.flops.counting():
                rows = [row for row in (self._gradient_of(*task) for task in tasks) if row is not None]
            self.constraints, self.constrained = torch.stack(rows) if rows else None, True  # (tasks, weights)
        return new_class_cross_entropy(self.net(batch.images).logits, batch.slots, self.first_slot)

    @not_at_first
    def adjust_gradients(self, batch: Batch) -> None:
        self.constrained = False
        if self.constraints is None:
            return
        weights = self.trainable()
        gradient = _flat([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
        with self.context.flops.counting():  # of a step that breaks a constraint
            projected = project(gradient, self.constraints, self.margin)
        if projected is not None:
            for weight, part in zip(weights, projected.split([w.numel() for w in weights]), strict=True):
                weight.grad = torch.empty_like(weight).copy_(part.view(weight.shape))

    def after_experience(self, experience: Experience) -> None:
        store_exemplars(self, experience)

    def _gradient_of(self, start: int, stop: int) -> Tensor | None:
        """Gradient of the loss on the exemplars of the task with the slots from ``start`` up to ``stop``."""
        exemplars = self.memory.samples()
        own = exemplars[((exemplars.slots >= start) & (exemplars.slots < stop)).nonzero().flatten()]
        batch = draw_batch(self, own, self.constraint_batch or len(own), f"constraint:{start}")
        if batch is None:
            return None
        running = self.statistics == "running"
        parts = -(-len(batch) // AT_ONCE) if running else 1  # batch statistics are those of all exemplars
        total = torch.zeros((), device=self.device)
        for rows in torch.arange(len(batch), device=self.device).tensor_split(parts):
            with evaluating(self.net) if running else nullcontext():
                logits = self.net(batch.images[rows]).logits[:, start:stop]
                loss = F.cross_entropy(logits, batch.slots[rows] - start, reduction="sum") / len(batch)
                total = total + _flat(self.gradient(loss))
        return total


def project(gradient: Tensor, constraints: Tensor, margin: float = 0.0) -> Tensor | None:
    """The vector nearest to a gradient whose product with each constraint is not negative.

    min_{v >= 0} v' G G' v / 2 + (G g)' v, then g~ = G' v + g, in float64.

    Args:
        gradient: (P,), g.
        constraints: (t, P), G.
        margin: Added to v.

    Returns:
        g~ (P,); None where no product is negative, or one is not a number.

    Source: Lopez-Paz and Ranzato 2017, equation 11.

    >>> project(torch.tensor([-1.0, 1.0]), torch.eye(2)).tolist()
    [0.0, 1.0]
    """
    gram = to_float64(gradient.new_zeros(len(constraints), len(constraints)))
    products = gram.new_zeros(len(constraints))
    for rows, own in zip(constraints.split(COLUMNS, dim=1), gradient.split(COLUMNS), strict=True):
        wide = to_float64(rows)
        gram += wide @ wide.T
        products += wide @ to_float64(own)
    gram, products = gram.cpu(), products.cpu()
    if not bool((products < 0).any() & products.isfinite().all() & gram.isfinite().all()):
        return None
    weights = nearest_in_cone(gram, products) + margin
    return gradient + weights.to(constraints) @ constraints


def nearest_in_cone(gram: Tensor, products: Tensor) -> Tensor:
    """argmin_{v >= 0} v' K v / 2 + p' v, as non-negative least squares.

    Args:
        gram: (t, t) float64, K = G G', which may be singular.
        products: (t,) float64, p = G g.
    """
    from scipy.optimize import nnls

    norms = gram.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1.0)  # every constraint counts, however small its gradient
    values, vectors = torch.linalg.eigh(gram / norms / norms[:, None])
    held = values > values.max() * len(values) * 1e-14
    root, axes = values[held].sqrt(), vectors[:, held].T
    # with A'A = K and A'b = -p, |A v - b|^2 / 2 is the objective and a constant
    solution, _ = nnls((root[:, None] * axes).numpy(), (-(axes @ (products / norms)) / root).numpy(), 100 * len(gram))
    return torch.from_numpy(solution) / norms


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
