"""Numbers of a row: one setting, read from its runs of several seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cil.report.grouping import Group
from cil.report.runs import RunSummary
from cil.report.verdicts import Score


@dataclass(frozen=True)
class Cap:
    """A further budget, of a plugin: its name and unit, the limit, and what was measured last (largest of the seeds)."""

    name: str
    unit: str
    limit: float
    last: float

    @property
    def head(self) -> str:
        """Heading of its column."""
        return f"{self.name} ({self.unit})"

    @property
    def mark(self) -> str:
        """The mark of a row that is over it; empty where it is not."""
        return f"over {self.name}" if self.last > self.limit else ""

    def __str__(self) -> str:
        return f"{self.last:,.0f}" if self.last == int(self.last) else f"{self.last:,.4g}"


def score(runs: Iterable[RunSummary], *path: str | int) -> Score:
    """A result of each seed."""
    return Score({run.seed: run.result(*path) for run in runs})


def accuracy(error: Score) -> Score:
    """100 less the error."""
    return Score({seed: None if value is None else 100 - value for seed, value in error.values.items()})


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def largest(values: Iterable[int | None]) -> int | None:
    """Bytes and counts hardly differ between seeds; where they do, the largest is what had to fit."""
    return max((value for value in values if value is not None), default=None)


def caps(runs: Sequence[RunSummary]) -> tuple[Cap, ...]:
    """Further budgets that the runs report, each as of the seed that measured most."""
    found: dict[str, Cap] = {}
    for run in runs:
        for name, cap in (run.result("caps") or {}).items():
            measured = [value for value in cap["measured"] if value is not None]
            if measured and (name not in found or measured[-1] > found[name].last):
                found[name] = Cap(name, str(cap["unit"]), cap["limit"], measured[-1])
    return tuple(found.values())


def missing_seeds(group: Group) -> str:
    """Why seeds have no numbers; empty where all have."""
    stopped = Counter(run.status.replace("_", " ") for run in group.runs if run.status != "finished")
    words = ", ".join(f"{count} of {len(group.runs)} seeds {status}" for status, count in sorted(stopped.items()))
    errors = [run.record.error for run in group.runs if run.record.error]
    return f"{words}: {errors[0]}" if words and errors else words
