"""Plans of arrival besides blurry ones: waves, repetition, and classes of unequal size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cil.errors import ConfigError, StreamError
from cil.streams.image_pool import Rows, generator
from cil.values import is_finite


@dataclass(frozen=True)
class Gaussian:
    """Each class comes as a wave: its images arrive at times normally distributed about the middle of its turn.

    Args:
        spread: Standard deviation as a share of the stream's length. 0: one class after the other; large: all mixed.
    """

    spread: float = 0.1

    def __post_init__(self) -> None:
        _check("spread", self.spread, 0, np.inf, "from 0 on")

    @property
    def name(self) -> str:
        return f"gaussian{self.spread:g}"

    def deal(self, slots: Rows, num_classes: int, experiences: int, seed: int) -> list[Rows]:
        draws = generator(seed, 3)
        mixed = draws.permutation(len(slots))
        times = (slots[mixed] + 0.5) / num_classes + self.spread * draws.standard_normal(len(slots))
        return np.array_split(mixed[times.argsort(kind="stable")], experiences)


@dataclass(frozen=True)
class Repetition:
    """Classes arrive in groups, and each comes back in every later experience by chance, with other images.

    Args:
        probability: Probability that a class comes back, for each later experience; 0: the ordinary split. Its images
            are shared out evenly over its experiences.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check("probability", self.probability, 0, 1, "from 0 to 1")

    @property
    def name(self) -> str:
        return f"repetition{self.probability:g}"

    def deal(self, slots: Rows, num_classes: int, experiences: int, seed: int) -> list[Rows]:
        draws = generator(seed, 4)
        rows: list[list[Rows]] = [[] for _ in range(experiences)]
        for first, group in enumerate(_groups(num_classes, experiences)):
            for slot in group:
                again = draws.uniform(size=experiences) < self.probability
                where = [first, *(np.flatnonzero(again[first + 1 :]) + first + 1)]
                own = draws.permutation(np.flatnonzero(slots == slot))
                for e, part in zip(where, np.array_split(own, len(where)), strict=True):
                    rows[e].append(part)
        return [draws.permutation(np.concatenate(parts)) for parts in rows]


@dataclass(frozen=True)
class LongTailed:
    """Disjoint groups of classes whose sizes fall geometrically: n_k = n_0 r^(-k / (K - 1)), at least one image.

    Args:
        ratio: r, of the largest class to the smallest, >= 1.
        shuffled: True: sizes fall along a random permutation of the classes; false: along their order.

    Source: Liu et al., "Long-tailed class incremental learning", ECCV 2022.
    """

    ratio: float = 100.0
    shuffled: bool = False

    def __post_init__(self) -> None:
        _check("ratio", self.ratio, 1, np.inf, "from 1 on")

    @property
    def name(self) -> str:
        return f"longtailed{self.ratio:g}{'_shuffled' * self.shuffled}"

    def deal(self, slots: Rows, num_classes: int, experiences: int, seed: int) -> list[Rows]:
        draws = generator(seed, 5)
        ranks = draws.permutation(num_classes) if self.shuffled else np.arange(num_classes)
        largest = int(np.bincount(slots, minlength=num_classes).max())
        sizes = np.rint(largest * self.ratio ** (-ranks / max(1, num_classes - 1))).astype(int).clip(1)
        kept = [draws.permutation(np.flatnonzero(slots == slot))[: sizes[slot]] for slot in range(num_classes)]
        groups = _groups(num_classes, experiences)
        return [draws.permutation(np.concatenate([kept[slot] for slot in group])) for group in groups]


def _groups(num_classes: int, experiences: int) -> list[Rows]:
    if experiences > num_classes:
        raise StreamError(f"stream.experiences is {experiences}; with {num_classes} classes it must be 1 to as many")
    return np.array_split(np.arange(num_classes), experiences)


def _check(key: str, value: float, least: float, most: float, allowed: str) -> None:
    if not is_finite(value) or not least <= value <= most:
        raise ConfigError(f"stream.arrival.{key} is {value!r}; it must be a number {allowed}")
