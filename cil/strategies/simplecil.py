"""SimpleCIL: a frozen backbone, and answers by the nearest class mean; later experiences train nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, class_sums, cosine_scores, float64_features, to_float64
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("simplecil")
class SimpleCIL(FrozenBackbone):
    """Prototypes are means of raw features; the classifier is their cosine to the feature of an image.

    Args:
        metric: ``cosine``: SimpleCIL. ``euclidean``: the nearest class mean (NCM), for which counts are carried too.
        unit: Whether features are scaled to unit length before they enter means.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Zhou, Cai, Ye, Zhan, Liu. "Revisiting class-incremental learning with pre-trained models", IJCV 2024,
        arXiv:2303.07338. Departure: sums of features are carried in place of their means. Their direction
        is the same, and a class that comes back adds to its sum without a count.
    """

    answers_by = "prototypes"
    sums: Tensor  # (C, D)
    counts: Tensor | None  # (C,)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        metric: str = "cosine",
        unit: bool = False,
        train_first: bool | str = "auto",
        first_head: str = "cosine",
    ) -> None:
        super().__init__(make_net, budget, train_first, first_head)
        check.one_of(("cosine", "euclidean"), "simplecil", metric=metric)
        self.unit = unit
        blank = self.net.head.weight
        self.keep("sums", blank.new_zeros(0, self.net.feature_dim), kind="prototypes")
        counts = None if metric == "cosine" else blank.new_zeros(0, dtype=torch.int32)
        self.keep("counts", counts, kind="temporary" if counts is None else "statistics")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        new = len(signature.new_slots)
        self.sums = F.pad(self.sums, (0, 0, 0, new))
        if self.counts is not None:
            self.counts = F.pad(self.counts, (0, new))

    def after_experience(self, experience: Experience) -> None:
        features = self._scaled(float64_features(self, experience.train))
        sums, counts = class_sums(features, experience.train.slots, self.num_classes)
        self.sums = self.sums + sums.to(self.sums)
        if self.counts is not None:
            self.counts = self.counts + counts.to(self.counts)

    def predict(self, images: Tensor) -> Tensor:
        """Score each class seen by its cosine, or minus its squared distance; one without data by minus infinity."""
        raw = self.net(images).features  # (N, D)
        if self.counts is None:
            return cosine_scores(raw, self.sums)
        features, sums = self._scaled(to_float64(raw)), to_float64(self.sums)  # (N, D), (C, D)
        counts = self.counts.to(sums)
        scores = -torch.cdist(features, sums / counts.clamp(min=1)[:, None]).square()
        return scores.masked_fill(counts == 0, -torch.inf).to(images.device, torch.float32)

    def _scaled(self, features: Tensor) -> Tensor:
        return F.normalize(features) if self.unit else features
