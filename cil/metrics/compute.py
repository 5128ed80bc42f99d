"""Accuracy against compute: Pareto front, resources, time to a target, performance profiles, best of m trials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cil.errors import DataError
from cil.metrics._arrays import Floats, check_same_shape, floats


def pareto_front(cost: ArrayLike, error: ArrayLike) -> NDArray[np.bool_]:
    """(n,) true for points that no other one dominates: none is as good in both and better in one.

    Args:
        cost: (n,) FLOPs, for example; lower is better.
        error: (n,) lower is better.

    Returns:
        (n,) bool. A point with a NaN is never on the front; of equal points all are, or none.

    >>> pareto_front([1, 2, 3, 4], [0.5, 0.4, 0.45, 0.3]).tolist()
    [True, True, False, True]
    """
    x, y = floats("cost", cost, ndim=1), floats("error", error, ndim=1)
    check_same_shape("cost", x, "error", y)
    no_worse = (x[:, None] <= x) & (y[:, None] <= y)  # row against column; False wherever there is a NaN
    better = (x[:, None] < x) | (y[:, None] < y)
    return ~(no_worse & better).any(0) & ~np.isnan(x) & ~np.isnan(y)


class Resources(NamedTuple):
    """Resources that a piece of work took. None: unknown."""

    flops: int | None = 0
    peak_parameters: int | None = 0
    peak_bytes: int | None = 0


def add_resources(parts: Iterable[Resources]) -> Resources:
    """Add up resources: FLOPs are summed, the highest peak counts, and what is unknown in one is unknown in all.

    >>> add_resources([Resources(3, 10, 40), Resources(4, 8, None)])
    Resources(flops=7, peak_parameters=10, peak_bytes=None)
    """
    flops, *peaks = zip(*[Resources(), *parts], strict=True)
    return Resources(None if None in flops else sum(flops), *(None if None in peak else max(peak) for peak in peaks))


def time_to_target(times: ArrayLike, accuracy: ArrayLike, target: float) -> float:
    """First time at which the accuracy is the target or more; inf if it never is.

    Args:
        times: (n,) rising: updates, operations or seconds, evaluation excluded.
        accuracy: (n,) in the unit of the target; NaN reaches nothing.

    Raises:
        DataError: if the times do not rise.

    Source: Dahl et al. 2023 (AlgoPerf).

    >>> time_to_target([10, 20, 30], [50, 71, 69], target=70), time_to_target([10], [50], target=70)
    (20.0, inf)
    """
    t, a = floats("times", times, ndim=1), floats("accuracy", accuracy, ndim=1)
    check_same_shape("times", t, "accuracy", a)
    if (np.diff(t) <= 0).any():
        raise DataError(f"times are {t.tolist()}; they must rise.")
    reached = t[a >= target]
    return float(reached[0]) if len(reached) else float("inf")


def time_over_studies(times: ArrayLike) -> float:
    """Time of a workload: the best trial of each study, then the median over studies.

    Args:
        times: (studies, trials), inf where the target was not reached.

    >>> inf = float("inf")
    >>> time_over_studies([[inf, 120, 90], [100, inf, inf], [inf, inf, inf]])
    100.0
    """
    best = floats("times", times, ndim=2).min(1)
    middle = np.sort(best)[[(len(best) - 1) // 2, len(best) // 2]]
    return float(middle.mean())


def performance_profile(times: ArrayLike, tau: ArrayLike) -> Floats:
    """Share of workloads on which each learner takes at most tau times as long as the fastest one.

    Args:
        times: (S, W) above 0, inf where learner s did not reach the target of workload w.
        tau: (m,) factors, 1 or more.

    Returns:
        (S, m) in [0, 1], rising with tau. A workload that nobody reached counts for nobody.

    Raises:
        DataError: if a time is not above 0.

    >>> performance_profile([[10, 20], [20, 10]], [1, 2]).tolist()
    [[0.5, 1.0], [0.5, 1.0]]
    """
    return np.stack([(_ratios(times) <= factor).mean(1) for factor in floats("tau", tau, ndim=1)], axis=1)


def profile_score(times: ArrayLike, most: float = 4.0) -> Floats:
    """Area under each performance profile from 1 to ``most``, in [0, 1]; 1 for who is fastest everywhere.

    Args:
        times: (S, W), see :func:`performance_profile`.
        most: Factor over the fastest from which on a learner earns nothing.

    Returns:
        (S,), equal to the mean over workloads of max(0, most - r) / (most - 1).

    >>> inf = float("inf")
    >>> profile_score([[10, 20], [20, 10], [inf, 45]]).round(6).tolist()
    [0.833333, 0.833333, 0.0]
    """
    scores: Floats = np.clip((most - _ratios(times)) / (most - 1), 0, None).mean(1)
    return scores


def geometric_speed_up(reference: ArrayLike, times: ArrayLike) -> float:
    """Geometric mean over workloads of reference time by own time.

    >>> geometric_speed_up([10, 20], [20, 10])
    1.0
    """
    old, new = floats("reference", reference, ndim=1), floats("times", times, ndim=1)
    check_same_shape("reference", old, "times", new)
    return float(np.exp(np.log(old / new).mean()))


def _ratios(times: ArrayLike) -> Floats:
    t = floats("times", times, ndim=2)
    if not (t > 0).all():
        raise DataError(f"times are {t.tolist()}; numbers above 0 are needed, inf for a target not reached.")
    best = t.min(0)
    return np.where(np.isinf(t), np.inf, t / np.where(np.isinf(best), 1.0, best))


def best_of(scores: ArrayLike, draws: int) -> float:
    """Expected best of so many trials, drawn with replacement from those that were made.

    The best score of n trials grows with n: with different n compare these.

    Args:
        scores: (n,) higher is better.
        draws: 1 or more; with 1 it is the mean.

    Returns:
        In the unit of the scores; NaN without a score, or with a NaN among them.

    Raises:
        DataError: if ``draws`` is below 1.

    Source: The sum over i of x_(i) ((i/n)^m - ((i-1)/n)^m), x ascending: Dodge et al. 2019, equation 8.

    >>> [round(best_of([60, 70, 80], m), 4) for m in (1, 2, 3)]
    [70.0, 74.4444, 76.6667]
    """
    if draws < 1:
        raise DataError(f"draws is {draws}; 1 or more are needed.")
    x = np.sort(floats("scores", scores, ndim=1))
    if not len(x):
        return float("nan")
    below = (np.arange(len(x) + 1) / len(x)) ** draws
    return float((x * np.diff(below)).sum())
