"""DS-AL: analytic learning with a second stream that fits what the first leaves over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.memory import Budget, State, tensor_bytes
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.analytic import ROWS, RandomAnalytic
from cil.strategies.parts.frozen_backbone import for_predict, to_float64
from cil.strategies.parts.ridge import RecursiveRidge, RidgeSums
from cil.strategies.registry import register
from cil.streams import Signature


@register("ds_al")
class DSAL(RandomAnalytic):
    """z = relu(W_r phi) W + ratio * tanh(W_r phi) W_c; W_c fits the residuals of W, of the classes present alone.

    The main stream learns the whole experience first, then the other its residuals: the order of images does not
    matter, that of experiences does. What spends bytes is ``size``.

    Args:
        size: E, length of the hidden features.
        ridge: gamma of the main stream; > 0.
        compensation_ridge: gamma of the other; > 0.
        ratio: C, weight of the compensation in answers; in [0, 2]. 0 is acil.
        carries, statistics: See ``ACIL``.
        train_first, first_head: See ``FrozenBackbone``.

    Source:
        Zhuang, He, Tong, Zeng, Chen, Lin. "DS-AL: a dual-stream analytic learning for exemplar-free class-incremental
        learning", AAAI 2024, arXiv:2403.17503, equations 8 to 21. Departure from its code: residuals are those of a
        main stream that has learned the whole experience, not of one that is half updated in mini-batches.
    """

    toy = {"size": 32}

    compensation: RidgeSums | RecursiveRidge
    second_head: Tensor  # (E, C), W_c

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        size: int = 8192,
        ridge: float = 0.1,
        compensation_ridge: float = 0.1,
        ratio: float = 0.6,
        carries: str = "sums",
        statistics: str = "float64",
        train_first: bool | str = "auto",
        first_head: str = "linear",
    ) -> None:
        super().__init__(make_net, budget, size, ridge, carries, statistics, train_first, first_head)
        check.above(0, "ds_al", compensation_ridge=compensation_ridge)
        check.between(0, 2, "ds_al", ratio=ratio)
        self.ratio, self.ridge = ratio, compensation_ridge
        self.keep("compensation", self.make_ridge(size), kind="statistics")
        self.keep("second_head", None, kind="temporary")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.compensation.grow(len(signature.new_slots))

    def side_bytes(self) -> int:
        """Two streams, both by ``size``."""
        return super().side_bytes() + sum(map(tensor_bytes, self.compensation.state_dict().values()))

    def learn(self, features: Tensor, slots: Tensor) -> None:
        super().learn(features, slots)
        weights = self.main.weights().to(features)
        truth = F.one_hot(slots.to(features.device), self.num_classes).to(features)  # Y, (N, C)
        present = truth.any(0)
        pairs = zip(features.split(ROWS), truth.split(ROWS), strict=True)
        self.compensation.add(  # equations 14 and 15: residuals, columns of old classes cleansed
            (self.projected(rows).tanh(), (own - self.hidden(rows) @ weights) * present) for rows, own in pairs
        )

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.second_head = for_predict(self.compensation.weights(), self)

    def predict(self, images: Tensor) -> Tensor:
        """Both streams; minus infinity for a class without data: (N, ...) to (N, C)."""
        features = to_float64(self.net(images).features)
        main = self.hidden(features).to(self.head) @ self.head
        scores = main + self.ratio * self.projected(features).tanh().to(self.head) @ self.second_head  # equation 21
        return scores.masked_fill((self.head == 0).all(0), -torch.inf)
