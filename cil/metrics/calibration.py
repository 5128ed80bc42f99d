"""Calibration: whether a learner is right as often as it is sure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError
from cil.metrics._arrays import check_same_shape, floats, mean
from cil.metrics.accuracy import check_scores

SUMS = 1e-3  # by which probabilities of an image may miss 1


class BinnedError(NamedTuple):
    """Fractions in [0, 1]; NaN without samples. Both are of so many bins: with others they are other numbers.

    Attributes:
        expected: Mean over samples of how far confidence and accuracy of a bin are apart (ECE).
        largest: The same of the worst bin (MCE).
    """

    expected: float
    largest: float


class Calibration(NamedTuple):
    """``ece`` and ``mce`` as ``BinnedError``; ``nll``, mean of -log p of the true class; ``brier``, from 0 to 2."""

    ece: float
    mce: float
    nll: float
    brier: float


def binned_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> BinnedError:
    """Compare confidence with accuracy in bins of equal width; a bin has its lower end, the last one 1 as well.

    Args:
        confidence: (N,) highest probability of each sample, in [0, 1].
        correct: (N,) true where it was answered rightly.
        bins: M, 1 or more.

    Raises:
        DataError: for a confidence outside [0, 1], or no bin.
        ShapeError: if the two differ in length.

    Source: Guo et al. 2017, equations 3 and 4.

    >>> binned_error([0.95, 0.85, 0.65, 0.55], [1, 1, 0, 1], bins=2)
    BinnedError(expected=0.0, largest=0.0)
    >>> round(binned_error([0.95, 0.85, 0.65, 0.55], [1, 1, 0, 1], bins=10).expected, 6)
    0.325
    """
    sure, right = floats("confidence", confidence, ndim=1), floats("correct", correct, ndim=1)
    check_same_shape("confidence", sure, "correct", right)
    if bins < 1 or not ((sure >= 0) & (sure <= 1)).all():
        raise DataError(f"bins is {bins}; 1 or more are needed, and confidences from 0 to 1.")
    if not len(sure):
        return BinnedError(np.nan, np.nan)
    place = np.minimum(np.searchsorted(np.arange(bins + 1) / bins, sure, side="right") - 1, bins - 1)
    count = np.bincount(place, minlength=bins)
    apart = np.abs(np.bincount(place, right, bins) - np.bincount(place, sure, bins))
    held = count > 0
    return BinnedError(float(apart.sum() / len(sure)), float((apart[held] / count[held]).max()))


def calibration(probabilities: ArrayLike, true: ArrayLike, bins: int = 15) -> Calibration:
    """Calibration of probabilities over the classes seen: those of classes to come belong out of the softmax.

    Args:
        probabilities: (N, K_i), each row from 0 to 1 and 1 in all. Ties go to the lowest slot.
        true: (N,) slots.
        bins: Of confidence.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: for rows that are no probabilities, or a slot that is not in [0, K_i).

    >>> round(calibration([[0.8, 0.2], [0.6, 0.4]], [0, 1]).brier, 6)
    0.4
    """
    p, slots = check_scores(probabilities, true)
    if (p < 0).any() or (np.abs(p.sum(1) - 1) > SUMS).any():
        raise DataError("probabilities must be 0 or more, and 1 in all in each row; scores need a softmax first.")
    own = p[np.arange(len(p)), slots]
    error = binned_error(p.max(1, initial=0).clip(0, 1), p.argmax(1) == slots if len(p) else [], bins)
    with np.errstate(divide="ignore"):
        unlikely = -np.log(own)
    brier = (p**2).sum(1) - 2 * own + 1  # sum_c (p_c - [c is true])^2
    return Calibration(*error, mean(unlikely), mean(brier))
