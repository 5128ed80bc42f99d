"""Rows of task-stream runs: errors over tasks and what they took, relative to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cil import metrics
from cil.report.bills import budget_notes
from cil.report.grouping import Group
from cil.report.rows import Note, Row, beside, caps, incomplete, marked
from cil.report.runs import RunSummary, dig
from cil.report.verdicts import Score

REFERENCE = "independent"  # the learner that E_rel is relative to: each task from random weights
PARTS = ("training", "search", "validation", "probe", "consolidation", "evaluation")  # in order; others before the last


@dataclass(frozen=True)
class TaskRow(Row):
    """One learner in one setting, over its seeds. Percent and operations; unknown where no run says it.

    Attributes:
        normalised: N, the mean over tasks of N_t in percent: 0 is a guess, 100 the best row of each task.
        relative: E_rel against ``independent`` on the same seeds, percent; below 0 is fewer errors.
        front: True if no other row has as low an error for as few operations.
    """

    split: str = "test"
    tasks: int = 0
    normalised: Score = field(default_factory=lambda: Score({}))
    relative: Score = field(default_factory=lambda: Score({}))
    front: bool = False

    @property
    def error(self) -> Score:
        """E, the mean error over all tasks."""
        return self.score("mean_error", self.split)

    @property
    def parts(self) -> dict[str, Score]:
        """E of each kind of task, and of development and final years."""
        kinds = dict.fromkeys(kind for run in self.runs for kind in run.result("mean_error_by", self.split) or ())
        return {str(kind): self.score("mean_error_by", self.split, kind) for kind in kinds}

    @property
    def at_end(self) -> Score:
        """E at the end of the stream; None where earlier tasks are not met again."""
        return Score({run.seed: _at_end(run, self.split) for run in self.runs})

    @property
    def flops(self) -> dict[str, float]:
        """Operations by part, mean over seeds. Trials of a search are ``search``, also the one that is kept."""
        parts = {name for run in self.runs for name in run.result("flops") or () if name != "total"}
        ordered = sorted(parts, key=lambda name: (PARTS.index(name) if name in PARTS else len(PARTS) - 1.5, name))
        return {name: _mean([run.result("flops", name, -1) for run in self.runs]) for name in ordered}

    @property
    def spent(self) -> float:
        """Operations of everything but evaluation."""
        return sum(count for part, count in self.flops.items() if part != "evaluation")

    @property
    def chosen(self) -> float | None:
        """Operations of the trials that are kept, a part of ``search``; None where runs do not say."""
        chosen = [_chosen(run) for run in self.runs]
        return _mean(chosen) if chosen and None not in chosen else None

    @property
    def trials(self) -> tuple[int, int]:
        """Trials that were made, and those that were asked for, of all tasks and seeds."""
        made = asked = 0
        for run in self.runs:
            events = run.result("events") or ()
            made += sum(len(event.get("search") or ()) for event in events)
            asked += len(events) * int(dig(run.identity, "config", "strategy", "search", "trials") or 0)
        return made, asked

    @property
    def errors(self) -> list[Score]:
        return [self.score("errors", self.split, task) for task in range(self.tasks)]

    @property
    def so_far(self) -> list[float]:
        """Operations of all parts but evaluation, up to each task."""
        return [_mean([run.result("events", task, "flops_so_far") for run in self.runs]) for task in range(self.tasks)]

    def sources(self, task: int) -> list[str]:
        """The task that a task started from, by seed, where the learner says so."""
        found = (run.result("events", task, "findings", "source") for run in self.runs)
        return [str(source) for source in found if source is not None]


def task_rows(
    groups: Sequence[Group], labels: Sequence[str], split: str, chance: Sequence[float | None]
) -> list[TaskRow]:
    """Rows of groups that met the same tasks, lowest mean error first.

    Args:
        chance: Error of a guess at each task, percent.
    """
    rows = marked([_row(group, label, split, len(chance)) for group, label in zip(groups, labels, strict=True)])
    reference = next((row for row in rows if row.group.first.learner == REFERENCE and row.runs), None)
    means = [[score.mean for score in row.errors] for row in rows]
    best = [
        min((error for error in errors if error is not None), default=math.nan) for errors in zip(*means, strict=True)
    ]
    front = metrics.pareto_front([row.spent for row in rows], [_number(row.error.mean) for row in rows])
    rows = [
        replace(
            row,
            relative=Score({}) if reference is None else _relative(row, reference),
            normalised=_normalised(row, chance, best),
            front=bool(on) and row.standing == "ranked",
        )
        for row, on in zip(rows, front, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.error.mean is None, row.error.mean or 0.0, row.label))


def _row(group: Group, label: str, split: str, tasks: int) -> TaskRow:
    bound = group.first.bound
    notes = [Note("bound", "a bound, kept out of the verdict and of the front")] if bound else []
    notes += [
        *incomplete(group),
        *budget_notes(group.finished),
        *beside(group.finished, len(group.first.stream.get("classes") or ())),
        *(note for cap in caps(group.finished) for note in cap.notes),
    ]
    return TaskRow(label, group, "bound" if bound else "ranked", tuple(notes), split, tasks)


def _at_end(run: RunSummary, split: str) -> float | None:
    found = run.result("errors_at_end", split) or ()
    again = str(run.stream.get("reevaluate")) != "none" and found and None not in found
    return sum(found) / len(found) if again else None


def _chosen(run: RunSummary) -> int | None:
    trials = [trial for event in run.result("events") or () for trial in event.get("search") or ()]
    chosen = [trial.get("flops") for trial in trials if trial.get("chosen")]
    return sum(chosen) if chosen and None not in chosen else None


def _mean(values: Sequence[float | None]) -> float:
    """The mean; a part that a run does not name took nothing."""
    return sum(value or 0 for value in values) / len(values) if values else 0.0


def _relative(row: TaskRow, reference: TaskRow) -> Score:
    """E_rel in percent, by seed."""
    found = {}
    for seed in sorted({run.seed for run in row.runs} & {run.seed for run in reference.runs}):
        errors, others = ([_number(score.values[seed]) for score in of.errors] for of in (row, reference))
        found[seed] = 100 * metrics.relative_error(errors, others)
    return Score({seed: None if math.isnan(value) else value for seed, value in found.items()})


def chance_errors(
    runs: Iterable[RunSummary], tasks: Sequence[Mapping[str, Any]], split: str
) -> tuple[float | None, ...]:
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
    for seed in row.error.values:
        errors = [_number(score.values[seed]) for score in row.errors]
        scores = metrics.normalised_scores(errors, list(map(_number, chance)), best)
        known = [float(value) for value in scores if not math.isnan(value)]
        found[seed] = 100 * sum(known) / len(known) if known else None
    return Score(found)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
