"""Every operation of a run's training, counted, beside what its record tells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cil.engine.driver import Run
from cil.engine.work import Boundary, Context
from cil.memory import Flops
from cil.tracking import Record


@dataclass(frozen=True)
class Recount:
    """A run that was executed, and operations on the way to each boundary.

    Attributes:
        record: Of the run.
        told: As the record has them, without evaluation.
        counted: As they were.
    """

    record: Record
    told: list[int]
    counted: list[int]


def recount(run: Run) -> Recount:
    """Execute a run, with every operation of its training counted."""
    counted: list[int] = []
    work: Any = run.work
    train = work.train

    def counting(index: int, context: Context) -> Boundary:
        flops = Flops()
        with flops.counting():
            boundary: Boundary = train(index, context)
        counted.append(flops.count)
        return boundary

    work.train = counting
    record = run.execute()
    return Recount(record, _billed(record.results["flops"], len(counted)), counted)


def _billed(flops: dict[str, Any], boundaries: int) -> list[int]:
    """Operations by boundary; parts that are one number are those of the first boundary."""
    parts = [part for name, part in flops.items() if name not in ("evaluation", "total")]
    told = [0] * boundaries
    told[0] += sum(part for part in parts if not isinstance(part, list))
    for sums in parts:
        if isinstance(sums, list):
            first = boundaries - len(sums)  # an adapter's first boundary is its deployment
            for place, (before, after) in enumerate(pairwise([0, *sums]), first):
                told[place] += after - before
    return told
