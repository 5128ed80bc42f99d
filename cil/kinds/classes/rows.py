"""A row of class-incremental runs: one setting over its seeds, what it knows and what it costs, and remarks on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cil.report.grids import scores_entry
from cil.report.grouping import Group
from cil.report.rows import Cap, caps, largest, mean, score
from cil.report.runs import RunSummary
from cil.report.tuning import NONE, tuning_of, tuning_words
from cil.report.verdicts import Score

CONVENTIONS = ("exact", "survey")


@dataclass(frozen=True)
class Note:
    """A remark on a row: a short mark beside its name, and a sentence below the table."""

    mark: str
    text: str


@dataclass(frozen=True)
class ClassRow:
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
    runs: tuple[RunSummary, ...]
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
    caps: tuple[Cap, ...] = ()
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
        """True if there are numbers."""
        return bool(self.runs) and all(run.status == "finished" for run in self.runs)

    @property
    def scores(self) -> dict[str, Score]:
        """The scores by name."""
        return {
            "average_incremental_accuracy": self.average,
            "last_accuracy": self.last,
            "forgetting": self.forgetting,
        }

    def entry(self) -> dict[str, Any]:
        """The row without structure, numbers unrounded."""
        entry: dict[str, Any] = {
            "label": self.label,
            "strategy": self.strategy,
            "standing": self.standing,
            "n": len(self.seeds) if self.finished else 0,
            "seeds": " ".join(map(str, self.seeds)),
            **scores_entry(self.scores),
        }
        for convention in CONVENTIONS:
            entry |= {f"{convention}_bytes": self.carried[convention], f"own_{convention}_bytes": self.own[convention]}
        return entry | {
            "public_bytes": self.public,
            "exemplars": self.exemplars,
            "flops": self.flops,
            "tuning": self.tuning,
            "tuning_flops": self.tuning_flops,
            "peak_training_bytes": self.peak_training_bytes,
            "seconds": self.seconds,
            **{f"cap_{cap.name}": cap.last for cap in self.caps},
            "notes": "; ".join(note.text or note.mark for note in self.notes),
        }


def least_with_exemplars(groups: Sequence[Group]) -> int | None:
    """Fewest bytes that a competitor with exemplars carries; None where none has any."""
    runs = [run for group in groups for run in group.runs if run.status == "finished" and not run.bound]
    sizes = [run.carried(run.convention) for run in runs if run.exemplars]
    return min((size for size in sizes if size is not None), default=None)


def row_of(group: Group, label: str, planner: bool, least: int | None) -> ClassRow:
    """Runs that differ in their seed alone, as a row.

    Args:
        group: The runs.
        label: Name of the row.
        planner: True if it was told the length of the stream, unlike others.
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
    further = caps(finished)
    notes = [*_status_notes(group, finished), *_memory_notes(first, finished, least)]
    if planner:
        notes.append(Note("uses horizon", "uses the horizon: was told the length of the stream"))
    if excess and not first.bound:
        notes.append(Note("over budget", f"over budget, so not ranked: {excess}"))
    notes += [Note(cap.mark, f"{cap.mark}: {cap} {cap.unit}, limit {cap.limit:,}") for cap in further if cap.mark]
    return ClassRow(
        label=label,
        strategy=first.learner,
        standing=standing,
        runs=runs,
        average=score(finished, "average_incremental_accuracy"),
        last=score(finished, "last_accuracy"),
        forgetting=score(finished, "forgetting"),
        carried={convention: largest(run.carried(convention) for run in runs) for convention in CONVENTIONS},
        own={convention: largest(run.own(convention) for run in runs) for convention in CONVENTIONS},
        kinds={convention: _bytes_by_kind(runs, convention) for convention in CONVENTIONS},
        public=max((run.public for run in runs), default=0),
        exemplars=largest(run.exemplars for run in runs),
        flops=mean([run.flops for run in finished]),
        peak_training_bytes=largest(run.result("peak_training_bytes") for run in finished),
        seconds=mean([run.result("seconds", "total") for run in finished]),
        caps=further,
        notes=tuple(notes),
    )


def _bytes_by_kind(runs: Sequence[RunSummary], convention: str) -> dict[str, int]:
    """Of the seed that carries most."""
    fullest = max(runs, key=lambda run: run.carried(convention) or 0, default=None)
    return {} if fullest is None else fullest.bytes_by_kind(convention)


def _status_notes(group: Group, finished: Sequence[RunSummary]) -> Iterable[Note]:
    stopped = [run for run in group.runs if run.status != "finished"]
    for status, count in sorted(Counter(run.status for run in stopped).items()):
        example = next(run for run in stopped if run.status == status)
        why = f": {example.record.error}" if example.record.error else ""
        words = status.replace("_", " ")
        mark = words if status == "over_budget" else f"{words} {example.done}/{example.steps}"
        if finished:
            mark = f"{count} of {len(group.runs)} {words}"
            yield Note(mark, f"{mark}, left out{why}")
        elif status == "over_budget":
            yield Note(mark, f"over budget{why}")
        else:
            yield Note(mark, f"{words} after {example.done} of {example.steps} experiences{why}")
    if group.dropped:
        runs = "1 more run" if group.dropped == 1 else f"{group.dropped} more runs"
        yield Note("repeated", f"repeated: {runs} of seeds that are there already, left out")


def _memory_notes(first: RunSummary, finished: Sequence[RunSummary], least: int | None) -> Iterable[Note]:
    lost = max((sum(run.result("given_up") or ()) for run in finished), default=0)
    if lost:
        yield Note("gave up images", f"gave up images: learned without {lost:,} of those that arrived")
    if finished and not first.bound and not any(run.exemplars for run in finished):
        limit, carried = first.limit, largest(run.carried(first.convention) for run in finished)
        if limit is not None and carried is not None and carried < limit:
            yield Note("uses less", f"uses less: no exemplars, {limit - carried:,} bytes below the limit")
        counted = limit is None and first.budget.get("exemplars")
        if counted and least is not None and carried is not None and carried < least:
            yield Note("uses less", "uses less: no exemplars")
