"""Metrics: pure functions from arrays to numbers. No model, no state, nothing of torch.

Accuracies, forgetting and transfer are percent. Undefined numbers are NaN, never 0; a record writes null. The
class-by-class confusion over time, (t, K, K), is what is stored: nearly everything else can be counted from it again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import ShapeError
from cil.metrics._arrays import floats

# isort: off
# fmt: off
from cil.metrics.accuracy import (
    OldNew, accuracy_curve, accuracy_from_counts, accuracy_matrix, average_accuracy, average_incremental_accuracy,
    class_accuracy, confusion_cells, confusion_matrix, confusion_of, counts_by_experience, last_accuracy,
    learning_accuracy, mean_class_accuracy, old_new_harmonic, overall_average_accuracy, top_k_accuracy,
)
from cil.metrics.calibration import BinnedError, Calibration, binned_error, calibration
from cil.metrics.compute import (
    Resources, add_resources, best_of, geometric_speed_up, pareto_front, performance_profile, profile_score,
    time_over_studies, time_to_target,
)
from cil.metrics.curves import area, area_over_samples, auc, prequential
from cil.metrics.decomposition import (
    Decomposition, cil_decomposition, decomposition_from_confusion, recency_ratio, task_confusion,
)
from cil.metrics.domains import DomainSummary, GroupSummary, corruption_error, domain_summary, group_summary
from cil.metrics.multilabel import MeanPrecision, average_precision, mean_average_precision
from cil.metrics.open_set import OpenSet, open_set
from cil.metrics.ranking import Ranking, alike, critical_difference, friedman
from cil.metrics.stability import (
    AnytimeSummary, StabilityGap, anytime, average_anytime_accuracy, min_accuracy, stability_gap,
    windowed_forgetting, windowed_plasticity, worst_case_accuracy,
)
from cil.metrics.statistics import Interval, Paired, ci, holm, paired
from cil.metrics.task_errors import (
    area_under_errors, chance_error, chance_error_multilabel, later_change, mean_error, mean_error_by,
    normalised_scores, relative_error,
)
from cil.metrics.transfer import (
    VARIANTS, ForgettingSpread, Remembering, backward_transfer, forgetting, forgetting_spread, forward_transfer,
    intransigence, once_seen, per_class_accuracy, per_class_forgetting, remembering,
)

# fmt: on
# isort: on

__all__ = [
    "VARIANTS", "AnytimeSummary", "BinnedError", "Calibration", "Decomposition", "DomainSummary", "ForgettingSpread",
    "GroupSummary", "Interval", "MeanPrecision", "OldNew", "OpenSet", "Paired", "Ranking", "Remembering", "Resources",
    "StabilityGap", "accuracy_curve", "accuracy_from_counts", "accuracy_matrix", "add_resources", "alike", "anytime",
    "area", "area_over_samples", "area_under_errors", "auc", "average_accuracy", "average_anytime_accuracy",
    "average_incremental_accuracy", "average_precision", "backward_transfer", "best_of", "binned_error", "calibration",
    "chance_error", "chance_error_multilabel", "ci", "cil_decomposition", "class_accuracy", "confusion_cells",
    "confusion_matrix", "confusion_of", "corruption_error", "counts_by_experience", "critical_difference",
    "decomposition_from_confusion", "domain_summary", "forgetting", "forgetting_spread", "forward_transfer", "friedman",
    "geometric_speed_up", "group_summary", "holm", "intransigence", "last_accuracy", "later_change",
    "learning_accuracy", "mean_average_precision", "mean_class_accuracy", "mean_error", "mean_error_by", "min_accuracy",
    "normalised_scores", "old_new_harmonic", "once_seen", "open_set", "overall_average_accuracy", "paired",
    "pareto_front", "per_class_accuracy", "per_class_forgetting", "performance_profile", "plain", "prequential",
    "profile_score", "recency_ratio", "relative_error", "remembering", "stability_gap", "summary", "summary_of_counts",
    "task_confusion",
    "time_over_studies", "time_to_target", "top_k_accuracy", "windowed_forgetting", "windowed_plasticity",
    "worst_case_accuracy",
]  # fmt: skip


def summary(
    confusion: ArrayLike,
    task_aware: ArrayLike,
    experience_of_slot: ArrayLike,
    initial: ArrayLike | None = None,
    *,
    counts: tuple[ArrayLike, ArrayLike] | None = None,
) -> dict[str, Any]:
    """The accuracy part of a record's results, ready for JSON: NaN is ``None``.

    The stream has T experiences and K slots; t of them have been learned, so an unfinished run hands in fewer rows.

    Args:
        confusion: (t, K, K) counts, true slot by predicted slot, after each experience learned.
        task_aware: R with the experience known, (t, T) or more rows, percent and NaN: argmax within its slots.
        experience_of_slot: (K,) the experience that brought each slot.
        initial: (T,) percent of the untrained network, if it was evaluated; without it no forward transfer.
        counts: Right answers (t, T) and test samples (T,) or (t, T) of each experience, for streams whose classes
            re-appear: a confusion by class cannot tell their experiences apart. By default counted from ``confusion``.

    Returns:
        ``accuracy_matrix`` and ``accuracy_matrix_task_aware`` (t rows of T), ``accuracy_curve`` (t),
        ``average_incremental_accuracy``, ``last_accuracy``, ``average_accuracy``, ``forgetting``,
        ``backward_transfer``, ``forward_transfer`` and ``class_counts`` (K test images; None for a class not met yet).

    Raises:
        ShapeError: if the shapes do not fit each other.
    """
    by_class = np.asarray(confusion)
    if by_class.ndim != 3:
        raise ShapeError(f"confusion has shape {by_class.shape}; (t, K, K) is needed.")
    aware = floats("task_aware", task_aware, ndim=2)
    steps, experiences = len(by_class), aware.shape[1]
    if not steps <= len(aware) <= experiences:
        raise ShapeError(f"task_aware has shape {aware.shape}; confusion has {steps} rows: (t, T), t <= T, is needed.")
    correct, tested = counts_by_experience(by_class, experience_of_slot, experiences) if counts is None else counts
    shape = np.broadcast_shapes(np.shape(correct), np.shape(tested))
    if shape != (steps, experiences):
        raise ShapeError(f"counts give R the shape {shape}; confusion and task_aware need {(steps, experiences)}.")
    images = by_class[-1].sum(1) if steps else np.zeros(by_class.shape[1], np.int64)
    return summary_of_counts(correct, tested, aware, images, experience_of_slot, initial)


def summary_of_counts(
    correct: ArrayLike,
    tested: ArrayLike,
    task_aware: ArrayLike,
    images: ArrayLike,
    experience_of_slot: ArrayLike,
    initial: ArrayLike | None = None,
) -> dict[str, Any]:
    """The same from what was counted by experience: no confusion is needed.

    Args:
        correct, tested: Right answers (t, T) and test samples (T,) or (t, T) of each experience.
        task_aware, experience_of_slot, initial: As for ``summary``.
        images: (K,) test images of each slot after the last experience learned.
    """
    R, steps = accuracy_from_counts(correct, tested), len(np.asarray(correct))
    aware, by_slot = np.asarray(task_aware, np.float64), np.asarray(images)
    curve = accuracy_curve(R, tested)
    seen = (np.asarray(experience_of_slot) < steps) | (by_slot > 0)
    return {
        "accuracy_matrix": plain(R),
        "accuracy_matrix_task_aware": plain(aware[:steps]),
        "accuracy_curve": plain(curve),
        "average_incremental_accuracy": plain(average_incremental_accuracy(curve)),
        "last_accuracy": plain(last_accuracy(curve)),
        "average_accuracy": plain(average_accuracy(R)),
        "forgetting": plain(forgetting(R)),
        "backward_transfer": plain(backward_transfer(R)),
        "forward_transfer": None if initial is None else plain(forward_transfer(R, initial)),
        "class_counts": [int(count) if known else None for count, known in zip(by_slot, seen, strict=True)],
    }


def plain(values: ArrayLike) -> Any:
    """Nested lists of floats, or one float, with ``None`` for NaN."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(array), np.array(None), array).tolist()
