"""Prototypes: learn features from the first classes, then keep one mean a class and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cil import Batch, Budget, Experience, NetFactory, Phase, Strategy
from cil.memory import class_means, unit
from cil.streams import Signature


class Prototypes(Strategy):
    """Nearest class mean on features that stop learning after the first experience.

    Args:
        scale: Of the cosine scores; no answer depends on it.
    """

    prototypes: Tensor  # (C, D)

    def __init__(self, make_net: NetFactory, budget: Budget, *, scale: float = 10.0) -> None:
        super().__init__(make_net, budget)
        self.scale = scale
        self.keep("prototypes", torch.zeros(0, make_net.feature_dim), kind="prototypes")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        old = self.prototypes
        self.prototypes = torch.zeros(self.num_classes, old.shape[1], device=old.device)
        self.prototypes[: len(old)] = old

    def phases(self, experience: Experience) -> Iterator[Phase]:
        if experience.index == 0:
            yield Phase("features", experience.train, self.loss)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    @torch.no_grad()
    def after_experience(self, experience: Experience) -> None:
        parts = [(self.net(batch.images).features, batch.slots) for batch in experience.train.batches(500, self.device)]
        features, slots = (torch.cat(part) for part in zip(*parts, strict=True))
        means = class_means(features, slots, self.num_classes)
        for slot in experience.present:
            self.prototypes[slot] = means[slot]

    def predict(self, images: Tensor) -> Tensor:
        return self.scale * unit(self.net(images).features) @ self.prototypes.T
