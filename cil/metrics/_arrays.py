"""Arrays of metrics: made of any input, their shapes checked; and means that may be undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cil.errors import DataError, ShapeError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def floats(name: str, values: ArrayLike, ndim: int) -> Floats:
    """Float array of ``ndim`` dimensions; ``None``, which is what a record's null reads back as, becomes NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ShapeError(f"{name} has shape {array.shape}; {ndim} dimension(s) are needed.")
    return array


def slots(name: str, values: ArrayLike, stop: int | None = None) -> Ints:
    """(N,) whole numbers in [0, stop): slots, or experiences of slots."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ShapeError(f"{name} has shape {array.shape}; 1 dimension is needed.")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} holds {array.dtype}; whole numbers are needed.")
    if array.size and (array.min() < 0 or (stop is not None and array.max() >= stop)):
        allowed = "0 and up" if stop is None else f"0 to {stop - 1}"
        raise DataError(f"{name} runs from {array.min()} to {array.max()}; allowed is {allowed}.")
    return array.astype(np.int64)


def check_same_shape(name: str, array: NDArray[Any], other_name: str, other: NDArray[Any]) -> None:
    """Two arrays that are read side by side must have one shape."""
    if array.shape != other.shape:
        raise ShapeError(f"{name} has shape {array.shape}, {other_name} has {other.shape}; they must be the same.")


def learned_part(matrix: ArrayLike) -> Floats:
    """The square (t, t) part of R that is about the t experiences learned so far.

    R may have fewer rows than columns: an unfinished run gives the numbers of the stream cut after its last row.
    """
    R = floats("R", matrix, ndim=2)
    steps, experiences = R.shape
    if steps > experiences:
        raise ShapeError(f"R has shape {R.shape}; a row for each experience learned, so no more rows than columns.")
    return R[:, :steps]


def learned_entries(name: str, values: ArrayLike, steps: int) -> Floats:
    """The first ``steps`` entries of a vector that has one entry for each experience."""
    array = floats(name, values, ndim=1)
    if len(array) < steps:
        raise ShapeError(f"{name} has {len(array)} entries; R has {steps} rows, and each needs one.")
    return array[:steps]


def mean(values: ArrayLike) -> float:
    """Mean over all entries: NaN of nothing, and NaN if one entry is NaN."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else float("nan")


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Element-wise quotient, NaN where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    quotient: Floats = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
    return quotient
