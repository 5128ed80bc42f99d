"""Task streams: evaluation by event, and the numbers of their record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.data import Samples
from cil.engine.keys import generator
from cil.errors import ConfigError, ContractError
from cil.memory import Flops
from cil.streams import Stream, TaskKey
from cil.streams.task_stream import TaskStream

Answer = Callable[[Tensor], Tensor]  # images to scores


def check_told(takes_task: bool, stream: Stream, name: str) -> None:
    """Refuse a strategy that needs to be told the task where nobody tells it, and one that could not be told.

    Raises:
        ConfigError: naming the keys to change.
    """
    if takes_task and not stream.task_known_at_test:
        raise ConfigError(
            f"strategy {name} must be told the task of a test image, which stream '{stream.name}' does not; choose a "
            f"stream that does, as stream=embedded_tasks with stream.heads=per_task"
        )
    if stream.task_known_at_test and not takes_task:
        raise ConfigError(
            f"strategy {name} answers without being told the task, which stream '{stream.name}' tells; set "
            f"stream.heads=offset, or choose a strategy whose predict takes the task (strategy=all names them)"
        )


def check_judged(searches: bool, stream: Stream) -> None:
    """Refuse a search on tasks without the held-out data that judge its trials.

    Raises:
        ConfigError: naming the tasks.
    """
    events = stream.events if searches and isinstance(stream, TaskStream) else ()
    lacking = [event.id for event in events if event.counts.get("dev") == 0]
    if lacking:
        raise ConfigError(
            f"strategy.search has trials, and no dev images judge them in {', '.join(lacking[:3])}"
            f"{f' and {len(lacking) - 3} more tasks' if lacking[3:] else ''}; give these a dev split, choose others by "
            f"stream.ids, or set strategy.search.trials=0"
        )


@dataclass(frozen=True)
class Score:
    """What samples gave: accuracy or mAP in percent, labels that mAP leaves out, images, and operations."""

    value: float
    skipped: int
    count: int
    flops: int

    @property
    def error(self) -> float:
        """Percent; 100 where there is nothing to score."""
        return 100.0 if np.isnan(self.value) else 100 - self.value


def scored(
    answer: Answer, samples: Samples, columns: int, first: int, order: torch.Generator, device: torch.device, size: int
) -> Score:
    """Answer shuffled samples: accuracy, or mAP of those with several labels.

    Args:
        answer: (n, C, H, W) images to (n, columns) scores; NaN is refused.
        first: Slot of the first column.
        order: Shuffles, as files lie class by class: batch statistics must not leak the label.
        size: Images a batch.

    Raises:
        ContractError: where scores have another shape, or are not numbers.
    """
    if not len(samples):
        return Score(float("nan"), 0, 0, 0)
    mixed = samples.joined()[torch.randperm(len(samples), generator=order)]
    flops = Flops()
    found: list[Tensor] = []
    true: list[Tensor] = []
    for batch in mixed.batches(size, device):
        if not found:
            with flops.counting():
                scores = answer(batch.images)
            flops.count = round(flops.count / len(batch) * len(samples))
        else:
            scores = answer(batch.images)
        if scores.shape != (len(batch), columns):
            raise ContractError(
                f"predict gave scores of shape {tuple(scores.shape)} for {len(batch)} images and {columns} classes"
            )
        found.append(scores)
        true.append(batch.slots if batch.targets is None else batch.targets)
    scores, targets = torch.cat(found).float(), torch.cat(true)
    if bool(scores.isnan().any()):
        raise ContractError("predict gave scores that are not numbers; -inf is allowed, for a class without a score")
    if mixed.targets is not None:
        mean = metrics.mean_average_precision(scores.cpu().numpy(), targets.cpu().numpy())
        return Score(mean.mean, mean.skipped, len(samples), flops.count)
    right = int((scores.argmax(1) + first == targets).sum())
    return Score(100 * right / len(samples), 0, len(samples), flops.count)


def evaluate_tasks(
    predict: Callable[..., Tensor],
    stream: TaskStream,
    index: int,
    *,
    seed: int,
    device: torch.device,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Predict, after event ``index``, what the protocol asks for: its own task, or those of all events so far.

    ``predict`` takes images and ``task``. A data set that came twice is answered once, and that holds for both events.

    Returns:
        For each split S ``score.S`` (T,) percent by event, NaN where not evaluated, ``chance.S`` (T,) percent wrong of
        a guess, ``skipped.S`` and ``count.S`` (T,);
        ``images`` (K,) of each slot in the headline split; ``flops`` (1,) float64.
    """
    events = stream.events
    images, total = torch.zeros(len(stream.classes), dtype=torch.int64), 0
    found: dict[str, Tensor] = {}
    for split in stream.splits:
        score, chance = torch.full((2, len(events)), torch.nan, dtype=torch.float64)
        skipped, count = torch.zeros(2, len(events), dtype=torch.int64)
        known: dict[TaskKey, Score] = {}
        for event in stream.evaluated(index):
            task, samples = events[event].task, stream.test(event, split)
            if task not in known:
                order = generator(seed, "evaluate", stream.fingerprint, split, task.dataset)
                answer = partial(predict, task=task)
                known[task] = scored(answer, samples, task.classes, task.first, order, device, batch_size)
                total += known[task].flops
            score[event], skipped[event], count[event] = known[task].value, known[task].skipped, known[task].count
            chance[event] = (
                metrics.chance_error(task.classes)
                if samples.targets is None
                else metrics.chance_error_multilabel(samples.targets.numpy())
            )
            if split == stream.splits[0]:
                own = samples.slots.bincount(minlength=len(images))
                if samples.targets is not None:
                    own = torch.zeros_like(images)
                    own[task.first : task.first + task.classes] = samples.targets.sum(0).long()
                images = torch.maximum(images, own)
        found |= {f"score.{split}": score, f"chance.{split}": chance}
        found |= {f"skipped.{split}": skipped, f"count.{split}": count}
    return {**found, "images": images, "flops": torch.tensor([float(total)], dtype=torch.float64)}


def task_results(
    rows: Sequence[Mapping[str, Tensor]], facts: Sequence[Mapping[str, Any]], stream: TaskStream
) -> dict[str, Any]:
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
    done, events = len(rows), stream.events[: len(rows)]
    matrix = {split: np.stack([row[f"score.{split}"].numpy() for row in rows]) for split in stream.splits}
    after = {split: np.diagonal(R)[:done] for split, R in matrix.items()}
    head = stream.splits[0]
    curve = np.cumsum(after[head]) / np.arange(1, done + 1)
    again = stream.reevaluate != "none"
    R = matrix[head]
    images = np.max([row["images"].numpy() for row in rows], axis=0)
    met = stream.signatures[done - 1].num_classes
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
        "class_counts": [int(count) if slot < met else None for slot, count in enumerate(images)],
        "errors": {split: plain(100 - score) for split, score in after.items()},
        "errors_at_end": {split: plain(100 - R[-1, :done]) for split, R in matrix.items()} if again else None,
        "mean_error": {split: plain(metrics.mean_error(100 - score)) for split, score in after.items()},
        "mean_error_by": {split: _by(100 - score, stream) for split, score in after.items()},
        "area_under_errors": {split: plain(metrics.area_under_errors(100 - score)) for split, score in after.items()},
        "events": [_event(index, rows[index], facts, stream) for index in range(len(events))],
    }


def _by(errors: np.ndarray[Any, Any], stream: TaskStream) -> dict[str, Any]:
    events = stream.events[: len(errors)]
    kinds = metrics.mean_error_by(errors, [event.kind for event in events])
    years = metrics.mean_error_by(errors, ["final" if event.final else "development" for event in events])
    return {str(name): plain(value) for name, value in {**kinds, **years}.items()}


def _event(
    index: int, row: Mapping[str, Tensor], facts: Sequence[Mapping[str, Any]], stream: TaskStream
) -> dict[str, Any]:
    event, fact = stream.events[index], facts[index]
    splits = {}
    for split in stream.splits:
        score = float(row[f"score.{split}"][index])
        name, skipped = ("mAP", int(row[f"skipped.{split}"][index])) if event.task.multilabel else ("accuracy", 0)
        found = {name: plain(score)} | ({"skipped_labels": skipped} if event.task.multilabel else {})
        count = int(row[f"count.{split}"][index])
        chance = plain(row[f"chance.{split}"][index])
        splits[split] = {"error": plain(100 - score), "chance_error": chance, "metrics": found, "count": count}
    spent = list(accumulate(sum(fact["flops"].values()) for fact in facts))
    return {
        "index": index,
        "event": event.id,
        "task": event.task.dataset,
        **{name: getattr(event, name) for name in ("year", "domain", "kind", "final")},
        "classes": event.task.classes,
        "repeat": event.task in [earlier.task for earlier in stream.events[:index]],
        "splits": splits,
        "flops": {**fact["flops"], "evaluation": int(row["flops"])},
        "flops_so_far": spent[index],
        "updates": fact["steps"],
        "peak_parameters": fact["peak_parameters"],
        "carried_bytes": fact["ledger"]["totals"]["exact"]["total"],
        "search": fact.get("search", []),
        "findings": fact.get("findings", {}),
        "compute": fact.get("compute"),
    }


def plain(values: Any) -> Any:
    """Nested lists of floats, or one float, with None for NaN."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(array), np.array(None), array).tolist()
