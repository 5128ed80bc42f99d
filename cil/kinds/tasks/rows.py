"""A row of task-stream runs: one learner in one setting over its seeds, its errors and what it took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cil import metrics
from cil.report.grouping import Group
from cil.report.rows import Cap, caps, largest, missing_seeds, score
from cil.report.runs import RunSummary, dig
from cil.report.verdicts import Score

REFERENCE = "independent"  # the learner that E_rel is relative to: each task from random weights
PARTS = ("training", "search", "validation", "probe", "consolidation", "evaluation")  # in order; others before the last
UNKNOWN = Score({})


@dataclass(frozen=True)
class TaskRow:
    """One learner in one setting, over its seeds. Percent, operations, bytes, seconds; None where unknown.

    Attributes:
        label: The strategy, and what tells it from another row of the same one.
        runs: Those that finished, one for each seed.
        error: E, the mean error over all tasks; ``parts`` the same of each kind and of development and final years.
        at_end: E at the end of the stream, backward: backward transfer; None where earlier tasks are not met again.
        normalised: N, the mean over tasks of N_t in percent: 0 is a guess, 100 the best row of each task.
        relative: E_rel against ``independent`` on the same seeds, percent; below 0 is fewer errors.
        errors: Of each task right after its training.
        flops: Operations by part, mean over seeds. Trials of a search are ``search``, also the one that is kept.
        chosen: Operations of the trials that are kept, a part of ``search``; None where runs do not say.
        so_far: Operations of all parts but evaluation, up to each task.
        front: True if no other row has as low an error for as few operations.
        sources: The task that each task started from, by seed, where the learner says so.
        remark: Why seeds are missing; empty where none is.
    """

    label: str
    strategy: str
    bound: bool
    runs: tuple[RunSummary, ...]
    error: Score
    parts: dict[str, Score]
    area: Score
    at_end: Score
    backward: Score
    errors: tuple[Score, ...]
    flops: dict[str, float]
    chosen: float | None
    so_far: tuple[float, ...]
    peak_parameters: int | None
    exemplars: int | None
    carried: int | None
    seconds: float | None
    sources: tuple[tuple[str, ...], ...]
    caps: tuple[Cap, ...] = ()
    normalised: Score = UNKNOWN
    relative: Score = UNKNOWN
    front: bool = False
    remark: str = ""

    @property
    def spent(self) -> float:
        """Operations of everything but evaluation."""
        return sum(count for part, count in self.flops.items() if part != "evaluation")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def trials(self) -> tuple[int, int]:
        """Trials that were made, and those that were asked for, of all tasks and seeds."""
        made = asked = 0
        for run in self.runs:
            events = run.result("events") or ()
            made += sum(len(event.get("search") or ()) for event in events)
            asked += len(events) * int(dig(run.identity, "config", "strategy", "search", "trials") or 0)
        return made, asked


def task_rows(
    groups: Sequence[Group], labels: Sequence[str], split: str, chance: Sequence[float | None]
) -> list[TaskRow]:
    """Rows of groups that met the same tasks, lowest mean error first.

    Args:
        groups: The runs of each row.
        labels: Their names.
        split: The one that errors are of.
        chance: Error of a guess at each task, percent.
    """
    rows = [_row(group, label, split, len(chance)) for group, label in zip(groups, labels, strict=True)]
    reference = next((row for row in rows if row.strategy == REFERENCE and row.runs), None)
    if reference is not None:
        rows = [replace(row, relative=_relative(row, reference)) for row in rows]
    best = [
        min((error for row in rows if (error := row.errors[task].mean) is not None), default=math.nan)
        for task in range(len(chance))
    ]
    errors = [_number(row.error.mean) for row in rows]
    front = metrics.pareto_front([row.spent for row in rows], errors)
    rows = [
        replace(row, normalised=_normalised(row, chance, best), front=bool(on) and not row.bound)
        for row, on in zip(rows, front, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.error.mean is None, row.error.mean or 0.0, row.label))


def _row(group: Group, label: str, split: str, tasks: int) -> TaskRow:
    runs = tuple(run for run in group.runs if run.status == "finished")
    kinds = dict.fromkeys(kind for run in runs for kind in run.result("mean_error_by", split) or ())
    parts = dict.fromkeys(name for run in runs for name in run.result("flops") or () if name != "total")
    ordered = sorted(parts, key=lambda name: (PARTS.index(name) if name in PARTS else len(PARTS) - 1.5, name))
    return TaskRow(
        label=label,
        strategy=group.first.learner,
        bound=group.first.bound,
        runs=runs,
        error=score(runs, "mean_error", split),
        parts={str(kind): score(runs, "mean_error_by", split, kind) for kind in kinds},
        area=score(runs, "area_under_errors", split),
        at_end=Score({run.seed: _at_end(run, split) for run in runs}),
        backward=score(runs, "backward_transfer"),
        errors=tuple(score(runs, "errors", split, index) for index in range(tasks)),
        flops={name: _mean([run.result("flops", name, -1) for run in runs]) for name in ordered},
        chosen=_mean(chosen) if (chosen := [_chosen(run) for run in runs]) and None not in chosen else None,
        so_far=tuple(_mean([run.result("events", i, "flops_so_far") for run in runs]) for i in range(tasks)),
        peak_parameters=max((run.result("peak_parameters") or 0 for run in runs), default=None),
        exemplars=largest(run.exemplars for run in runs),
        carried=max((run.carried("exact") or 0 for run in runs), default=None),
        seconds=_mean([run.result("seconds", "total") for run in runs]) if runs else None,
        sources=tuple(
            tuple(str(s) for run in runs if (s := run.result("events", index, "findings", "source")) is not None)
            for index in range(tasks)
        ),
        caps=caps(runs),
        remark=missing_seeds(group),
    )


def _at_end(run: RunSummary, split: str) -> float | None:
    """The mean error of all tasks after the last one; None where earlier ones were not evaluated again."""
    found = run.result("errors_at_end", split) or ()
    again = str(run.stream.get("reevaluate")) != "none" and found and None not in found
    return sum(found) / len(found) if again else None


def _chosen(run: RunSummary) -> int | None:
    """Operations of the trials that a search chose; None where there was none, or a trial does not say."""
    trials = [trial for event in run.result("events") or () for trial in event.get("search") or ()]
    chosen = [trial.get("flops") for trial in trials if trial.get("chosen")]
    return sum(chosen) if chosen and None not in chosen else None


def _mean(values: Sequence[float | None]) -> float:
    """The mean; a part that a run does not name took nothing."""
    return sum(value or 0 for value in values) / len(values) if values else 0.0


def _relative(row: TaskRow, reference: TaskRow) -> Score:
    """E_rel in percent, by seed."""
    found = {}
    for seed in sorted(set(row.seeds) & set(reference.seeds)):
        errors, others = ([_number(score.values[seed]) for score in of.errors] for of in (row, reference))
        found[seed] = 100 * metrics.relative_error(errors, others)
    return Score({seed: None if math.isnan(value) else value for seed, value in found.items()})


def chance_errors(runs: Iterable[RunSummary], tasks: Sequence[dict[str, Any]], split: str) -> tuple[float | None, ...]:
    """Error of a guess at each task, as the first run that met it has it; records of earlier versions have none."""
    runs = list(runs)
    found: list[float | None] = []
    for index, task in enumerate(tasks):
        recorded = (run.result("events", index, "splits", split, "chance_error") for run in runs)
        guess = metrics.chance_error(task["classes"]) if task["kind"] == "multiclass" else None
        found.append(next((value for value in recorded if value is not None), guess))
    return tuple(found)


def _normalised(row: TaskRow, chance: Sequence[float | None], best: Sequence[float]) -> Score:
    """N in percent, by seed, over the tasks that some row knows better than a guess."""
    found: dict[int, float | None] = {}
    for seed in row.seeds:
        errors = [_number(score.values[seed]) for score in row.errors]
        scores = metrics.normalised_scores(errors, list(map(_number, chance)), best)
        known = [float(value) for value in scores if not math.isnan(value)]
        found[seed] = 100 * sum(known) / len(known) if known else None
    return Score(found)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
