"""The results of a run on a stream of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch import Tensor

from cil import metrics
from cil.engine.running import CurveSoFar
from cil.kinds.tasks.record_types import Event, SplitScore, TaskScores
from cil.metrics import plain
from cil.streams.task_stream import TaskStream


def task_scores(
    rows: Sequence[Mapping[str, Tensor]], facts: Sequence[Mapping[str, Any]], stream: TaskStream
) -> TaskScores:
    """The accuracy part of a task stream's record, and one entry for each event.

    Scores are accuracy, or mAP of a multilabel task; percent. What other streams have too:

    - ``accuracy_matrix``: row i has the score of event j after event i, None where it was not asked for; the headline
      split. ``accuracy_matrix_task_aware`` is the same, as the task is told.
    - ``accuracy_curve``: after event i the mean score of events 0 to i, each right after its training.
      ``average_incremental_accuracy`` is its mean, 100 minus the area under the running mean error;
      ``last_accuracy`` its last value, 100 minus E.
    - ``backward_transfer``, ``average_accuracy``: None where ``stream.reevaluate`` is ``none``; ``forgetting``: None
      but with ``all_seen``. ``class_counts``: images of each slot in the headline split.

    What task streams add, by split:

    - ``errors``: of each event right after its training; ``errors_at_end`` after the last one, with reevaluation.
    - ``mean_error``: E; ``mean_error_by``: E of each kind, of development and of final years.
    - ``area_under_errors``.

    And ``events``, one for each: ``index``, ``event`` (its id), ``task`` (data set), ``year``, ``domain``, ``kind``,
    ``classes``, ``final``, ``repeat``; ``splits``: by name ``error``, ``chance_error`` (of a guess), ``metrics``
    (accuracy or mAP, skipped labels) and ``count``; ``flops`` by part, of this event alone, and ``flops_so_far``, all
    but evaluation; ``updates``; ``peak_parameters``; ``carried_bytes``; ``search``: trials with settings, dev
    error and operations, the ``chosen`` one marked; ``findings`` of the strategy; ``compute``: available and spent,
    under a budget of it.
    """
    done = len(rows)
    matrix = {split: np.stack([row[f"score.{split}"].numpy() for row in rows]) for split in stream.splits}
    after = {split: np.diagonal(R)[:done] for split, R in matrix.items()}
    head = stream.splits[0]
    curve = np.cumsum(after[head]) / np.arange(1, done + 1)
    again = stream.reevaluate != "none"
    R = matrix[head]
    images = np.max([row["images"].numpy() for row in rows], axis=0)
    seen = stream.signatures[done - 1].num_classes
    return {
        "accuracy_matrix": plain(R),
        "accuracy_matrix_task_aware": plain(R),
        "accuracy_curve": plain(curve),
        "average_incremental_accuracy": plain(curve.mean()),
        "last_accuracy": plain(curve[-1]),
        "average_accuracy": plain(metrics.average_accuracy(R)) if again else None,
        "forgetting": plain(metrics.forgetting(R)) if again else None,
        "backward_transfer": plain(metrics.backward_transfer(R)) if again else None,
        "forward_transfer": None,
        "class_counts": [int(count) if slot < seen else None for slot, count in enumerate(images)],
        "errors": {split: plain(100 - score) for split, score in after.items()},
        "errors_at_end": {split: plain(100 - R[-1, :done]) for split, R in matrix.items()} if again else None,
        "mean_error": {split: plain(metrics.mean_error(100 - score)) for split, score in after.items()},
        "mean_error_by": {split: _by(100 - score, stream) for split, score in after.items()},
        "area_under_errors": {split: plain(metrics.area_under_errors(100 - score)) for split, score in after.items()},
        "events": _events(rows, facts, stream),
    }


class ErrorsSoFar(CurveSoFar):
    """The mean score of events right after their training, and forgetting, event by event, in the headline split."""

    def __init__(self, split: str) -> None:
        self.split = split
        super().__init__()

    def clear(self) -> None:
        super().clear()
        self._total = 0.0

    def add(self, row: Mapping[str, Tensor]) -> None:
        scores = row[f"score.{self.split}"].numpy()
        self._total += float(scores[len(self.curve)])
        self.extend(self._total / (len(self.curve) + 1), scores)


def _by(errors: np.ndarray[Any, Any], stream: TaskStream) -> dict[str, float | None]:
    events = stream.events[: len(errors)]
    kinds = metrics.mean_error_by(errors, [event.kind for event in events])
    years = metrics.mean_error_by(errors, ["final" if event.final else "development" for event in events])
    return {str(name): plain(value) for name, value in {**kinds, **years}.items()}


def _events(
    rows: Sequence[Mapping[str, Tensor]], facts: Sequence[Mapping[str, Any]], stream: TaskStream
) -> list[Event]:
    spent = accumulate(sum(fact["flops"].values()) for fact in facts)
    met, found = set(), []
    for index, (row, fact, flops) in enumerate(zip(rows, facts, spent, strict=True)):
        task = stream.events[index].task
        found.append(_event(index, row, fact, stream, flops, task in met))
        met.add(task)
    return found


def _event(
    index: int, row: Mapping[str, Tensor], fact: Mapping[str, Any], stream: TaskStream, flops_so_far: int, repeat: bool
) -> Event:
    event = stream.events[index]
    splits: dict[str, SplitScore] = {}
    for split in stream.splits:
        score = float(row[f"score.{split}"][index])
        found: dict[str, float | None] = {"mAP" if event.task.multilabel else "accuracy": plain(score)}
        if event.task.multilabel:
            found["skipped_labels"] = int(row[f"skipped.{split}"][index])
        count = int(row[f"count.{split}"][index])
        chance = plain(row[f"chance.{split}"][index])
        splits[split] = {"error": plain(100 - score), "chance_error": chance, "metrics": found, "count": count}
    return {
        "index": index,
        "event": event.id,
        "task": event.task.dataset,
        "year": event.year,
        "domain": event.domain,
        "kind": event.kind,
        "final": event.final,
        "classes": event.task.classes,
        "repeat": repeat,
        "splits": splits,
        "flops": {**fact["flops"], "evaluation": int(row["flops"])},
        "flops_so_far": flops_so_far,
        "updates": fact["steps"] + fact.get("own_updates", 0),
        "peak_parameters": fact["peak_parameters"],
        "carried_bytes": fact["ledger"]["totals"]["exact"]["total"],
        "search": fact.get("search", []),
        "findings": fact.get("findings", {}),
        "compute": fact.get("compute"),
    }
