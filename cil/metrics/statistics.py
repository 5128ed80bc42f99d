"""Numbers over seeds: one entry is one run, with its own class order, initialisation and data order."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from cil.errors import DataError
from cil.metrics._arrays import Floats, check_same_shape, floats, mean


class Interval(TypedDict):
    """Mean, sample standard deviation (n - 1) and a confidence interval, in the unit of the values."""

    n: int
    mean: float
    std: float
    half_width: float
    low: float
    high: float
    level: float


def ci(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's confidence interval of the mean: mean +- t * s / sqrt(n).

    Args:
        values: (n,) one number for each seed.
        level: Between 0 and 1.

    Returns:
        The interval. Its width is NaN for n < 3, where the values themselves say more; ``std`` is NaN for n < 2. A NaN
        among the values (a run that failed) makes all NaN.

    Raises:
        DataError: if level is not between 0 and 1.

    >>> {key: round(value, 6) for key, value in ci([70, 72, 74]).items()}
    {'n': 3, 'mean': 72.0, 'std': 2.0, 'half_width': 4.968275, 'low': 67.031725, 'high': 76.968275, 'level': 0.95}
    """
    if not 0 < level < 1:
        raise DataError(f"level is {level}; allowed is between 0 and 1.")
    from scipy.stats import t as student

    x = floats("values", values, ndim=1)
    n, centre, std = len(x), mean(x), _std(x)
    half = float(student.ppf((1 + level) / 2, n - 1)) * std / np.sqrt(n) if n >= 3 else float("nan")
    return Interval(
        n=n,
        mean=centre,
        std=std,
        half_width=float(half),
        low=float(centre - half),
        high=float(centre + half),
        level=level,
    )


class Paired(TypedDict):
    """Mean and sample standard deviation of the differences a - b, Student's t and its two-sided p."""

    n: int
    mean_difference: float
    std_difference: float
    t: float
    p: float


def paired(a: ArrayLike, b: ArrayLike) -> Paired:
    """Compare two methods run on the same seeds, class orders and data orders (paired t-test, two-sided).

    Args:
        a: (n,) one number for each seed.
        b: (n,) the other method, entry i on the same seed as entry i of ``a``.

    Returns:
        The test; t and p are NaN for n < 2 or if all differences are equal, as then no spread is known.

    Raises:
        ShapeError: if the lengths differ.

    >>> test = paired([70, 72, 74, 71, 73], [69, 70, 73, 70, 71])
    >>> round(test["mean_difference"], 6), round(test["t"], 6), round(test["p"], 6)
    (1.4, 5.715476, 0.004636)
    """
    from scipy.stats import t as student

    first, second = floats("a", a, ndim=1), floats("b", b, ndim=1)
    check_same_shape("a", first, "b", second)
    difference = first - second
    n, centre, std = len(difference), mean(difference), _std(difference)
    rounding = 1e-12 * max(np.abs(first).max(initial=0.0), np.abs(second).max(initial=0.0))
    t = centre / (std / np.sqrt(n)) if std > rounding else float("nan")
    p = 2 * student.sf(abs(t), n - 1)
    return Paired(n=n, mean_difference=centre, std_difference=std, t=float(t), p=float(p))


def holm(p: ArrayLike) -> Floats:
    """Correct the p of several tests for their number: each is the smallest level at which its test still holds.

    Args:
        p: (m,) of the single tests. NaN (no test was possible) stays NaN and counts as no test.

    Returns:
        (m,) at most 1: of the i-th smallest p, the largest of (m - j + 1) p_j up to it.

    Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
    [0.03, 0.06, 0.06]
    """
    single = floats("p", p, ndim=1)
    corrected = np.full(len(single), np.nan)
    order = np.argsort(single, kind="stable")[: int((~np.isnan(single)).sum())]  # NaN come last
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * single[order]), 1.0)
    return corrected


def _std(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
