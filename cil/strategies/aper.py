"""APER: the first experience adapts a copy of the features; then features of both, and answers by the nearest mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.memory import Budget
from cil.models import NetFactory, freeze
from cil.models.tuners import ALL_TUNERS, Tuner, make_tuner
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, class_sums, cosine_scores, float64_features
from cil.strategies.parts.frozen_heads import FeaturesAndHead
from cil.strategies.parts.frozen_transformer import TOY_TRANSFORMER
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("aper")
class APER(FrozenBackbone):
    """Phi = [phi; phi_tuned], the features of a frozen backbone and of the one that the first experience tuned.

    Prototypes are means of Phi; the classifier is their cosine. Later experiences train nothing. Two passes an image.

    Args:
        tuner: What the first experience trains: ``adapter``, ``scale_shift`` (SSF), ``shallow_prompts`` or
            ``deep_prompts`` (VPT) beside a frozen vision transformer, or ``finetune``: a copy of any backbone.
        rank: r of the adapters; ``budget.fit=true`` sets it.
        prompts: Learned tokens; ``budget.fit=true`` sets them. Scales and shifts and a copy are of one size.
        first_head: Of the first experience: ``cosine`` or ``linear``; dropped after it.

    Source:
        Zhou, Cai, Ye, Zhan, Liu. "Revisiting class-incremental learning with pre-trained models: generalizability and
        adaptivity are all you need", IJCV 2024, arXiv:2303.07338 (at first ADAM). Departure: sums of
        features are carried in place of their means, as in ``simplecil``.
    """

    answers_by = "prototypes"
    toy = {"rank": 4}
    toy_model = TOY_TRANSFORMER
    tuner: Tuner
    sums: Tensor  # (C, 2 D)

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        tuner: str = "adapter",
        rank: int = 64,
        prompts: int = 5,
        first_head: str = "cosine",
    ) -> None:
        super().__init__(make_net, budget, False, first_head)
        check.one_of(ALL_TUNERS, "aper", tuner=tuner)
        check.at_least(1, "aper", rank=rank, prompts=prompts)
        self.keep("tuner", make_tuner(tuner, self.net.backbone, rank, "aper", prompts), kind="parameters")
        self.trained = True  # the tuner
        blank = self.net.head.weight
        self.keep("sums", blank.new_zeros(0, 2 * self.net.feature_dim), kind="prototypes")

    @classmethod
    def fitted_key(cls, hyperparameters: Mapping[str, Any]) -> str | None:
        """What the chosen tuner is sized by; None for ``scale_shift`` and ``finetune``, which have one size."""
        tuner = hyperparameters.get("tuner", inspect.signature(cls).parameters["tuner"].default)
        return {"adapter": "rank", "shallow_prompts": "prompts", "deep_prompts": "prompts"}.get(tuner)

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        if signature.index:
            freeze(self.tuner)
        self.sums = F.pad(self.sums, (0, 0, 0, len(signature.new_slots)))

    def backbone_features(self, images: Tensor) -> Tensor:
        """(N, D) of the tuned network: what the first experience trains."""
        return self.tuner.features(self.net.backbone, self.net.normalise(images))

    def after_experience(self, experience: Experience) -> None:
        view = FeaturesAndHead(self.backbone_features, self.net.head, [self.net, self.tuner])
        halves = [float64_features(self, experience.train, net) for net in (self.net, view)]
        features = torch.cat(halves, dim=1)
        sums, _ = class_sums(features, experience.train.slots, self.num_classes)
        self.sums = self.sums + sums.to(self.sums)

    def predict(self, images: Tensor) -> Tensor:
        """Cosine of Phi to each prototype; minus infinity for a class without images: (N, ...) to (N, C)."""
        both = torch.cat([self.net(images).features, self.backbone_features(images)], dim=1)
        return cosine_scores(both, self.sums)
