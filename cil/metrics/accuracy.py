"""The accuracy matrix R, what it is counted from, and the accuracies read off it.

R[i, j] is the percentage of the test samples of experience j answered rightly after learning experience i, among the
classes seen by then. R has one row for each experience learned, (t, T) with t <= T. All accuracies are percent in
[0, 100]; what is undefined is NaN, and a NaN that a number depends on makes that number NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError, ShapeError
from cil.metrics._arrays import (
    Floats,
    Ints,
    check_same_shape,
    floats,
    learned_entries,
    learned_part,
    mean,
    ratio,
    slots,
)


def confusion_matrix(true: ArrayLike, predicted: ArrayLike, num_slots: int) -> Ints:
    """Count test samples by true and predicted slot.

    Args:
        true: (N,) slots.
        predicted: (N,) slots.
        num_slots: K, the size of the result: slots not seen yet keep rows and columns of zeros.

    Returns:
        (K, K) int64; entry [c, d] counts samples of slot c taken for slot d, so row c sums to the test samples of c.

    Raises:
        ShapeError: if ``true`` and ``predicted`` are not two vectors of one length.
        DataError: if a slot is not in [0, num_slots).

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], num_slots=2).tolist()
    [[1, 1], [0, 1]]
    """
    rows, columns = slots("true", true, num_slots), slots("predicted", predicted, num_slots)
    check_same_shape("true", rows, "predicted", columns)
    counts = np.bincount(rows * num_slots + columns, minlength=num_slots * num_slots)
    return counts.reshape(num_slots, num_slots).astype(np.int64)


def confusion_cells(true: ArrayLike, predicted: ArrayLike) -> Ints:
    """The cells of a confusion that are not zero: of many classes most are, and few samples fill few.

    Args:
        true, predicted: (N,) slots.

    Returns:
        (n, 3) int32, n <= N: true slot, predicted slot and count, in order.

    >>> confusion_cells([1, 0, 1], [0, 0, 0]).tolist()
    [[0, 0, 1], [1, 0, 2]]
    """
    pairs = np.stack([slots("true", true), slots("predicted", predicted)], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return np.concatenate([found, counts[:, None]], axis=1).astype(np.int32)


def confusion_of(cells: ArrayLike, num_slots: int) -> Ints:
    """The dense (K, K) int64 confusion of its cells, (n, 3).

    >>> confusion_of([[0, 0, 1], [1, 0, 2]], num_slots=2).tolist()
    [[1, 0], [2, 0]]
    """
    rows, columns, counts = np.asarray(cells).reshape(-1, 3).T
    confusion = np.zeros((num_slots, num_slots), np.int64)
    confusion[rows, columns] = counts
    return confusion


def accuracy_from_counts(correct: ArrayLike, tested: ArrayLike) -> Floats:
    """Percentage of right answers, entry by entry.

    With ``correct`` (t, T) and ``tested`` (T,) this is R of a stream whose classes re-appear in several experiences
    (domains, corruptions), where a confusion by class cannot tell the experiences apart.

    Args:
        correct: any shape, counts of right answers.
        tested: broadcast to that shape, counts of test samples.

    Returns:
        Array of the common shape, percent; NaN where nothing was tested.

    >>> accuracy_from_counts([[3, 0], [2, 1]], [4, 2]).tolist()
    [[75.0, 0.0], [50.0, 50.0]]
    """
    return ratio(100.0 * np.asarray(correct, np.float64), tested)


def counts_by_experience(
    confusion: ArrayLike, experience_of_slot: ArrayLike, num_experiences: int | None = None
) -> tuple[Ints, Ints]:
    """Sum a confusion over the slots of each experience.

    Args:
        confusion: (..., K, K) counts, true slot by predicted slot; one matrix, or one for each experience learned.
        experience_of_slot: (K,) the experience that brought each slot.
        num_experiences: T; by default the last experience of ``experience_of_slot`` is the last there is.

    Returns:
        Right answers and test samples of each experience, two (..., T) int64 arrays.

    Raises:
        ShapeError: if the confusion is not square or ``experience_of_slot`` has not K entries.
    """
    counts, owner, num_experiences = by_experience(confusion, experience_of_slot, num_experiences)
    member = np.eye(num_experiences, dtype=np.int64)[owner]  # (K, T)
    return counts.diagonal(axis1=-2, axis2=-1) @ member, counts.sum(-1) @ member


def by_experience(
    confusion: ArrayLike, experience_of_slot: ArrayLike, num_experiences: int | None
) -> tuple[Ints, Ints, int]:
    """Check a confusion (..., K, K) against the experiences of its K slots; fill in T if it is not given."""
    counts = np.asarray(confusion)
    if not np.issubdtype(counts.dtype, np.integer):
        raise DataError(f"confusion holds {counts.dtype}; counts are whole numbers.")
    owner = slots("experience_of_slot", experience_of_slot, num_experiences)
    if counts.ndim < 2 or counts.shape[-2:] != (len(owner), len(owner)):
        raise ShapeError(
            f"confusion has shape {counts.shape}; experience_of_slot needs (..., {len(owner)}, {len(owner)})."
        )
    if num_experiences is None:
        num_experiences = int(owner.max()) + 1 if len(owner) else 0
    return counts, owner, num_experiences


def accuracy_matrix(confusion: ArrayLike, experience_of_slot: ArrayLike, num_experiences: int | None = None) -> Floats:
    """Accuracy on each experience: R from the confusion over time, or one row of R from that of one evaluation.

    Args:
        confusion: (t, K, K) counts; matrix i was counted after learning experience i. Or (K, K) of one evaluation.
        experience_of_slot: (K,) the experience that brought each slot.
        num_experiences: T; by default one more than the largest entry of ``experience_of_slot``.

    Returns:
        (t, T) percent, or (T,); NaN where an experience has no test samples in an evaluation.

    >>> accuracy_matrix([[3, 1, 0], [0, 1, 0], [0, 0, 0]], experience_of_slot=[0, 0, 1]).tolist()
    [80.0, nan]
    """
    return accuracy_from_counts(*counts_by_experience(confusion, experience_of_slot, num_experiences))


def accuracy_curve(matrix: ArrayLike, tested: ArrayLike) -> Floats:
    """Accuracy on the union of the test sets of all experiences learned, after each of them: A_i.

    Args:
        tested: (T,) test samples of each experience, or (t, T) where they change over time.

    Returns:
        (t,) percent. An experience without test samples weighs nothing; a NaN of one that has some makes A_i NaN.

    >>> accuracy_curve([[90, None], [70, 80]], tested=[100, 300]).tolist()
    [90.0, 77.5]
    """
    R = learned_part(matrix)
    steps = len(R)
    weight = np.atleast_1d(np.asarray(tested, dtype=np.float64))[..., :steps]
    if weight.shape not in ((steps,), (steps, steps)):
        raise ShapeError(f"tested has shape {np.shape(tested)}; R with {steps} rows needs (T,) or (t, T) counts.")
    weight = np.tril(np.broadcast_to(weight, R.shape))  # j <= i
    return ratio(np.where(weight > 0, weight * R, 0.0).sum(1), weight.sum(1))


def average_incremental_accuracy(curve: ArrayLike, skip_base: bool = False) -> float:
    """Mean of the accuracy curve (Rebuffi et al. 2017).

    Args:
        curve: (t,) percent, from :func:`accuracy_curve`.
        skip_base: Leave out the first experience, as some papers do where it is larger than the others.

    >>> average_incremental_accuracy([90, 75, 75]), average_incremental_accuracy([90, 75, 75], skip_base=True)
    (80.0, 75.0)
    """
    return mean(floats("curve", curve, ndim=1)[int(skip_base) :])


def last_accuracy(curve: ArrayLike) -> float:
    """Last entry of the accuracy curve, percent; NaN of an empty one."""
    values = floats("curve", curve, ndim=1)
    return float(values[-1]) if len(values) else float("nan")


def average_accuracy(matrix: ArrayLike) -> float:
    """Mean of the last row of R over the experiences learned, each weighing the same (ACC, Lopez-Paz & Ranzato 2017).

    The number after an earlier experience i is that of the rows up to it: ``average_accuracy(R[: i + 1])``.

    >>> round(average_accuracy([[90, 10, 5], [70, 80, 15], [60, 70, 85]]), 4)
    71.6667
    """
    return mean(learned_part(matrix)[-1:])


def overall_average_accuracy(matrix: ArrayLike) -> float:
    """Mean over experiences i of the unweighted mean of R[i, j], j <= i: percent."""
    R = learned_part(matrix)
    return mean([average_accuracy(R[: step + 1]) for step in range(len(R))])


def learning_accuracy(matrix: ArrayLike) -> float:
    """Mean of the diagonal of R: percent on each experience just after learning it."""
    return mean(learned_part(matrix).diagonal())


def mean_class_accuracy(confusion: ArrayLike) -> float:
    """Mean over classes of the accuracy of each class (macro recall), percent.

    Args:
        confusion: (K, K) counts, true slot by predicted slot. A slot without test samples, as all unseen ones, is left
            out; without any sample the mean is NaN.

    >>> mean_class_accuracy([[1, 0], [3, 0]])
    50.0
    """
    if np.ndim(confusion) != 2:
        raise ShapeError(f"confusion has shape {np.shape(confusion)}; (K, K) is needed.")
    values = class_accuracy(confusion)
    return mean(values[~np.isnan(values)])


def class_accuracy(confusion: ArrayLike) -> Floats:
    """Accuracy of each class: (..., K, K) counts to (..., K) percent, NaN for a slot without test samples."""
    counts = np.asarray(confusion)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2]:
        raise ShapeError(f"confusion has shape {counts.shape}; (..., K, K) is needed.")
    return accuracy_from_counts(counts.diagonal(axis1=-2, axis2=-1), counts.sum(-1))


def top_k_accuracy(scores: ArrayLike, true: ArrayLike, k: int) -> float:
    """Percentage of samples whose true slot is among the k best; ties go to the lowest slot.

    Args:
        scores: (N, K_i) over the classes seen; -inf is allowed, NaN is not.
        true: (N,) slots.
        k: 1 or more; with k >= K_i every answer is right.

    Returns:
        Percent; NaN for N = 0.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if k < 1, a slot is not in [0, K_i), or a score is NaN.

    >>> top_k_accuracy([[0.1, 0.5, 0.4], [0.2, 0.5, 0.3]], [2, 0], k=2)
    50.0
    """
    if k < 1:
        raise DataError(f"k is {k}; allowed is 1 and up.")
    values, owner = check_scores(scores, true)
    own = np.take_along_axis(values, owner[:, None], axis=1)
    before = np.arange(values.shape[1]) < owner[:, None]
    rank = ((values > own) | ((values == own) & before)).sum(1)
    return 100.0 * mean(rank < k)


def check_scores(scores: ArrayLike, true: ArrayLike) -> tuple[Floats, Ints]:
    """Check scores (N, K) without NaN against the true slots (N,)."""
    values = floats("scores", scores, ndim=2)
    if np.isnan(values).any():
        raise DataError(
            f"scores hold NaN in {np.isnan(values).any(1).sum()} of {len(values)} rows; they cannot be ranked."
        )
    owner = slots("true", true, stop=values.shape[1])
    if len(owner) != len(values):
        raise ShapeError(f"true has {len(owner)} entries, scores have {len(values)} rows; they must be the same.")
    return values, owner


class OldNew(NamedTuple):
    """Percent; ``gap`` is new minus old: positive where the learner favours what came last."""

    old: float
    new: float
    harmonic: float
    gap: float


def old_new_harmonic(matrix: ArrayLike, tested: ArrayLike, step: int) -> OldNew:
    """Accuracy on old and on new classes after one experience, and their harmonic mean.

    Args:
        tested: (T,) test samples of each experience: they weigh the old ones.
        step: i, the experience just learned, 0 <= i < t. At i = 0 nothing is old: all but ``new`` is NaN.

    Raises:
        DataError: if R has no such row.

    >>> old, new, harmonic, gap = old_new_harmonic([[90, 0, 0], [70, 80, 0], [60, 70, 85]], [100, 100, 200], step=2)
    >>> old, new, round(harmonic, 4), gap
    (65.0, 85.0, 73.6667, 20.0)
    """
    R = learned_part(matrix)
    if not 0 <= step < len(R):
        raise DataError(f"step is {step}; R has rows 0 to {len(R) - 1}.")
    weight = learned_entries("tested", tested, len(R))[:step]
    old = float(ratio(np.where(weight > 0, weight * R[step, :step], 0.0).sum(), weight.sum()))
    new = float(R[step, step])
    harmonic = 0.0 if old == new == 0 else 2 * old * new / (old + new)
    return OldNew(old, new, harmonic, new - old)
