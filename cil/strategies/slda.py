"""SLDA: streaming linear discriminant analysis on a frozen backbone; class means and one shared covariance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.memory import Budget, State
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, class_sums, float64_features, for_predict, to_float64
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("slda")
class SLDA(FrozenBackbone):
    """z_c = mu_c' L phi - mu_c' L mu_c / 2, with L = [(1 - eps) Sigma + eps I]^-1.

    Args:
        covariance: ``exact``: the pooled within-class covariance, whatever the order of the images. ``reference``: the
            recursion of the authors' code, image by image in a keyed order; it weighs an image by how many came before
            it of all classes, not of its own, so it depends on the order.
        shrinkage: eps, in [0, 1].
        base: Covariance of the first experience: ``plain``, or ``oas``: shrunk as Chen et al. 2010 do.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Hayes, Kanan. "Lifelong machine learning with deep streaming linear discriminant analysis", CVPR workshops 2020,
        arXiv:1909.01520. Departure: ``covariance: exact`` is the default.
    """

    answers_by = "discriminant"
    means: Tensor  # (C, D)
    counts: Tensor  # (C,) int32
    scatter: Tensor  # (D, D), n Sigma
    rows: Tensor  # (C, D), L mu
    bias: Tensor  # (C,)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        covariance: str = "exact",
        shrinkage: float = 1e-4,
        base: str = "plain",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget, train_first, first_head)
        check.one_of(("exact", "reference"), "slda", covariance=covariance)
        check.one_of(("plain", "oas"), "slda", base=base)
        check.between(0, 1, "slda", shrinkage=shrinkage)
        self.covariance, self.shrinkage, self.base = covariance, shrinkage, base
        blank, d = self.net.head.weight, self.net.feature_dim
        self.keep("means", blank.new_zeros(0, d), kind="prototypes")
        self.keep("counts", blank.new_zeros(0, dtype=torch.int32), kind="statistics")
        self.keep("scatter", blank.new_zeros(d, d), kind="statistics")
        self.keep("rows", None, kind="temporary")  # of the classifier: it follows from the statistics
        self.keep("bias", None, kind="temporary")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        new = len(signature.new_slots)
        self.means, self.counts = F.pad(self.means, (0, 0, 0, new)), F.pad(self.counts, (0, new))

    def after_experience(self, experience: Experience) -> None:
        features, slots = float64_features(self, experience.train), experience.train.slots
        means, counts, scatter = to_float64(self.means), to_float64(self.counts), to_float64(self.scatter)
        if self.base == "oas" and not bool(counts.any()):
            means, counts, scatter = _oas(features, slots, self.num_classes)
        elif self.covariance == "exact":
            means, counts, scatter = _pooled(features, slots, means, counts, scatter)
        else:
            order = torch.randperm(len(slots), generator=self.generator("order"))
            means, counts, scatter = _recursion(features[order], slots[order], means, counts, scatter)
        self.means, self.counts = means.to(self.means), counts.to(self.counts)
        self.scatter = scatter.to(self.scatter)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        means, scatter = to_float64(self.means), to_float64(self.scatter)
        sigma = scatter / max(1, int(self.counts.sum()))
        # Lambda = ((1 - eps) Sigma + eps I)^-1
        shrunk = (1 - self.shrinkage) * sigma + self.shrinkage * torch.eye(len(sigma)).to(sigma)
        if self.shrinkage:
            rows = torch.linalg.solve(shrunk, means.T).T
        else:  # it may have no inverse
            rows = means @ torch.linalg.pinv(shrunk, hermitian=True)
        self.rows = for_predict(rows, self)  # Lambda mu
        self.bias = for_predict(-(means * rows).sum(1) / 2, self)  # -mu Lambda mu / 2

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen; one without data by minus infinity: (N, ...) to (N, C)."""
        scores: Tensor = self.net(images).features.to(self.rows) @ self.rows.T + self.bias
        return scores.masked_fill(self.counts == 0, -torch.inf)


def _pooled(features: Tensor, slots: Tensor, means: Tensor, counts: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
    """Means, counts and within-class scatter with these features, as one image after the other would give them.

    S <- S + (c / (c + 1)) d d', with d = phi - mu_y and c images of class y before; here all at once, by class.
    """
    sums, here = class_sums(features, slots, len(means))
    own = sums / here.clamp(min=1)[:, None]
    inner = features - own[slots.to(own.device)]
    apart = (own - means) * (counts * here / (counts + here).clamp(min=1)).sqrt()[:, None]
    share = (here / (counts + here).clamp(min=1))[:, None]
    return torch.lerp(means, own, share), counts + here, scatter + inner.T @ inner + apart.T @ apart


def _recursion(features: Tensor, slots: Tensor, means: Tensor, counts: Tensor, scatter: Tensor) -> tuple[Tensor, ...]:
    """Sigma <- (n Sigma + (n / (n + 1)) d d') / (n + 1), then mu_y <- mu_y + d / (c + 1): with S = n Sigma."""
    means, counts, scatter = means.clone(), counts.clone(), scatter.clone()
    seen = float(counts.sum())
    for phi, slot in zip(features, slots.tolist(), strict=True):
        d = phi - means[slot]
        scatter.addr_(d, d, alpha=seen / (seen + 1))
        means[slot] += d / (counts[slot] + 1)
        counts[slot] += 1
        seen += 1
    return means, counts, scatter


def _oas(features: Tensor, slots: Tensor, classes: int) -> tuple[Tensor, ...]:
    """Means, counts and n times the oracle approximating shrinkage of the pooled covariance."""
    from sklearn.covariance import OAS

    sums, counts = class_sums(features, slots, classes)
    means = sums / counts.clamp(min=1)[:, None]
    inner = (features - means[slots.to(means.device)]).cpu().numpy()
    sigma = torch.from_numpy(OAS(assume_centered=True).fit(inner).covariance_).to(means)
    return means, counts, len(inner) * sigma
