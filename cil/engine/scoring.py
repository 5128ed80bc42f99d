"""The score of an answerer on held-out samples: accuracy, or mean average precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.data import Samples
from cil.errors import ContractError
from cil.memory import Flops

Answer = Callable[[Tensor], Tensor]  # images to scores
NOT_NUMBERS = (
    "predict gave scores that are not numbers; -inf is allowed, for a class without a score; if training diverged, "
    "lower optimizer.lr"
)


@dataclass(frozen=True)
class Score:
    """Accuracy or mAP in percent, the labels that mAP leaves out, the number of images, and FLOPs."""

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
        with nullcontext() if found else flops.counting():
            scores = answer(batch.images)
        if scores.shape != (len(batch), columns):
            raise ContractError(
                f"predict gave scores of shape {tuple(scores.shape)} for {len(batch)} images and {columns} classes"
            )
        found.append(scores)
        true.append(batch.slots if batch.targets is None else batch.targets)
    spent = round(flops.count / len(found[0]) * len(samples))  # as much for each as for those of the first batch
    scores, targets = torch.cat(found).float(), torch.cat(true)
    if bool(scores.isnan().any()):
        raise ContractError(NOT_NUMBERS)
    if mixed.targets is not None:
        mean = metrics.mean_average_precision(scores.cpu().numpy(), targets.cpu().numpy())
        return Score(mean.mean, mean.skipped, len(samples), spent)
    right = int((scores.argmax(1) + first == targets).sum())
    return Score(100 * right / len(samples), 0, len(samples), spent)
