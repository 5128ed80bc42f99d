"""Streams of unlike tasks: errors by task to one number, against a reference, and what changed later (NEVIS'22).

An error is 100 - accuracy, or 100 - mAP, in percent; ``errors`` are (T,), in order of the stream. Single-label and
multi-label tasks are averaged apart first, as the two errors are not of one kind.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError, ShapeError
from cil.metrics._arrays import Floats, check_same_shape, floats, mean, ratio


def mean_error(errors: ArrayLike) -> float:
    """E, the mean error over the tasks that were evaluated, each weighing the same.

    Returns:
        Percent; NaN of nothing, or if an error is NaN: a task without a result is not left out by itself.

    >>> mean_error([10, 30])
    20.0
    """
    return mean(floats("errors", errors, ndim=1))


def mean_error_by(errors: ArrayLike, groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """E of each group of tasks: kind, domain, development and final years. In order of first appearance.

    >>> mean_error_by([10, 30, 50], ["multiclass", "multiclass", "multilabel"])
    {'multiclass': 20.0, 'multilabel': 50.0}
    """
    e = floats("errors", errors, ndim=1)
    if len(e) != len(groups):
        raise ShapeError(f"errors has {len(e)} entries, groups {len(groups)}; each task needs one.")
    names = list(dict.fromkeys(groups))
    return {name: mean(e[[group == name for group in groups]]) for name in names}


def relative_error(errors: ArrayLike, reference: ArrayLike) -> float:
    """E_rel, the mean of (e - e_ref) / e_ref over tasks: -0.2 is a fifth fewer errors than the reference.

    Args:
        reference: (T,) of the learner that starts each task anew, at the same budget.

    Returns:
        A fraction; NaN if the reference makes no error on a task.

    >>> round(relative_error([10, 30], [20, 30]), 6)
    -0.25
    """
    e, r = floats("errors", errors, ndim=1), floats("reference", reference, ndim=1)
    check_same_shape("errors", e, "reference", r)
    return mean(ratio(e - r, r))


def normalised_scores(errors: ArrayLike, chance: ArrayLike, best: ArrayLike) -> Floats:
    """N_t = (e - e_chance) / (e_best - e_chance): 0 is chance, 1 the best known, below 0 worse than chance.

    Args:
        chance: (T,) see :func:`chance_error`.
        best: (T,) the lowest errors known.

    Returns:
        (T,); NaN where the best is no better than chance, by definition of the two.

    >>> normalised_scores([50, 90, 10], [90, 90, 90], [10, 10, 10]).tolist()
    [0.5, 0.0, 1.0]
    """
    e, c, b = floats("errors", errors, ndim=1), floats("chance", chance, ndim=1), floats("best", best, ndim=1)
    check_same_shape("errors", e, "chance", c)
    check_same_shape("errors", e, "best", b)
    return np.where(b < c, ratio(c - e, c - b), np.nan)


def chance_error(classes: int) -> float:
    """Percent wrong of a guess among so many classes.

    >>> chance_error(4)
    75.0
    """
    if classes < 1:
        raise DataError(f"classes is {classes}; 1 or more are needed.")
    return 100 * (1 - 1 / classes)


def chance_error_multilabel(targets: ArrayLike) -> float:
    """100 - mAP of a ranking without information, whose average precision is the share of positives of a label.

    Args:
        targets: (N, L) 0 or 1; labels without a positive are left out, as in mAP.

    >>> chance_error_multilabel([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    50.0
    """
    shares = floats("targets", targets, ndim=2).mean(0)
    return 100 - mean(100 * shares[shares > 0])


def area_under_errors(errors: ArrayLike) -> float:
    """AUC_E, the mean over the stream of the running mean error: early tasks weigh more than late ones.

    >>> area_under_errors([40, 20, 0])
    30.0
    """
    e = floats("errors", errors, ndim=1)
    return mean(np.cumsum(e) / np.arange(1, len(e) + 1))


def later_change(just_after: ArrayLike, at_the_end: ArrayLike) -> Floats:
    """Error at the end of the stream minus the error right after training, by task: above 0 is forgetting.

    Args:
        at_the_end: (T,) percent; NaN for tasks that were not evaluated again.

    Returns:
        (T,) points.

    >>> later_change([10, 20], [35, 15]).tolist()
    [25.0, -5.0]
    """
    before, after = floats("just_after", just_after, ndim=1), floats("at_the_end", at_the_end, ndim=1)
    check_same_shape("just_after", before, "at_the_end", after)
    return after - before
