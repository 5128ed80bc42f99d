"""Evaluation: one shuffled pass over the test data of all experiences whose classes were seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cil import metrics
from cil.data import Batch, Samples, concatenated
from cil.engine.keys import generator
from cil.engine.scoring import NOT_NUMBERS
from cil.errors import ContractError
from cil.kinds.classes.column_counts import ColumnCounts
from cil.memory import Flops
from cil.streams import Stream

CORRECT, COUNT = "validation.correct", "validation.count"  # names of counts of held-out images

Predict = Callable[[Tensor], Tensor]


def evaluable(stream: Stream, num_classes: int) -> list[int]:
    """Experiences whose classes have all been seen."""
    return [s.index for s in stream.signatures if max(s.present, default=0) < num_classes]


def evaluate(
    predict: Predict,
    stream: Stream,
    num_classes: int,
    *,
    seed: int,
    device: torch.device,
    batch_size: int = 500,
    answered: Callable[[Tensor, Tensor, Tensor, Tensor], None] = lambda *batch: None,
) -> dict[str, Tensor]:
    """Count right and wrong answers.

    Files lie class by class, so the samples are shuffled: batch statistics must not leak the label. The task-aware
    answer is the best of the same scores within the slots of the sample's experience.

    Args:
        predict: (N, C, H, W) float images in [0, 1] to (N, num_classes) scores.
        num_classes: Slots seen.
        answered: Told after each batch its images, their scores (N, num_classes), slots (N,) and experiences (N,).

    Returns:
        What ``ColumnCounts`` counts, where the stream has columns; and
        ``cells`` (n, 3) int32 of the confusion: true slot, predicted slot and count of each pair that occurred;
        ``correct``, ``correct_task_aware`` and ``count`` (T,) int64 by experience; ``flops`` (1,) float64, of the pass.

    Raises:
        ContractError: where the scores have another shape, or are not numbers.
    """
    length = len(stream)
    answers: list[Tensor] = []  # (2, n) true and predicted slots of each batch
    correct, aware, count = (torch.zeros(length, dtype=torch.int64) for _ in range(3))
    masks = torch.full((length, num_classes), -torch.inf, device=device)
    known = [(s.index, slot) for s in stream.signatures for slot in s.present if slot < num_classes]
    masks[tuple(torch.tensor(known, device=device).T)] = 0
    columns = ColumnCounts(stream.provenance.groups)
    flops, total = Flops(), 0
    broken = torch.zeros((), dtype=torch.bool, device=device)
    parts = [(index, stream.test(index)) for index in evaluable(stream, num_classes)]
    size = sum(len(samples) for _, samples in parts)
    for batch, where in shuffled(parts, seed, stream.fingerprint, device, batch_size):
        images, slots = batch.images, batch.slots
        if not answers:
            with flops.counting():
                scores = predict(images)
            total = round(flops.count / len(images) * size)
        else:
            scores = predict(images)
        if scores.shape != (len(images), num_classes):
            raise ContractError(
                f"predict gave scores of shape {tuple(scores.shape)} for {len(images)} images and {num_classes} classes"
            )
        answered(images, scores, slots, where)
        broken |= scores.isnan().any()
        best = scores.argmax(1)
        right = best == slots
        right_aware = (scores + masks[where]).argmax(1) == slots
        answers.append(torch.stack([slots, best]).cpu())
        columns.add(batch.extras, best, right, num_classes)
        where = where.cpu()
        correct += torch.bincount(where[right.cpu()], minlength=length)
        aware += torch.bincount(where[right_aware.cpu()], minlength=length)
        count += torch.bincount(where, minlength=length)
    if broken:
        raise ContractError(NOT_NUMBERS)
    pairs = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *answers], dim=1).numpy()
    return columns.counts() | {
        "cells": torch.from_numpy(metrics.confusion_cells(*pairs)),
        "correct": correct,
        "correct_task_aware": aware,
        "count": count,
        "flops": torch.tensor([float(total)], dtype=torch.float64),
    }


def validation_counts(predict: Predict, stream: Stream, num_classes: int, **how: Any) -> dict[str, Tensor]:
    """Right answers and held-out images of each experience, (T,); ``flops`` of the pass.

    Args:
        stream: Whose test images are the validation images; from ``Stream.judged_by_validation``.
        how: Further arguments of ``evaluate``.
    """
    counts = evaluate(predict, stream, num_classes, **how)
    return {CORRECT: counts["correct"], COUNT: counts["count"], "flops": counts["flops"]}


def shuffled(
    parts: list[tuple[int, Samples]], seed: int, fingerprint: str, device: torch.device, batch_size: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of all parts, with the experience of each image, in one random order, keyed by what no learner knows."""
    parts = [(index, samples) for index, samples in parts if len(samples)]
    if not parts:
        return
    joined = concatenated([samples for _, samples in parts])
    indices, sizes = zip(*((index, len(samples)) for index, samples in parts), strict=True)
    where = torch.tensor(indices).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(len(joined), generator=generator(seed, "evaluate", fingerprint, len(parts)))
    joined, where = joined.joined()[order], where[order].to(device)
    start = 0
    for batch in joined.batches(batch_size, device):
        yield batch, where[start : start + len(batch)]
        start += len(batch)
