"""Class-incremental accuracy taken apart: finding the experience, then the class within it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError, ShapeError
from cil.metrics._arrays import Ints, mean, ratio, slots
from cil.metrics.accuracy import by_experience, check_scores, confusion_matrix


class Decomposition(NamedTuple):
    """Percent, NaN without samples. ``cil + inter_task + intra_task`` is 100, and ``cil <= min(til, tid)``.

    Attributes:
        cil: Right class among all seen.
        til: Right class among those of the true experience, which is given (task-aware accuracy).
        tid: Right experience, whatever the class.
        inter_task: Errors into another experience, 100 - tid.
        intra_task: Errors within the right experience, tid - cil.
        task_confusion: (T, T) int64 counts, true experience by predicted experience.
    """

    cil: float
    til: float
    tid: float
    inter_task: float
    intra_task: float
    task_confusion: Ints


def cil_decomposition(scores: ArrayLike, true: ArrayLike, experience_of_slot: ArrayLike) -> Decomposition:
    """Split accuracy into experience identification and accuracy within the experience.

    Per sample: the answer is right if and only if its experience is right and the best slot of the true experience is
    the true one. Ties go to the lowest slot.

    Args:
        scores: (N, K_i) over the classes seen; -inf is allowed, NaN is not.
        true: (N,) slots.
        experience_of_slot: (K_i,) the experience that brought each slot.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if a score is NaN or a slot is not in [0, K_i).

    Source: Soutif et al. 2021 for task confusion; the product of within-task and task-identification accuracy.

    >>> logits = [[3, 1, 2, 0], [0, 2, 3, 1], [1, 0, 2, 4], [5, 0, 4, 1]]
    >>> cil, til, tid, inter, intra, _ = cil_decomposition(logits, [0, 1, 2, 3], experience_of_slot=[0, 0, 1, 1])
    >>> cil, til, tid, inter, intra
    (25.0, 50.0, 50.0, 50.0, 25.0)
    """
    values, target = check_scores(scores, true)
    owner = slots("experience_of_slot", experience_of_slot)
    if len(owner) != values.shape[1]:
        raise ShapeError(f"experience_of_slot has {len(owner)} entries; scores have {values.shape[1]} columns.")
    within = np.empty_like(target)
    for experience in np.unique(owner[target]):
        rows, columns = np.flatnonzero(owner[target] == experience), np.flatnonzero(owner == experience)
        within[rows] = columns[values[np.ix_(rows, columns)].argmax(1)]
    confusion = confusion_matrix(target, values.argmax(1) if len(values) else target, len(owner))
    return decomposition_from_confusion(confusion, owner)._replace(til=100.0 * mean(within == target))


def decomposition_from_confusion(
    confusion: ArrayLike, experience_of_slot: ArrayLike, num_experiences: int | None = None
) -> Decomposition:
    """The same from a confusion alone; ``til`` is NaN, as it needs the scores.

    Args:
        confusion: (K, K) counts, true slot by predicted slot.
        experience_of_slot: (K,) the experience that brought each slot.
        num_experiences: T; by default one more than the largest entry of ``experience_of_slot``.
    """
    tasks = task_confusion(confusion, experience_of_slot, num_experiences)
    samples = tasks.sum()
    right = float(ratio(100.0 * np.trace(np.asarray(confusion)), samples))
    found = float(ratio(100.0 * np.trace(tasks), samples))
    return Decomposition(right, np.nan, found, 100.0 - found, found - right, tasks)


def task_confusion(confusion: ArrayLike, experience_of_slot: ArrayLike, num_experiences: int | None = None) -> Ints:
    """Sum a confusion over slots to one over experiences: (K, K) to (T, T) int64, true by predicted.

    >>> task_confusion([[2, 0, 1], [0, 1, 0], [1, 0, 4]], experience_of_slot=[0, 0, 1]).tolist()
    [[3, 1], [1, 4]]
    """
    counts, owner, num_experiences = by_experience(confusion, experience_of_slot, num_experiences)
    if counts.ndim != 2:
        raise ShapeError(f"confusion has shape {counts.shape}; (K, K) is needed.")
    member = np.eye(num_experiences, dtype=np.int64)[owner]  # (K, T)
    return member.T @ counts.astype(np.int64) @ member


def recency_ratio(task_counts: ArrayLike, newest: int) -> float:
    """Share of answers that name the newest experience, divided by its share of the test samples; 1 is unbiased.

    Args:
        task_counts: (T, T) counts, from :func:`task_confusion`.
        newest: The experience just learned.

    Returns:
        A ratio, no unit; NaN if the newest experience has no test samples.

    >>> recency_ratio([[1, 1], [1, 1]], newest=1)
    1.0
    """
    counts = np.asarray(task_counts)
    if not 0 <= newest < len(counts):
        raise DataError(f"newest is {newest}; allowed is 0 to {len(counts) - 1}.")
    return float(ratio(counts[:, newest].sum(), counts[newest].sum()))
