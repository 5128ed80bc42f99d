"""Streams whose classes stay while the images change: domains, corruptions, and groups within a test set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.metrics._arrays import Floats, Ints, check_same_shape, floats, learned_part, mean, ratio


class DomainSummary(NamedTuple):
    """Percent: means of the diagonal, the superdiagonal, and what lies below and above the diagonal of R."""

    in_domain: float
    next_domain: float
    backward: float
    forward: float


def domain_summary(matrix: ArrayLike) -> DomainSummary:
    """Four means of a fully evaluated R.

    Args:
        matrix: R, (t, T) percent; every class is known after experience 0, so the entries above the diagonal count.

    Returns:
        The means; all but ``in_domain`` are NaN for t = 1.

    Source: Lin et al. 2021 (CLEAR).

    >>> in_domain, next_domain, backward, forward = domain_summary([[90, 10, 5], [70, 80, 15], [60, 70, 85]])
    >>> in_domain, next_domain, round(backward, 4), forward
    (85.0, 12.5, 66.6667, 10.0)
    """
    R = learned_part(matrix)
    return DomainSummary(
        in_domain=mean(R.diagonal()),
        next_domain=mean(R.diagonal(offset=1)),
        backward=mean(R[np.tril_indices(len(R), k=-1)]),
        forward=mean(R[np.triu_indices(len(R), k=1)]),
    )


def corruption_error(
    errors: ArrayLike, reference: ArrayLike, *, clean: float = 0.0, reference_clean: float = 0.0
) -> Floats:
    """Error under each corruption, summed over severities, as a ratio to that of a reference model (CE).

    The mean over corruptions is mCE. With the two clean errors it is the relative CE: what the corruption adds.

    Args:
        errors: (C, S) error of corruption c at severity s, in any unit.
        reference: (C, S) the same of the reference model, in the same unit.
        clean: Error without corruption, same unit.
        reference_clean: That of the reference model.

    Returns:
        (C,) ratios, no unit: below 1 is better than the reference. NaN where the reference sum is 0.

    Source: Hendrycks & Dietterich 2019.

    >>> corruption_error([[10, 20]], [[20, 20]]).tolist()
    [0.75]
    >>> corruption_error([[10, 20]], [[20, 20]], clean=5, reference_clean=10).tolist()
    [1.0]
    """
    own, other = floats("errors", errors, ndim=2), floats("reference", reference, ndim=2)
    check_same_shape("errors", own, "reference", other)
    return ratio((own - clean).sum(1), (other - reference_clean).sum(1))


class GroupSummary(NamedTuple):
    """Worst accuracy and best minus worst, in the unit given; the worst group; the groups too small to rank."""

    worst_group_accuracy: float
    disparity: float
    worst_group: int | None
    unranked: Ints


def group_summary(accuracy: ArrayLike, tested: ArrayLike, smallest: int = 10) -> GroupSummary:
    """Worst group and spread over groups (regions, attributes, domains).

    Args:
        accuracy: (G,) percent.
        tested: (G,) test samples of each group.
        smallest: Groups with fewer samples are listed in ``unranked`` and not ranked.

    Returns:
        The summary. NaN and no group if no group can be ranked, or the accuracy of one that should be is NaN.

    >>> group_summary([90, 80, 65, 0], tested=[50, 50, 50, 9])
    GroupSummary(worst_group_accuracy=65.0, disparity=25.0, worst_group=2, unranked=array([3]))
    """
    values, samples = floats("accuracy", accuracy, ndim=1), floats("tested", tested, ndim=1)
    check_same_shape("accuracy", values, "tested", samples)
    ranked, unranked = np.flatnonzero(samples >= smallest), np.flatnonzero(samples < smallest)
    if not len(ranked) or np.isnan(values[ranked]).any():
        return GroupSummary(np.nan, np.nan, None, unranked)
    worst = int(ranked[values[ranked].argmin()])
    return GroupSummary(float(values[worst]), float(values[ranked].max() - values[worst]), worst, unranked)
