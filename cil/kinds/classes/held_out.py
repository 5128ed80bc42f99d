"""Validation data of a stream: accuracy on the training images that were set aside, beside that on test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cil import metrics
from cil.kinds.classes.evaluation import evaluate
from cil.metrics import plain
from cil.streams import Stream
from cil.tracking.record_types import Scores

CORRECT, COUNT = "validation.correct", "validation.count"  # names of counts

Predict = Callable[[Tensor], Tensor]


def validation_counts(
    predict: Predict, stream: Stream, num_classes: int, seed: int, device: torch.device, batch_size: int
) -> dict[str, Tensor]:
    """Right answers and held-out images of each experience, (T,); ``flops`` of the pass.

    Args:
        stream: Whose test images are the validation images; from ``Stream.judged_by_validation``.
    """
    counts = evaluate(predict, stream, num_classes, seed=seed, device=device, batch_size=batch_size)
    return {CORRECT: counts["correct"], COUNT: counts["count"], "flops": counts["flops"]}


def validation_curve(rows: Sequence[Mapping[str, Tensor]]) -> Scores:
    """Percent of the held-out images of all experiences learned, after each; null where none was counted."""
    curve = []
    for index, row in enumerate(rows):
        right, among = (row[name][: index + 1].sum() if name in row else np.nan for name in (CORRECT, COUNT))
        curve.append(float(metrics.accuracy_from_counts(float(right), float(among))))
    found: Scores = plain(curve)
    return found
