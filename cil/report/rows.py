"""A row of a table: one setting over its seeds, what it knows and what it costs, and remarks on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cil.report.runs import Outcome
from cil.report.settings import Group
from cil.report.tuning import NONE, tuning_of, tuning_words
from cil.report.verdicts import Score

AVERAGE, LAST, FORGETTING = "average_incremental_accuracy", "last_accuracy", "forgetting"


@dataclass(frozen=True)
class Note:
    """A remark on a row: a short mark beside its name, and a sentence below the table."""

    mark: str
    text: str


@dataclass(frozen=True)
class Row:
    """One setting, over its seeds. Percent, bytes, FLOPs, seconds; None where unknown.

    Attributes:
        label: The strategy, and what tells it from another row of the same strategy.
        runs: Those that the numbers are of, one for each seed.
        standing: ``ranked``, ``bound`` or ``unranked``.
        carried: Bytes at the end of the stream by convention, ``exact`` and ``survey``.
        own: The same without public weights.
        kinds: The same by kind.
        flops: Of everything but evaluation.
    """

    label: str
    strategy: str
    standing: str
    runs: tuple[Outcome, ...]
    average: Score
    last: Score
    forgetting: Score
    carried: dict[str, int | None]
    own: dict[str, int | None]
    kinds: dict[str, dict[str, int]]
    public: int
    exemplars: int | None
    flops: float | None
    peak_training_bytes: int | None
    seconds: float | None
    notes: tuple[Note, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def tuning(self) -> str:
        """How its settings were chosen."""
        return tuning_words(self.runs[0]) if self.runs else NONE

    @property
    def tuning_flops(self) -> int:
        """Of all trials, validation included; the runs themselves are not."""
        return int(tuning_of(self.runs[0])["tuning_cost"]) if self.runs else 0

    @property
    def finished(self) -> bool:
        """Whether there are numbers."""
        return bool(self.runs) and all(run.status == "finished" for run in self.runs)


def least_with_exemplars(groups: Sequence[Group]) -> int | None:
    """Fewest bytes that a competitor with exemplars carries; None where none has any."""
    runs = [run for group in groups for run in group.runs if run.status == "finished" and not run.bound]
    sizes = [run.carried(run.convention) for run in runs if run.exemplars]
    return min((size for size in sizes if size is not None), default=None)


def row_of(group: Group, label: str, marked: bool, least: int | None) -> Row:
    """Runs that differ in their seed alone, as a row.

    Args:
        group: The runs.
        label: Of the row.
        marked: Whether it was told the length of the stream, unlike others.
        least: See ``least_with_exemplars``.
    """
    finished = tuple(run for run in group.runs if run.status == "finished")
    first = group.first
    # without a finished run the row is empty, but for what the dry run knew of one over its budget
    runs = finished or tuple(run for run in group.runs if run.status == "over_budget")
    excess = next((f"seed {run.seed}: {run.excess}" for run in finished if run.excess), None)
    standing = "bound" if first.bound else "ranked"
    if not finished or (excess and not first.bound):
        standing = "unranked"
    notes = [*_status_notes(group, finished), *_kind_notes(first, finished, least)]
    if marked:
        notes.append(Note("uses horizon", "uses the horizon: was told the length of the stream"))
    if excess and not first.bound:
        notes.append(Note("over budget", f"over budget, so not ranked: {excess}"))
    conventions = ("exact", "survey")
    return Row(
        label=label,
        strategy=first.strategy,
        standing=standing,
        runs=runs,
        average=_score(finished, AVERAGE),
        last=_score(finished, LAST),
        forgetting=_score(finished, FORGETTING),
        carried={convention: _whole([run.carried(convention) for run in runs]) for convention in conventions},
        own={convention: _whole([run.own(convention) for run in runs]) for convention in conventions},
        kinds={convention: _kinds(runs, convention) for convention in conventions},
        public=max((run.public for run in runs), default=0),
        exemplars=_whole([run.exemplars for run in runs]),
        flops=_mean([run.flops for run in finished]),
        peak_training_bytes=_whole([run.result("peak_training_bytes") for run in finished]),
        seconds=_mean([run.result("seconds", "total") for run in finished]),
        notes=tuple(notes),
    )


def _score(runs: Iterable[Outcome], name: str) -> Score:
    return Score({run.seed: run.result(name) for run in runs})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _whole(values: Sequence[int | None]) -> int | None:
    """Bytes and counts hardly differ between seeds; where they do, the largest is what had to fit."""
    known = [value for value in values if value is not None]
    return max(known, default=None)


def _kinds(runs: Sequence[Outcome], convention: str) -> dict[str, int]:
    """By kind, of the seed that carries most."""
    if not runs:
        return {}
    return max(runs, key=lambda run: run.carried(convention) or 0).kinds(convention)


def _status_notes(group: Group, finished: Sequence[Outcome]) -> Iterable[Note]:
    stopped = [run for run in group.runs if run.status != "finished"]
    for status, count in sorted(Counter(run.status for run in stopped).items()):
        example = next(run for run in stopped if run.status == status)
        why = f": {example.record.error}" if example.record.error else ""
        words = status.replace("_", " ")
        mark = words if status == "over_budget" else f"{words} {example.done}/{example.experiences}"
        if finished:
            mark = f"{count} of {len(group.runs)} {words}"
            yield Note(mark, f"{mark}, left out{why}")
        elif status == "over_budget":
            yield Note(mark, f"over budget{why}")
        else:
            yield Note(mark, f"{words} after {example.done} of {example.experiences} experiences{why}")
    if group.dropped:
        runs = "1 more run" if group.dropped == 1 else f"{group.dropped} more runs"
        yield Note("repeated", f"repeated: {runs} of seeds that are there already, left out")


def _kind_notes(first: Outcome, finished: Sequence[Outcome], least: int | None) -> Iterable[Note]:
    lost = max((sum(run.result("given_up") or ()) for run in finished), default=0)
    if lost:
        yield Note("gave up images", f"gave up images: learned without {lost:,} of those that arrived")
    if finished and not first.bound and not any(run.exemplars for run in finished):
        limit, carried = first.limit, _whole([run.carried(first.convention) for run in finished])
        if limit is not None and carried is not None and carried < limit:
            yield Note("uses less", f"uses less: no exemplars, {limit - carried:,} bytes below the limit")
        counted = limit is None and first.budget.get("exemplars")
        if counted and least is not None and carried is not None and carried < least:
            yield Note("uses less", "uses less: no exemplars")
