"""Areas under curves: accuracy against a budget, and accuracy over the samples of a stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError
from cil.metrics._arrays import check_same_shape, floats


def area(x: ArrayLike, y: ArrayLike, normalise: bool = False) -> float:
    """Area under the straight lines between points (trapezoid rule).

    Args:
        x: (m,) places, in any order, no two the same.
        y: (m,) heights.
        normalise: Divide by the range of x, which gives the mean height: comparable in unit, not across ranges.

    Returns:
        Unit of x times unit of y, or unit of y if normalised. NaN with fewer than two points or a NaN in y: a missing
        point is not interpolated.

    Raises:
        DataError: if a place is NaN or comes twice.

    >>> area([0, 10, 20], [0.5, 0.6, 0.7]), round(area([0, 10, 20], [0.5, 0.6, 0.7], normalise=True), 12)
    (12.0, 0.6)
    """
    places, heights = floats("x", x, ndim=1), floats("y", y, ndim=1)
    check_same_shape("x", places, "y", heights)
    order = np.argsort(places)
    steps, heights = np.diff(places[order]), heights[order]
    if np.isnan(places).any() or (steps == 0).any():
        raise DataError(f"x is {places.tolist()}; numbers are needed, each once.")
    if len(places) < 2:
        return float("nan")
    total = float((steps * (heights[1:] + heights[:-1]) / 2).sum())
    return total / float(steps.sum()) if normalise else total


def auc(megabytes: ArrayLike, accuracy: ArrayLike, normalise: bool = False) -> float:
    """Area under accuracy against memory: AUC-A of average incremental, AUC-L of last accuracies.

    Values over different ranges of memory cannot be compared, normalised or not.

    Args:
        megabytes: (m,) carried memory of each run. The survey counts MiB, 2^20 bytes.
        accuracy: (m,) **fractions** in [0, 1]; NaN for a budget that the method could not meet.
        normalise: Divide by the range of memory: the mean accuracy over the range, which is not the survey's number.

    Returns:
        Fraction times megabytes, as the survey prints it, or a fraction if normalised; NaN if a point is missing.

    Raises:
        DataError: if an accuracy is outside [0, 1] (percent, for example), or a budget comes twice.

    Source: Zhou et al. 2024, the memory-agnostic measure.

    >>> auc([10, 20, 40], [0.5, 0.6, 0.7])
    18.5
    """
    heights = floats("accuracy", accuracy, ndim=1)
    if (heights < 0).any() or (heights > 1).any():
        raise DataError(f"accuracy is {heights.tolist()}; fractions from 0 to 1 are needed, not percent.")
    return area(megabytes, heights, normalise)


def area_over_samples(samples: ArrayLike, accuracy: ArrayLike) -> float:
    """Mean height of accuracy over the samples of a stream: A_AUC.

    Args:
        samples: (m,) samples seen at each evaluation, rising.
        accuracy: (m,) percent on the test data of the classes exposed by then.

    Returns:
        Percent: the sum of accuracy times the samples since the evaluation before, over all samples; the plain mean
        where evaluations are equally spaced. NaN of nothing.

    Raises:
        DataError: if places do not rise, or are not above 0.

    Source: Koh et al., ICLR 2022, arXiv:2110.10031, A_AUC = sum_i f(i dn) dn.

    >>> area_over_samples([100, 200, 300], [40, 50, 60]), area_over_samples([100, 200, 400], [40, 50, 60])
    (50.0, 52.5)
    """
    places, heights = floats("samples", samples, ndim=1), floats("accuracy", accuracy, ndim=1)
    check_same_shape("samples", places, "accuracy", heights)
    if not len(places):
        return float("nan")
    steps = np.diff(places, prepend=0)
    if not (steps > 0).all():
        raise DataError(f"samples are {places.tolist()}; rising numbers above 0 are needed.")
    return float((steps * heights).sum() / places[-1])


def prequential(correct: ArrayLike, sizes: ArrayLike) -> float:
    """Online accuracy: each batch is answered before it is learned; right answers by samples seen, cumulated.

    Where samples arrive sorted by label it rewards who repeats the last label.

    Args:
        correct: (B,) right answers in each batch.
        sizes: (B,) samples in each batch.

    Returns:
        Percent; NaN of nothing.

    Raises:
        DataError: if more answers are right than there are samples.

    >>> prequential([2, 3, 4], [4, 4, 4])
    75.0
    """
    right, seen = floats("correct", correct, ndim=1), floats("sizes", sizes, ndim=1)
    check_same_shape("correct", right, "sizes", seen)
    if (right > seen).any() or (right < 0).any():
        raise DataError(f"correct is {right.tolist()} of {seen.tolist()}; 0 up to the size of the batch is allowed.")
    return float(100 * right.sum() / seen.sum()) if seen.sum() else float("nan")
