"""Several labels an image: average precision by label, and their mean (mAP)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError
from cil.metrics._arrays import Floats, check_same_shape, floats


class MeanPrecision(NamedTuple):
    """Mean average precision in percent, that of each label (L,), and how many labels had no positive."""

    mean: float
    by_label: Floats
    skipped: int


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Average precision of one label: the sum over thresholds of (R_k - R_{k-1}) P_k, not interpolated.

    Args:
        scores: (N,) higher is more likely; equal scores are one threshold, so their order does not matter.
        targets: (N,) 0 or 1.

    Returns:
        Percent; NaN without a positive.

    Raises:
        ShapeError: if the two differ in length.
        DataError: if a score is NaN, or a target neither 0 nor 1.

    Source: metrics of scikit-learn (``average_precision_score``), but for NaN where that gives 0.

    >>> round(average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]), 4)
    83.3333
    """
    s, y = floats("scores", scores, ndim=1), floats("targets", targets, ndim=1)
    check_same_shape("scores", s, "targets", y)
    if np.isnan(s).any() or not np.isin(y, (0, 1)).all():
        raise DataError("scores are numbers and targets 0 or 1; found NaN, or another target.")
    positives = y.sum()
    if not positives:
        return float("nan")
    order = np.argsort(-s, kind="stable")
    last = np.append(s[order][1:] != s[order][:-1], True)  # the last sample of each threshold
    found = np.cumsum(y[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float(100 * (np.diff(found, prepend=0.0) * precision).sum() / positives)


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> MeanPrecision:
    """Mean over labels of the average precision (mAP). Labels without a positive are left out, and counted.

    Libraries disagree on these labels: torchmetrics 1.9 and scikit-learn 1.9 let them count as 0.

    Args:
        scores: (N, L).
        targets: (N, L) 0 or 1.

    Returns:
        Percent; the mean is NaN where no label has a positive.

    Raises:
        ShapeError, DataError: as :func:`average_precision`.

    >>> found = mean_average_precision([[0.9, 0.1, 0], [0.8, 0.9, 0]], [[1, 0, 0], [0, 1, 0]])
    >>> found.mean, found.skipped
    (100.0, 1)
    """
    s, y = floats("scores", scores, ndim=2), floats("targets", targets, ndim=2)
    check_same_shape("scores", s, "targets", y)
    by_label = np.array([average_precision(s[:, label], y[:, label]) for label in range(s.shape[1])])
    known = by_label[~np.isnan(by_label)]
    return MeanPrecision(float(known.mean()) if len(known) else float("nan"), by_label, len(by_label) - len(known))
