"""Any-time metrics: accuracy between the boundaries of a stream (De Lange et al. 2023).

For each experience j there is a series of evaluations on its test data: update numbers u, rising, counted from 1 over
the whole stream, and accuracies a_j(u) in percent. ``ends`` are the last updates of the experiences: experience j is
trained in the updates after ``ends[j - 1]`` up to ``ends[j]``. Evaluate often, on all experiences learned so far; how
often belongs beside every number, as windows count evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError
from cil.metrics._arrays import Floats, Ints, check_same_shape, floats, mean, ratio

Series = Mapping[int, tuple[ArrayLike, ArrayLike]]


def min_accuracy(series: Series, ends: ArrayLike, update: int | None = None) -> float:
    """Mean over earlier experiences of the lowest accuracy each has had since it was learned (min-ACC).

    Evaluations during an experience's own training start at chance, and do not count.

    Args:
        update: Moment of the metric; by default that of the last evaluation.

    Returns:
        Percent; NaN in the first experience, or if an earlier one has not been evaluated since its end.

    Source: De Lange et al. 2023.

    >>> min_accuracy({0: ([3, 4, 5, 6], [90, 30, 50, 70]), 1: ([4, 5, 6], [40, 60, 80])}, ends=[3, 6])
    30.0
    """
    known, last, now, current = _moment(series, ends, update)
    lowest = []
    for j in range(current):
        u, a = known.get(j, _NOTHING)
        since = a[(u > last[j]) & (u <= now)]
        lowest.append(since.min() if len(since) else np.nan)
    return mean(lowest)


def worst_case_accuracy(series: Series, ends: ArrayLike, update: int | None = None) -> float:
    """Mean of the current accuracy and the lowest ones of the k earlier experiences, each weighing 1/(k + 1) (WC-ACC).

    Args:
        update: Moment of the metric; by default that of the last evaluation. The current accuracy is the latest
            one by then.

    Returns:
        Percent; in the first experience, the accuracy itself. NaN if one of the k + 1 has not been evaluated.

    >>> worst_case_accuracy({0: ([3, 4, 5, 6], [90, 30, 50, 70]), 1: ([4, 5, 6], [40, 60, 80])}, ends=[3, 6])
    55.0
    """
    known, _, now, current = _moment(series, ends, update)
    u, a = known.get(current, _NOTHING)
    by_now = a[u <= now]
    here = float(by_now[-1]) if len(by_now) else float("nan")
    return here if current == 0 else (here + current * min_accuracy(series, ends, now)) / (current + 1)


def windowed_forgetting(accuracies: ArrayLike, delta: int) -> float:
    """Largest fall within any ``delta`` consecutive evaluations of one experience, at least 0 (WF).

    Args:
        accuracies: (n,) percent, in order of time. A series shorter than the window is one window.
        delta: Evaluations in a window, 2 or more.

    Returns:
        Points; NaN if n < 2 or an accuracy is NaN.

    Raises:
        DataError: if delta < 2.

    >>> windowed_forgetting([20, 60, 90, 30, 50, 70], delta=2), windowed_plasticity([20, 60, 90, 30, 50, 70], delta=3)
    (60.0, 70.0)
    """
    return windowed_plasticity(-floats("accuracies", accuracies, ndim=1), delta)


def windowed_plasticity(accuracies: ArrayLike, delta: int) -> float:
    """Largest rise within any ``delta`` consecutive evaluations of one experience, at least 0 (WP).

    Arguments, result and errors as for :func:`windowed_forgetting`.
    """
    a = floats("accuracies", accuracies, ndim=1)
    if delta < 2:
        raise DataError(f"delta is {delta}; a window holds 2 evaluations or more.")
    if len(a) < 2:
        return float("nan")
    rises = [(a[lag:] - a[:-lag]).max() for lag in range(1, min(delta, len(a)))]
    return float(np.max([0.0, *rises]))


class StabilityGap(NamedTuple):
    """Fall from before the switch to the lowest point after it, what was regained by the end (points), and when.

    ``recovery_updates`` counts updates from the switch to the first evaluation, from the lowest one on, that reaches
    95 % of the accuracy before the switch: inf if none does, 0 if it never fell below.
    """

    gap: float
    recovery: float
    recovery_updates: float


def stability_gap(
    updates: ArrayLike, accuracies: ArrayLike, start: int, end: int, first: int | None = None
) -> StabilityGap:
    """How an earlier experience fares while a later one is being learned.

    Args:
        updates: (n,) rising update numbers.
        accuracies: (n,) percent on the earlier experience.
        start: Last update before the later experience, which lasts until ``end``.
        end: Last update of the later experience.
        first: Look for the lowest point in so many evaluations of the later experience; by default in all.

    Returns:
        The gap; NaN without an evaluation on each side of the switch, or with a NaN among those used.

    >>> stability_gap([1, 2, 3, 4, 5, 6], [20, 60, 90, 30, 50, 70], start=3, end=6)
    StabilityGap(gap=60.0, recovery=40.0, recovery_updates=inf)
    """
    u, a = _evaluations("updates", updates, accuracies)
    before, after = a[u <= start][-1:], a[(u > start) & (u <= end)]
    if not len(before) or not len(after) or np.isnan([*before, *after]).any():
        return StabilityGap(np.nan, np.nan, np.nan)
    lowest = int(after[:first].argmin())
    enough = 0.95 * before[0]
    back = np.flatnonzero(after[lowest:] >= enough)
    since = u[(u > start) & (u <= end)][lowest:] - start
    if after[lowest] >= enough:
        recovery_updates = 0.0
    else:
        recovery_updates = float(since[back[0]]) if len(back) else float("inf")
    return StabilityGap(float(before[0] - after[lowest]), float(after[-1] - after[lowest]), recovery_updates)


def average_anytime_accuracy(series: Series, ends: ArrayLike) -> float:
    """Mean over time of the mean accuracy on the experiences seen (AAA).

    Each evaluation weighs as many updates as have passed since the one before.

    Args:
        series: experience to (updates, accuracies). At each evaluation every experience begun by then is needed.

    Returns:
        Percent; NaN if an evaluation of a seen experience is missing or NaN.

    >>> e0, e1 = ([1, 2, 3, 4, 5, 6], [20, 60, 90, 30, 50, 70]), ([4, 5, 6], [40, 60, 80])
    >>> round(average_anytime_accuracy({0: e0, 1: e1}, ends=[3, 6]), 4)
    55.8333
    """
    known, last = _check_series(series, ends)
    times = np.unique(np.concatenate([u for u, _ in known.values()]))
    table = np.full((len(last), len(times)), np.nan)
    for j, (u, a) in known.items():
        table[j, np.searchsorted(times, u)] = a
    seen = np.arange(len(last))[:, None] <= _current(last, times)
    weights = np.diff(times, prepend=0.0)
    now = np.where(seen, table, 0.0).sum(0) / seen.sum(0)
    return float(ratio((weights * now).sum(), weights.sum()))


class AnytimeSummary(NamedTuple):
    """All any-time metrics at the last evaluation: percent and points. Those by window are keyed by its length."""

    min_accuracy: float
    worst_case_accuracy: float
    windowed_forgetting: dict[int, float]
    windowed_plasticity: dict[int, float]
    stability_gaps: dict[tuple[int, int], StabilityGap]
    average_anytime_accuracy: float


def anytime(
    series: Series, ends: ArrayLike, deltas: Sequence[int] = (10, 100), first: int | None = None
) -> AnytimeSummary:
    """Every metric of this file from one set of series.

    Args:
        series: experience to (updates, accuracies), one entry for each of the T experiences or fewer.
        ends: (T,) last update of each experience, rising.
        deltas: Windows, in evaluations; windowed metrics are means over the experiences.
        first: Number of evaluations; see :func:`stability_gap`.

    Returns:
        The metrics; ``stability_gaps`` is keyed by (earlier experience, later experience).

    Raises:
        ShapeError: if updates and accuracies of an experience differ in length.
        DataError: if ``ends`` or updates do not rise, an experience is not in 0 to T - 1, or none is evaluated.
    """
    known, last = _check_series(series, ends)
    return AnytimeSummary(
        min_accuracy(series, ends),
        worst_case_accuracy(series, ends),
        {delta: mean([windowed_forgetting(a, delta) for _, a in known.values()]) for delta in deltas},
        {delta: mean([windowed_plasticity(a, delta) for _, a in known.values()]) for delta in deltas},
        {
            (j, k): stability_gap(*known[j], start=int(last[k - 1]), end=int(last[k]), first=first)
            for k in range(1, len(last))
            for j in sorted(known)
            if j < k
        },
        average_anytime_accuracy(series, ends),
    )


_NOTHING: tuple[Floats, Floats] = (np.empty(0), np.empty(0))


def _moment(
    series: Series, ends: ArrayLike, update: int | None
) -> tuple[dict[int, tuple[Floats, Floats]], Floats, int, int]:
    known, last = _check_series(series, ends)
    now = int(max(u[-1] for u, _ in known.values() if len(u))) if update is None else update
    return known, last, now, int(_current(last, np.asarray(now)))


def _current(last: Floats, updates: Floats) -> Ints:
    """The experience being learned at each update; the last one for what comes after the end."""
    return np.asarray(np.minimum(np.searchsorted(last, updates, side="left"), len(last) - 1))


def _check_series(series: Series, ends: ArrayLike) -> tuple[dict[int, tuple[Floats, Floats]], Floats]:
    last = floats("ends", ends, ndim=1)
    if not len(last) or (np.diff(last) <= 0).any():
        raise DataError(f"ends are {last.tolist()}; rising update numbers are needed, one for each experience.")
    wrong = sorted(j for j in series if not 0 <= j < len(last))
    if wrong:
        raise DataError(f"series has experience {wrong[0]}; ends know 0 to {len(last) - 1}.")
    known = {j: _evaluations(f"updates of experience {j}", u, a) for j, (u, a) in series.items()}
    if not any(len(u) for u, _ in known.values()):
        raise DataError("series holds no evaluation; at least one is needed.")
    return known, last


def _evaluations(name: str, updates: ArrayLike, accuracies: ArrayLike) -> tuple[Floats, Floats]:
    u, a = floats(name, updates, ndim=1), floats("accuracies", accuracies, ndim=1)
    check_same_shape(name, u, "accuracies", a)
    if (np.diff(u) <= 0).any():
        raise DataError(f"{name} do not rise; evaluations are in order of time, one for each update.")
    return u, a
