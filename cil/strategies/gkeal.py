"""GKEAL: analytic learning on Gaussian kernels around features of the first experience."""

from __future__ import annotations

import torch
from torch import Tensor

from cil.memory import Budget, tensor_bytes
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.analytic import Analytic
from cil.strategies.parts.frozen_backbone import float64_features
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("gkeal")
class GKEAL(Analytic):
    """h_j = exp(-|phi - c_j|^2 / 2 width^2) around centres c_j; W = (sum h h' + gamma I)^-1 sum h y'.

    Centres are features of random images of the first experience: data, charged as ``features``. What spends bytes is
    ``size``.

    Args:
        size: E, centres; all images of the first experience where it has fewer.
        width: sigma of the kernel; > 0. Of the order of distances between features: far above them all kernels are 1.
        ridge: gamma > 0.
        carries, statistics: See ``ACIL``.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Zhuang, Weng, He, Lin, Zeng. "GKEAL: Gaussian kernel embedded analytic learning for few-shot class incremental
        task", CVPR 2023, equations 4 to 12. Departures: centres are drawn at random, where its code takes the first
        images of a loader; images are not mixed.
    """

    toy = {"size": 16}

    centres: Tensor  # (E, D) float32

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        size: int = 8192,
        width: float = 10.0,
        ridge: float = 0.1,
        carries: str = "sums",
        statistics: str = "float64",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget, size, ridge, carries, statistics, train_first, first_head)
        check.above(0, "gkeal", width=width)
        self.width = width

    def keep_fixed(self) -> None:
        self.keep("centres", self.net.head.weight.new_zeros(self.size, self.net.feature_dim), kind="features")

    def grow_net(self, signature: Signature) -> None:
        if signature.index == 0:
            size = min(self.size, max(1, sum(signature.counts.values())))
            self.main, self.centres = self.make_ridge(size), self.centres[:size].clone()
        super().grow_net(signature)

    def side_bytes(self) -> int:
        """Statistics and centres go by ``size``."""
        return super().side_bytes() + tensor_bytes(self.centres)

    def after_experience(self, experience: Experience) -> None:
        features = float64_features(self, experience.train)
        if experience.index == 0:
            order = torch.randperm(len(features), generator=self.generator("centres"))[: len(self.centres)]
            self.centres[: len(order)] = features[order.to(features.device)].to(self.centres)
        self.learn(features, experience.train.slots)

    def hidden(self, features: Tensor) -> Tensor:
        distances = torch.cdist(features, self.centres.to(features), compute_mode="donot_use_mm_for_euclid_dist")
        return (-distances.square() / (2 * self.width**2)).exp()  # equation 4
