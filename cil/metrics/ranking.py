"""Several methods on several workloads: mean ranks, and how far apart they must be to differ (Demsar 2006)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError
from cil.metrics._arrays import Floats, floats


class Ranking(NamedTuple):
    """Mean ranks of k methods over N workloads, and whether they differ at all.

    Attributes:
        ranks: (k,) mean rank, 1 is best; of equal scores each has the mean of their ranks.
        chi2, p: Friedman's statistic, and its p by the chi-square distribution with k - 1 degrees of freedom.
        f, f_p: The same as Iman and Davenport's F, which is less conservative, and its p.
    """

    ranks: Floats
    chi2: float
    p: float
    f: float
    f_p: float


def friedman(scores: ArrayLike) -> Ranking:
    """Rank methods on each workload, and test whether their mean ranks differ.

    Workloads must be independent: average over seeds first, then rank over streams.

    Args:
        scores: (N, k) higher is better; a NaN cannot be ranked.

    Returns:
        The ranking; its tests are NaN where all scores of each workload are equal.

    Raises:
        DataError: for fewer than 3 methods or 2 workloads, or a NaN.

    Source: Demsar 2006, section 3.2.2, with the usual correction for ties.

    >>> found = friedman([[80, 75, 70], [60, 65, 50], [90, 85, 80], [70, 68, 60]])
    >>> found.ranks.tolist(), [round(float(value), 6) for value in found[1:]]
    ([1.25, 1.75, 3.0], [6.5, 0.038774, 13.0, 0.006592])
    """
    from scipy.stats import chi2 as chi_square
    from scipy.stats import f as fisher
    from scipy.stats import rankdata

    x = floats("scores", scores, ndim=2)
    count, methods = x.shape
    if methods < 3 or count < 2 or np.isnan(x).any():
        raise DataError(
            f"scores are {count} workloads x {methods} methods, {int(np.isnan(x).sum())} of them NaN; at least 2 x 3 "
            "and no NaN are needed."
        )
    ranks = rankdata(-x, axis=1)
    centre = ranks.mean(0)
    between = count * ((centre - (methods + 1) / 2) ** 2).sum()
    within = ((ranks - (methods + 1) / 2) ** 2).sum() / (count * (methods - 1))  # k (k + 1) / 12 without ties
    if within == 0:
        return Ranking(centre, *[float("nan")] * 4)
    statistic = between / within
    rest = count * (methods - 1) - statistic
    f = (count - 1) * statistic / rest if rest > 1e-12 else float("inf")
    return Ranking(
        centre,
        float(statistic),
        float(chi_square.sf(statistic, methods - 1)),
        float(f),
        float(fisher.sf(f, methods - 1, (methods - 1) * (count - 1))),
    )


def critical_difference(methods: int, workloads: int, level: float = 0.05) -> float:
    """Difference of two mean ranks from which on two methods differ, among all pairs (Nemenyi).

    Args:
        methods: k, 2 or more.
        workloads: N, 1 or more.
        level: Chance of one false difference or more.

    Returns:
        q sqrt(k (k + 1) / (6 N)), q the quantile of the studentized range by sqrt 2.

    Source: Demsar 2006, section 3.2.2 and table 5.

    >>> round(critical_difference(3, 4), 6), round(critical_difference(3, 10), 3)
    (1.657247, 1.048)
    """
    from scipy.stats import studentized_range

    if methods < 2 or workloads < 1 or not 0 < level < 1:
        raise DataError(
            f"methods {methods}, workloads {workloads}, level {level}; 2 and 1 or more, and a level between 0 and 1, "
            "are needed."
        )
    quantile = float(studentized_range.ppf(1 - level, methods, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * workloads)))


def alike(ranks: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """Groups of methods that cannot be told apart: the bars of a critical-difference diagram.

    Args:
        ranks: Mean rank of each method.
        difference: From :func:`critical_difference`; mean ranks that are less apart are joined.

    Returns:
        Indices of each largest group of two or more, best rank first; a method may be in several.

    >>> alike([1.25, 1.75, 3.0], 1.657247), alike([1.0, 2.0, 4.0], 0.5)
    ([(0, 1), (1, 2)], [])
    """
    order = [int(index) for index in np.argsort(ranks, kind="stable")]
    found: list[tuple[int, ...]] = []
    last = 0  # end of the group before
    for start in range(len(order)):
        end = start
        while end < len(order) and ranks[order[end]] - ranks[order[start]] < difference:
            end += 1
        if end - start > 1 and end > last:
            found.append(tuple(order[start:end]))
            last = end
    return found
