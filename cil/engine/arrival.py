"""Streams that do not wait: on which arriving batches a learner takes a step, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cil.data import Samples
from cil.errors import ConfigError

MOST = 10_000  # steps a batch, or batches a step


@dataclass(frozen=True)
class Pace:
    """A single pass over batches in the order of the stream.

    Attributes:
        updates: Optimizer steps for each batch that arrives; below 1 only some batches are trained on.
        complexity: C, the time that a step takes in batches that arrive. Above 1 those that arrive meanwhile are
            missed. One of both is 1.
    """

    updates: Fraction = Fraction(1)
    complexity: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.updates != 1 and self.complexity != 1:
            raise ConfigError(
                f"trainer.updates_per_batch is {self.updates} and trainer.complexity {self.complexity}; each says on "
                f"which batches steps are taken, so set one of them to 1 or null"
            )

    @classmethod
    def of(cls, updates: Any, complexity: Any) -> Pace | None:
        """From values of the configuration, None where neither is set."""
        if updates is None and complexity is None:
            return None
        return cls(
            fraction("trainer.updates_per_batch", 1 if updates is None else updates),
            fraction("trainer.complexity", 1 if complexity is None else complexity),
        )

    def finished(self, batch: int) -> int:
        """Steps that ended by the time a batch arrives, by which it is answered before it is learned."""
        return int(batch * self.updates / self.complexity)

    def steps(self, count: int) -> list[int]:
        return by_rate(count, self.updates) if self.complexity == 1 else in_real_time(count, self.complexity)


def fraction(key: str, value: Any) -> Fraction:
    """An exact positive number: 3, 0.25 or '4/3'.

    Raises:
        ConfigError: naming ``key``.
    """
    try:
        found = value if isinstance(value, Fraction) else Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        found = Fraction(0)
    if not 0 < found <= MOST or isinstance(value, bool):
        upper = f", at most {MOST:,}" if found > MOST else ""
        raise ConfigError(f"{key} is {value!r}; it must be a number above 0 or a fraction as 4/3{upper}, or null")
    return found


def by_rate(count: int, updates: Fraction) -> list[int]:
    """Steps on each of ``count`` batches where each gives credit for so many; a step takes whole credit.

    >>> by_rate(8, Fraction(1, 4)), by_rate(4, Fraction(3, 2))
    ([0, 0, 0, 1, 0, 0, 0, 1], [1, 2, 1, 2])
    """
    credit = [int(updates * batch) for batch in range(count + 1)]
    return [after - before for before, after in pairwise(credit)]


def in_real_time(count: int, complexity: Fraction) -> list[int]:
    """Steps, 0 or 1, on each of ``count`` batches that arrive one by one, where a step takes ``complexity`` of them.

    Time accumulates exactly: trained on is every batch at whose arrival the learner is free. Each phase starts free.

    Source:
        Ghunaim et al., "Real-time evaluation in online continual learning", CVPR 2023, section 3.

    >>> in_real_time(4, Fraction(4, 3)), in_real_time(5, Fraction(5, 2))
    ([1, 0, 1, 1], [1, 0, 0, 1, 0])
    """
    steps, free = [], Fraction(0)
    for batch in range(count):
        steps.append(int(batch >= free))
        free += complexity * steps[-1]
    return steps


def leading(data: Samples, arriving: Samples) -> int:
    """The number of images at the front of ``data`` that arrive; 0 where others come first."""
    own, count = {id(store) for store, _ in arriving.parts}, 0
    for store, rows in data.parts:
        if id(store) not in own:
            break
        count += len(rows)
    return count


def among(arriving: int, count: int, generator: torch.Generator) -> Tensor:
    """An order of ``count`` rows: the first ``arriving`` keep theirs, the others are spread among them at random.

    >>> among(4, 6, torch.Generator().manual_seed(0)).tolist()
    [0, 4, 1, 2, 5, 3]
    """
    others = count - arriving
    if others <= 0:
        return torch.arange(count)
    places = torch.cat(
        [
            (torch.arange(arriving, dtype=torch.float64) + 0.5) / max(1, arriving),
            (torch.randperm(others, generator=generator).double() + 0.5) / others,
        ]
    )
    return places.argsort(stable=True)
