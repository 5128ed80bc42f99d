"""What a run keeps and what it takes in: old and new classes, transfer, intransigence, task and class within it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from cil import metrics
from cil.report.grids import Line, Titled, grid, scores_entry
from cil.report.grouping import Group
from cil.report.rows import Row
from cil.report.runs import RunSummary, flat
from cil.report.verdicts import Score

HEADING = "Old and new classes, tasks and classes within them"
REFERENCE = "joint"  # the strategy that is trained on all data of each experience and those before
OLD, NEW, HARMONIC = "old %", "new %", "harmonic"
BACKWARD, FORWARD, INTRANSIGENCE = "BWT", "FWT", "intransigence"
WITHIN, FOUND = "within task %", "task found %"
KEYS = {  # heading: key in CSV and JSON
    OLD: "old_accuracy", NEW: "new_accuracy", HARMONIC: "harmonic_accuracy", BACKWARD: "backward_transfer",
    FORWARD: "forward_transfer", INTRANSIGENCE: "intransigence", WITHIN: "within_task_accuracy",
    FOUND: "task_identification",
}  # fmt: skip
TERMS = (
    (OLD, "Accuracy at the end on all classes but those of the last experience; new %: on those; harmonic: of both."),
    (BACKWARD, "Backward transfer: last accuracy on an experience less that just after it (Lopez-Paz, Ranzato 2017)."),
    (FORWARD, "Forward transfer: accuracy on an experience just before it is learned, less that of a guess."),
    (INTRANSIGENCE, "Accuracy of joint training on an experience less that just after it, at the same seed, mean over "
                    "experiences (Chaudhry et al. 2018). Less is better."),
    (WITHIN, "Accuracy where the experience of an image is given; task found %: answers within the right experience. "
             "No accuracy is above either."),
)  # fmt: skip


def plasticity_scores(row: Row, joints: Sequence[Group]) -> dict[str, Score]:
    """Scores at the end of the stream by heading; those that no seed knows are left out.

    Args:
        joints: Groups of joint training on the same stream, for intransigence.
    """
    references: Mapping[int, RunSummary] = {} if row.group.first.learner == REFERENCE else _reference(row, joints)
    measures: dict[str, Callable[[RunSummary], Any]] = {
        OLD: lambda run: _old_new(run).old,
        NEW: lambda run: _old_new(run).new,
        HARMONIC: lambda run: _old_new(run).harmonic,
        BACKWARD: lambda run: run.result("backward_transfer"),
        FORWARD: _forward,
        INTRANSIGENCE: lambda run: _intransigence(run, references.get(run.seed)),
        WITHIN: lambda run: within_task(run)[-1],
        FOUND: lambda run: run.result("task_identification_curve", -1),
    }
    found = {
        head: Score({run.seed: metrics.plain(measure(run)) for run in row.runs}) for head, measure in measures.items()
    }
    return {head: one for head, one in found.items() if any(value is not None for value in one.values.values())}


def plasticity_table(rows: Sequence[Row], joints: Sequence[Group]) -> Titled | None:
    """A line for each row; None where no record says more than the transfer."""
    found = {row.label: plasticity_scores(row, joints) for row in rows if row.runs}
    heads = [head for head in KEYS if any(head in scores for scores in found.values())]
    if not {OLD, FORWARD, WITHIN} & {*heads}:
        return None
    lines = [Line(label, {head: str(scores.get(head, Score({}))) for head in heads}) for label, scores in found.items()]
    return Titled(HEADING, grid("strategy", lines))


def plasticity_entry(row: Row, joints: Sequence[Group]) -> dict[str, Any]:
    """The same with keys for CSV and JSON, numbers unrounded, None where undefined."""
    scores = plasticity_scores(row, joints)
    return scores_entry({key: scores.get(head, Score({})) for head, key in KEYS.items()})


def tested(run: RunSummary) -> list[int] | None:
    """Test images of each experience; None where classes come back, or the record does not say."""
    counts, slots = run.result("class_counts"), run.stream.get("new_slots")
    returning = run.result("domains") is not None or "forgetting_by_class" in run.record.results
    if not counts or not slots or returning or len(counts) != sum(map(len, slots)) or None in counts:
        return None
    return [sum(counts[slot] for slot in part) for part in slots]


def matrix(run: RunSummary, name: str = "accuracy_matrix") -> np.ndarray[Any, Any] | None:
    """A matrix of the record, (t, T) percent and NaN; None where there is none."""
    rows = run.result(name)
    return np.asarray(rows, dtype=np.float64) if rows else None


def old_and_new(run: RunSummary) -> list[metrics.OldNew]:
    """Accuracy on old and on new classes after each experience; empty where unknown."""
    R, counts = matrix(run), tested(run)
    return [] if R is None or counts is None else [metrics.old_new_harmonic(R, counts, step) for step in range(len(R))]


def within_task(run: RunSummary) -> list[float]:
    """Accuracy on all classes seen with the experience given, after each experience; one NaN where unknown."""
    R, counts = matrix(run, "accuracy_matrix_task_aware"), tested(run)
    return [math.nan] if R is None or counts is None else metrics.accuracy_curve(R, counts).tolist()


def _old_new(run: RunSummary) -> metrics.OldNew:
    found = old_and_new(run)
    return found[-1] if found else metrics.OldNew(*[math.nan] * 4)


def _forward(run: RunSummary) -> float | None:
    """Less a guess among the classes seen just before each experience."""
    R = matrix(run)
    seen = list(accumulate(len(slots) for slots in run.stream.get("new_slots") or ()))
    if R is None or len(R) < 2 or len(seen) != R.shape[1] or not seen[0]:
        return None
    return metrics.forward_transfer(R, [math.nan, *(100 / many for many in seen[:-1])])


def _intransigence(run: RunSummary, reference: RunSummary | None) -> float | None:
    R, joint = matrix(run), None if reference is None else matrix(reference)
    return None if R is None or joint is None or R.shape != joint.shape else metrics.intransigence(R, joint.diagonal())


def _reference(row: Row, joints: Sequence[Group]) -> Mapping[int, RunSummary]:
    """Runs of joint training by seed, with the same network."""
    own = _model(row.group.first)
    group = next((group for group in joints if _model(group.first) == own), None)
    return {} if group is None else {run.seed: run for run in group.finished}


def _model(run: RunSummary) -> dict[str, Any]:
    return {key: value for key, value in flat(run.config).items() if key.startswith("model.")}
