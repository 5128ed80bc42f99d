"""Analytic learning: a frozen backbone, fixed hidden features on it, and a ridge classifier on those."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.memory import Budget, State, tensor_bytes
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.frozen_backbone import FrozenBackbone, float64_features, for_predict, to_float64
from cil.strategies.parts.ridge import RIDGES, TYPES, RecursiveRidge, RidgeSums
from cil.strategies.parts.setup_warnings import method_name
from cil.streams import Experience, Signature

ROWS = 1000  # images whose hidden features exist at once


class Analytic(FrozenBackbone):
    """Hidden features h of E numbers, and W from all images as if they had come at once.

    Arguments: see ``cil.strategies.acil``.
    """

    main: RidgeSums | RecursiveRidge
    head: Tensor  # (E, C), W

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        size: int,
        ridge: float,
        carries: str,
        statistics: str,
        train_first: bool | str,
        first_head: str,
    ) -> None:
        super().__init__(make_net, budget, train_first, first_head)
        name = method_name(self)
        check.at_least(1, name, size=size)
        check.above(0, name, ridge=ridge)
        check.one_of(tuple(RIDGES), name, carries=carries)
        check.one_of(tuple(TYPES), name, statistics=statistics)
        self.size, self.ridge, self.carries, self.statistics = size, ridge, carries, statistics
        self.keep("main", self.make_ridge(size), kind="statistics")
        self.keep("head", None, kind="temporary")  # it follows from the statistics
        self.keep_fixed()

    def keep_fixed(self) -> None:
        """Keep what hidden features are made with. Default: nothing."""

    def hidden(self, features: Tensor) -> Tensor:
        """h: (N, D) float64 to (N, E)."""
        raise NotImplementedError

    def make_ridge(self, size: int) -> RidgeSums | RecursiveRidge:
        """A ridge regression on ``size`` hidden features, without images so far."""
        with self.net.head.weight.device:  # made there: on meta a size that no memory holds can be billed
            return RIDGES[self.carries](size, self.ridge, TYPES[self.statistics])

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.main.grow(len(signature.new_slots))

    def side_bytes(self) -> int:
        """Statistics go by ``size``."""
        return sum(map(tensor_bytes, self.main.state_dict().values()))

    def after_experience(self, experience: Experience) -> None:
        self.learn(float64_features(self, experience.train), experience.train.slots)

    def learn(self, features: Tensor, slots: Tensor) -> None:
        """Add the images of an experience: (N, D) float64 and (N,)."""
        truth = F.one_hot(slots.to(features.device), self.num_classes).to(features)  # Y, (N, C)
        pairs = zip(features.split(ROWS), truth.split(ROWS), strict=True)
        self.main.add((self.hidden(rows), own) for rows, own in pairs)

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.head = for_predict(self.main.weights(), self)

    def predict(self, images: Tensor) -> Tensor:
        """h W; minus infinity for a class without data: (N, ...) to (N, C)."""
        h = self.hidden(to_float64(self.net(images).features)).to(self.head)
        return (h @ self.head).masked_fill((self.head == 0).all(0), -torch.inf)


class RandomAnalytic(Analytic):
    """Hidden features are a function of W_r phi; W_r is drawn from a seed of eight bytes, which is carried."""

    fits = "size"

    seed: Tensor  # (), int64
    layer: Tensor  # (D, E), W_r'

    def keep_fixed(self) -> None:
        self.keep("seed", self.net.head.weight.new_zeros((), dtype=torch.int64), kind="statistics")
        self.keep("layer", None, kind="temporary")

    def prepare(self, experience: Experience) -> None:
        if experience.index == 0:
            self.seed = torch.randint(2**62, (), generator=self.generator("projection")).to(self.seed)
            self._draw_layer()

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self._draw_layer()

    def hidden(self, features: Tensor) -> Tensor:
        """relu(W_r phi): equation 5 of ACIL, and the main stream of DS-AL."""
        return self.projected(features).relu()

    def projected(self, features: Tensor) -> Tensor:
        """W_r phi: (N, D) to (N, E)."""
        return features @ self.layer.to(features)

    def _draw_layer(self) -> None:
        """W_r as a linear layer starts: U(-1 / sqrt(D), 1 / sqrt(D))."""
        width = self.net.feature_dim
        generator = torch.Generator().manual_seed(int(self.seed))
        drawn = torch.rand(width, self.size, generator=generator) * 2 - 1
        self.layer = (drawn / width**0.5).to(self.device)
