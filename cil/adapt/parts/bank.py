"""A bank of test images, balanced over predicted classes, that prefers young and certain ones."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from cil.data.samples import to_float
from cil.memory import label_dtype

EMPTY = -1  # age of a free place


class BalancedBank(nn.Module):
    """At most N images with their predicted classes, entropies and ages; ``add`` decides which stay.

    Images are stored in whole grey levels, as data sets have them. Keep it with kind ``exemplars``; all is allocated at
    once.

    Args:
        capacity: N.
        num_classes: K; a class below N / K images may add one.
        image_shape: (C, H, W).
        age_weight, entropy_weight: lambda_t and lambda_u of the score.

    Source:
        Yuan, Xie, Li, "Robust test-time adaptation in dynamic scenarios", CVPR 2023, arXiv:2303.13899, section 3.3 and
        Algorithm 1 (category-balanced sampling with timeliness and uncertainty).
    """

    pixels: Tensor
    labels: Tensor
    ages: Tensor
    entropies: Tensor
    arrived: Tensor

    def __init__(
        self,
        capacity: int,
        num_classes: int,
        image_shape: tuple[int, int, int],
        age_weight: float = 1.0,
        entropy_weight: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.capacity, self.num_classes = capacity, num_classes
        self.age_weight, self.entropy_weight = age_weight, entropy_weight
        self.register_buffer("pixels", torch.zeros(capacity, *image_shape, dtype=torch.uint8, device=device))
        self.register_buffer("labels", torch.zeros(capacity, dtype=label_dtype(num_classes), device=device))
        self.register_buffer("ages", torch.full((capacity,), EMPTY, dtype=torch.int32, device=device))
        self.register_buffer("entropies", torch.zeros(capacity, device=device))
        self.register_buffer("arrived", torch.zeros((), dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return int((self.ages != EMPTY).sum())

    def held(self) -> tuple[Tensor, Tensor]:
        """Images (M, C, H, W) float in [0, 1] and their ages (M,), M <= N."""
        there = self.ages != EMPTY
        return to_float(self.pixels[there]), self.ages[there]

    def add(self, images: Tensor, labels: Tensor, entropies: Tensor) -> None:
        """Offer images one after the other; after each, all ages grow by one.

        A class below its quota takes a free place, or that of the worst image of the largest classes; a class at its
        quota that of its own worst. The place is given up only if its score is above that of the new image (see
        ``score``).

        Args:
            images: (n, C, H, W) float in [0, 1].
            labels: (n,) predicted classes.
            entropies: (n,) of the predictions, in nats.
        """
        places = list(zip(self.labels.tolist(), self.ages.tolist(), self.entropies.tolist(), strict=True))
        taken: dict[int, int] = {}
        for index, (label, entropy) in enumerate(zip(labels.tolist(), entropies.tolist(), strict=True)):
            place = self._place(places, label, self.score(0, entropy))
            if place is not None:
                places[place] = (label, 0, entropy)
                taken[place] = index
            places = [(held, age if age == EMPTY else age + 1, value) for held, age, value in places]
        if taken:
            levels = (images[list(taken.values())] * 255).round().clamp(0, 255)
            self.pixels[list(taken)] = levels.to(torch.uint8)
        for own, values in zip((self.labels, self.ages, self.entropies), zip(*places, strict=True), strict=True):
            own.copy_(torch.tensor(values, dtype=own.dtype))
        self.arrived += len(images)

    def score(self, age: int, entropy: float) -> float:
        """Equation 7: lambda_t / (1 + exp(-age / N)) + lambda_u H / ln K; the highest goes first."""
        timeliness = self.age_weight / (1 + math.exp(-age / self.capacity))
        return timeliness + self.entropy_weight * entropy / math.log(self.num_classes)

    def _place(self, places: list[tuple[int, int, float]], label: int, score: float) -> int | None:
        """Place of a new image; None where it is not stored."""
        counts = Counter(held for held, age, _ in places if age != EMPTY)
        if counts[label] < self.capacity / self.num_classes:
            if counts.total() < self.capacity:
                return next(place for place, (_, age, _) in enumerate(places) if age == EMPTY)
            most = max(counts.values())
            rivals = [place for place, (held, _, _) in enumerate(places) if counts[held] == most]
        else:
            rivals = [place for place, (held, age, _) in enumerate(places) if held == label and age != EMPTY]
        scores = {place: self.score(*places[place][1:]) for place in rivals}
        worst = max(scores, key=lambda place: scores[place])
        return worst if scores[worst] > score else None
