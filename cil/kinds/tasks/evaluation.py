"""Evaluation of task streams: each event is scored by the head of its task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cil import metrics
from cil.engine.keys import generator
from cil.engine.scoring import Score, scored
from cil.streams import TaskKey
from cil.streams.task_stream import TaskStream


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
