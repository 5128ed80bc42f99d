"""RAPF: a linear map on frozen CLIP features; samples of old classes keep near pairs apart, and weights are fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget, Prototypes, tensor_bytes
from cil.models import GrowingNet, NetFactory, extract
from cil.models.base import full_precision, in_full_precision
from cil.strategies.base import Strategy, check
from cil.strategies.parts.class_texts import ClassTexts, class_weight, reader
from cil.strategies.parts.frozen_backbone import features_only, trains_first
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("rapf")
class RAPF(Strategy):
    """z_c = exp(tau) cos(A phi, w_c), w_c the text of class c, A trained, phi a frozen CLIP's feature of the image.

    Cross-entropy over all classes seen, on images and on Gaussian samples of old classes; a hinge on samples of an old
    class whose text is near that of a new one. After an experience A becomes a mixture of the old and the new one.
    Statistics are of phi, so they never drift. What spends bytes is ``covariance``, of ``low_rank`` its ``rank``.

    Args:
        templates, texts: See ``ClassTexts``.
        start: Of A: ``random``, as published, which loses what CLIP knows; or ``identity``.
        samples: Samples of an old class in a step; ``classes``: old classes drawn in a step.
        margin: Of the hinge; ``near``: distance of texts below which an old and a new class are a pair;
            ``pair_samples``: samples of the old class of each pair in a step.
        fusion: Least share of the new weights in the mixture, in [0, 1].
        covariance: Of each class: ``full``, ``low_rank``, ``diagonal``; ``tied``: one for all.
        rank: r of ``low_rank``.
        jitter: Added to variances in sampling.

    Source:
        Huang, Cao, Lu, Liu. "Class-incremental learning with CLIP: adaptive representation adjustment and parameter
        fusion", ECCV 2024, arXiv:2407.14143, sections 3.2 and 3.3. Departures: the hinge is the mean over all samples
        of all pairs; covariances are divided by N, in code by N - 1.
    """

    answers_by = "texts"
    toy_model = {"name": "toy_clip"}

    net: GrowingNet
    map: nn.Linear
    weights: Tensor  # (C, D), w
    gaussians: Prototypes
    roots: Tensor | None  # (C, D, D), of old classes
    old_map: Tensor | None  # (D, D)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        templates: Sequence[str] = ("a good photo of a {}.",),
        texts: str | None = None,
        start: str = "random",
        samples: int = 20,
        classes: int = 2,
        margin: float = 0.1,
        near: float = 0.55,
        pair_samples: int = 40,
        fusion: float = 0.6,
        covariance: str = "full",
        rank: int = 10,
        jitter: float = 1e-4,
    ) -> None:
        super().__init__(make_net, budget)
        check.one_of(("random", "identity"), "rapf", start=start)
        check.one_of(("full", "low_rank", "diagonal", "tied"), "rapf", covariance=covariance)
        check.at_least(1, "rapf", samples=samples, classes=classes, pair_samples=pair_samples)
        check.at_least(0, "rapf", margin=margin, near=near, jitter=jitter)
        check.between(0, 1, "rapf", fusion=fusion)
        self.texts = ClassTexts("rapf", templates, texts)
        self.factor = reader(self.net.backbone, "rapf").logit_factor()
        self.samples, self.classes, self.jitter = samples, classes, jitter
        self.margin, self.near, self.pair_samples, self.fusion = margin, near, pair_samples, fusion
        trains_first(self, False)
        blank, d = self.net.head.weight, self.net.feature_dim
        linear = nn.Linear(d, d, bias=False).to(blank)
        if start == "identity":
            nn.init.eye_(linear.weight)
        self.keep("map", linear, kind="parameters")
        self.keep("weights", blank.new_zeros(0, d), kind="prototypes")
        gaussians = Prototypes(d, covariance, rank if covariance == "low_rank" else 1)
        self.keep("gaussians", gaussians.to(blank.device), kind="statistics")
        self.keep("roots", None, kind="temporary")
        self.keep("old_map", None, kind="temporary")

    def build_net(self) -> GrowingNet:
        return features_only(self.make_net)

    def grow_net(self, signature: Signature) -> None:
        new = len(signature.new_slots)
        self.weights = F.pad(self.weights, (0, 0, 0, new))
        self.gaussians.grow(new)

    def side_bytes(self) -> int:
        """Statistics go by ``covariance`` and ``rank``."""
        return sum(map(tensor_bytes, self.gaussians.state_dict().values()))

    def prepare(self, experience: Experience) -> None:
        encoder = reader(self.net.backbone, "rapf")
        for slot, name in experience.class_names.items():
            self.weights[slot] = class_weight(encoder, self.texts.of(name)).to(self.weights)
        if self.old_classes:
            self.roots = torch.stack([self.gaussians.root(slot, self.jitter) for slot in range(self.old_classes)])
            self.old_map = self.map.weight.detach().clone()

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield Phase("main", experience.train, self.loss, parameters=list(self.map.parameters()))

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        features, slots = self.net(batch.images).features, batch.slots
        if self.roots is None:
            return F.cross_entropy(self.scores(features), slots)
        generator = self.generator(f"samples:{self.progress.epoch}:{self.progress.step}")
        known = self.gaussians.counts[: self.old_classes].nonzero().flatten().cpu()
        chosen = torch.randperm(len(known), generator=generator)[: self.classes]
        drawn = known[chosen].repeat_interleave(self.samples)
        features = torch.cat([features, self._draw(drawn, generator)])
        slots = torch.cat([slots, drawn.to(slots)])
        terms = {"classes": F.cross_entropy(self.scores(features), slots)}
        old, new = near_pairs(self.weights, self.old_classes, self.near)
        old, new = (each[self.gaussians.counts[old] > 0] for each in (old, new))
        if len(old):
            old, new = old.repeat_interleave(self.pair_samples), new.repeat_interleave(self.pair_samples)
            cosines = self.scores(self._draw(old.cpu(), generator)) / self.factor
            apart = cosines.gather(1, old[:, None]) - cosines.gather(1, new[:, None])
            terms["pairs"] = (self.margin - apart).clamp(min=0).mean()  # equation 6
        return terms

    def after_experience(self, experience: Experience) -> None:
        self.diagnostics.update(self.texts.diagnostics)
        self.gaussians.update(extract(self.net, experience.train), experience.train.slots)
        if self.old_map is not None:
            with torch.no_grad():
                self.map.weight.copy_(fused(self.old_map, self.map.weight, self.fusion))

    def scores(self, features: Tensor) -> Tensor:
        """Logits of raw features: (N, D) to (N, C)."""
        mapped = F.normalize(full_precision(self.map(features)))
        with in_full_precision(mapped):
            return self.factor * mapped @ self.weights.T

    def predict(self, images: Tensor) -> Tensor:
        return self.scores(self.net(images).features)

    def _draw(self, slots: Tensor, generator: torch.Generator) -> Tensor:
        """(N, D) samples of old classes (N,)."""
        assert self.roots is not None
        noise = torch.randn(len(slots), self.net.feature_dim, generator=generator).to(self.device)
        slots = slots.to(self.device)
        with in_full_precision(noise):
            for slot in slots.unique().tolist():
                noise[slots == slot] = noise[slots == slot] @ self.roots[slot]
        return self.gaussians.means[slots] + noise


def near_pairs(weights: Tensor, old: int, near: float) -> tuple[Tensor, Tensor]:
    """Old and new classes whose texts are closer than ``near``: (P,) slots of each.

    >>> near_pairs(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]), old=2, near=0.7)
    (tensor([0]), tensor([2]))
    """
    old_slots, new_slots = (torch.cdist(weights[:old], weights[old:]) < near).nonzero(as_tuple=True)
    return old_slots, new_slots + old


def fused(old: Tensor, new: Tensor, least: float) -> Tensor:
    """U (m P + (1 - m) R), P = U' new, R = U' old, old = U S V', m = min(1, |P - R| / max |P - R| + least).

    >>> torch.set_printoptions(precision=2)
    >>> fused(torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([[2.2, 0.5], [0.0, 2.0]]), 0.6)
    tensor([[2.16, 0.50],
            [0.00, 2.00]])
    >>> torch.set_printoptions(precision=4)
    """
    u = torch.linalg.svd(old).U
    p, r = u.T @ new, u.T @ old
    apart = (p - r).abs()
    mask = (apart / apart.max().clamp(min=1e-12) + least).clamp(max=1)
    found: Tensor = u @ (mask * p + (1 - mask) * r)
    return found
