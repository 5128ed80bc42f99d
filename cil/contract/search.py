"""Hyperparameter search as a phase: what a strategy says of it; the engine runs, judges and bills the trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cil.contract.phase import Phase
from cil.data import Samples

Settings = Mapping[str, float]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, equally likely, or with ``log`` their logarithms are."""

    low: float
    high: float
    log: bool = False

    def at(self, share: float) -> float:
        """The number at a share in [0, 1] of the way.

        >>> Range(0.0, 0.3).at(0.5), round(Range(1e-4, 1e-1, log=True).at(1 / 3), 9)
        (0.15, 0.001)
        """
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Choice:
    """One of a few numbers, equally likely."""

    values: Sequence[float]

    def at(self, share: float) -> float:
        """The number at a share in [0, 1] of the list."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True)
class Search:
    """Random search: independent trials, each trained from where the learner stands now; the best one stays.

    After it the learner is what the trial with the lowest error made of it (the first of equals), so the next phase
    goes on from there.

    Attributes:
        name: For logs and snapshots.
        space: Ranges and choices by name; each trial draws once for each name, in this order.
        trials: How many.
        trial: Settings to the phase that a trial trains.
        validation: Held-out data of the experience that judge a trial, by the engine, through ``predict``.
        refit: The chosen settings to a phase that is trained from the start again, on more data as a rule, and stays
            in place of the trial; None where the trial itself stays.
    """

    name: str
    space: Mapping[str, Range | Choice]
    trials: int
    trial: Callable[[Settings], Phase]
    validation: Samples | None
    refit: Callable[[Settings], Phase] | None = field(default=None)

    def draw(self, generator: torch.Generator) -> dict[str, float]:
        """The settings of one trial."""
        shares = torch.rand(len(self.space), generator=generator, dtype=torch.float64).tolist()
        return {name: values.at(share) for (name, values), share in zip(self.space.items(), shares, strict=True)}

    @property
    def middle(self) -> dict[str, float]:
        """Settings in the middle of the space, for what looks at a phase without training it."""
        return {name: values.at(0.5) for name, values in self.space.items()}
