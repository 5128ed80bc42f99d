"""Forgetting, transfer and intransigence: how learning one experience moves the accuracy on others.

All read ``matrix``, R: (t, T) percent with one row for each experience learned, and speak about the end of its last
row: the same number after an earlier experience k is that of ``R[: k + 1]``. Results are percentage points in [-100,
100]; NaN where undefined (with one experience there is nothing to forget), and NaN where an entry that is needed is
NaN.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import ConfigError, ShapeError, nearest
from cil.metrics._arrays import Floats, Ints, floats, learned_entries, learned_part, mean, slots
from cil.metrics.accuracy import class_accuracy

VARIANTS = ("chaudhry", "including_last", "first_minus_last")


@overload
def forgetting(matrix: ArrayLike, variant: str = ..., per_experience: Literal[False] = ...) -> float: ...
@overload
def forgetting(matrix: ArrayLike, variant: str = ..., *, per_experience: Literal[True]) -> Floats: ...
def forgetting(matrix: ArrayLike, variant: str = "chaudhry", per_experience: bool = False) -> float | Floats:
    """How far accuracy on earlier experiences has fallen by the last row.

    Args:
        variant: Accuracy that the last one is subtracted from, by experience j, with k the last row:
            ``chaudhry``, the best of rows j to k - 1: negative if the last is better than all before;
            ``including_last``, the best of rows j to k: never negative;
            ``first_minus_last``, row j itself: minus the backward transfer.
        per_experience: Give (t - 1,) values, one for each experience but the last, in place of their mean.

    Raises:
        ConfigError: if the variant is unknown.

    Source: Chaudhry et al. 2018, section 3.2; the other two are what public code also calls forgetting.

    >>> forgetting([[90, 10, 5], [70, 80, 15], [60, 70, 85]])
    20.0
    """
    R = learned_part(matrix)
    last = max(len(R) - 1, 0)
    if variant == "chaudhry":
        past = [R[j:last, j].max() for j in range(last)]  # max hands a NaN on
    elif variant == "including_last":
        past = [R[j:, j].max() for j in range(last)]
    elif variant == "first_minus_last":
        past = [R[j, j] for j in range(last)]
    else:
        raise ConfigError(f"forgetting has no variant {variant!r}: {nearest(variant, VARIANTS)}.")
    fallen = np.asarray(past, np.float64) - R[last:, :last].ravel()
    return fallen if per_experience else mean(fallen)


@overload
def backward_transfer(matrix: ArrayLike, per_experience: Literal[False] = ...) -> float: ...
@overload
def backward_transfer(matrix: ArrayLike, per_experience: Literal[True]) -> Floats: ...
def backward_transfer(matrix: ArrayLike, per_experience: bool = False) -> float | Floats:
    """Mean over earlier experiences j of R[k, j] - R[j, j], k the last row (BWT).

    Args:
        per_experience: Give the (t - 1,) differences in place of their mean.

    Source: Lopez-Paz & Ranzato 2017, equation 3.

    >>> backward_transfer([[90, 10, 5], [70, 80, 15], [60, 70, 85]])
    -20.0
    """
    moved = -forgetting(matrix, "first_minus_last", per_experience=True)
    return moved if per_experience else mean(moved)


class Remembering(NamedTuple):
    """``backward_transfer`` over all steps in points, its positive part, and 100 minus its negative part."""

    backward_transfer: float
    positive: float
    remembering: float


def remembering(matrix: ArrayLike) -> Remembering:
    """Backward transfer averaged over all t(t - 1)/2 pairs j < i, not over the last row alone (BWT+, REM).

    Returns:
        Mean of R[i, j] - R[j, j]; the larger of it and 0; and 100 minus the size of its negative part. NaN for t = 1.

    Source: Díaz-Rodríguez et al. 2018, who write them as fractions.

    >>> remembering([[90, 10, 5], [70, 80, 15], [60, 70, 85]])
    Remembering(backward_transfer=-20.0, positive=0.0, remembering=80.0)
    """
    R = learned_part(matrix)
    later, earlier = np.tril_indices(len(R), k=-1)
    transfer = mean(R[later, earlier] - R[earlier, earlier])
    positive, negative = np.maximum(transfer, 0.0), np.minimum(transfer, 0.0)
    return Remembering(transfer, float(positive), float(100.0 - abs(negative)))


@overload
def forward_transfer(matrix: ArrayLike, initial: ArrayLike, per_experience: Literal[False] = ...) -> float: ...
@overload
def forward_transfer(matrix: ArrayLike, initial: ArrayLike, per_experience: Literal[True]) -> Floats: ...
def forward_transfer(matrix: ArrayLike, initial: ArrayLike, per_experience: bool = False) -> float | Floats:
    """Mean over later experiences j of R[j - 1, j] - b_j: what is known of an experience before learning it (FWT).

    NaN where the entries above the diagonal are, as in plain class-incremental learning: the true class has no slot.

    Args:
        initial: b, (T,) percent at random initialisation; the first entry is not read.
        per_experience: Give the (t - 1,) differences in place of their mean.

    Source: Lopez-Paz & Ranzato 2017, equation 4.

    >>> forward_transfer([[90, 10, 5], [70, 80, 15], [60, 70, 85]], [None, 8, 10])
    3.5
    """
    R = learned_part(matrix)
    ahead = R.diagonal(offset=1) - learned_entries("initial", initial, len(R))[1:]
    return ahead if per_experience else mean(ahead)


@overload
def intransigence(matrix: ArrayLike, joint: ArrayLike, per_experience: Literal[False] = ...) -> float: ...
@overload
def intransigence(matrix: ArrayLike, joint: ArrayLike, per_experience: Literal[True]) -> Floats: ...
def intransigence(matrix: ArrayLike, joint: ArrayLike, per_experience: bool = False) -> float | Floats:
    """Mean over experiences k of a_k - R[k, k]: what a learner failed to learn that a joint one did.

    Args:
        joint: a, (T,) percent on experience k of a model trained jointly on experiences 0 to k, among the same classes.
        per_experience: Give the (t,) differences in place of their mean. Negative ones are legal.

    Source: Chaudhry et al. 2018, section 3.2.

    >>> intransigence([[90, 10, 5], [70, 80, 15], [60, 70, 85]], joint=[92, 88, 90])
    5.0
    """
    R = learned_part(matrix)
    missed = learned_entries("joint", joint, len(R)) - R.diagonal()
    return missed if per_experience else mean(missed)


def per_class_accuracy(confusion: ArrayLike, first_seen: ArrayLike) -> Floats:
    """Accuracy of each class over time: P.

    Args:
        confusion: (t, K, K) counts, true slot by predicted slot, after each experience.
        first_seen: (K,) the experience that brought each slot.

    Returns:
        (t, K) percent; NaN for a class not seen yet or without test samples.
    """
    P = class_accuracy(confusion)
    if P.ndim != 2:
        raise ShapeError(f"confusion has shape {np.shape(confusion)}; (t, K, K) is needed.")
    return once_seen(P, first_seen)


def once_seen(per_class: Floats, first_seen: ArrayLike) -> Floats:
    """P, (t, K), with NaN for each class in the rows before the experience that brought it."""
    return np.where(_first_seen(first_seen, per_class) <= np.arange(len(per_class))[:, None], per_class, np.nan)


def per_class_forgetting(per_class: ArrayLike, first_seen: ArrayLike) -> Floats:
    """Chaudhry's forgetting with classes in place of experiences.

    Its mean over the classes of an experience is not the forgetting of the experience: maximum and mean do not commute.

    Args:
        per_class: P, (t, K) percent, from :func:`per_class_accuracy`.
        first_seen: (K,) the experience that brought each slot.

    Returns:
        (K,) points: the best of rows first_seen to t - 2 minus the last row; NaN for classes of the last experience.

    >>> per_class_forgetting([[100, 0], [0, 100], [50, 50]], first_seen=[0, 0]).tolist()
    [50.0, 50.0]
    """
    P = floats("per_class", per_class, ndim=2)
    first = _first_seen(first_seen, P)
    last = len(P) - 1
    fallen = np.full(P.shape[1], np.nan)
    for slot in np.flatnonzero(first < last):
        fallen[slot] = P[first[slot] : last, slot].max() - P[last, slot]
    return fallen


class ForgettingSpread(NamedTuple):
    """Mean and population standard deviation in points, the worst class, and counts between ``edges``."""

    mean: float
    std: float
    worst: float
    worst_slot: int | None
    histogram: Ints
    edges: Floats


def forgetting_spread(per_class: ArrayLike, bins: int = 20) -> ForgettingSpread:
    """Describe how forgetting is shared out among classes.

    Args:
        per_class: (K,) points, from :func:`per_class_forgetting`. NaN entries (the newest classes) are left out.
        bins: Equal bins between -100 and 100 for the histogram.

    Returns:
        The description; NaN, no slot and an empty histogram where no class could have been forgotten.
    """
    values = floats("per_class", per_class, ndim=1)
    known = np.flatnonzero(~np.isnan(values))
    histogram, edges = np.histogram(values[known], bins=bins, range=(-100.0, 100.0))
    if not len(known):
        return ForgettingSpread(np.nan, np.nan, np.nan, None, histogram, edges)
    worst = int(known[values[known].argmax()])
    return ForgettingSpread(
        float(values[known].mean()), float(values[known].std()), float(values[worst]), worst, histogram, edges
    )


def _first_seen(first_seen: ArrayLike, per_class: Floats) -> Ints:
    first = slots("first_seen", first_seen)
    if len(first) != per_class.shape[1]:
        raise ShapeError(
            f"first_seen has {len(first)} entries; there are {per_class.shape[1]} slots, and each needs one."
        )
    return first
