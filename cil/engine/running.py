"""Numbers of a run so far, which go on from the boundary before: its cost does not grow with the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from cil import metrics
from cil.engine.checkpoint import Checkpoints
from cil.metrics import plain

Counts = Mapping[str, Tensor]  # what an evaluation counted


class Rows(Sequence[Counts]):
    """Counts of the first boundaries, read from the disk whenever they are asked for: memory does not grow with them.

    A row is empty where nothing was counted.
    """

    def __init__(self, checkpoints: Checkpoints, count: int) -> None:
        self.checkpoints, self._indices = checkpoints, range(count)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Counts]:
        return map(self._read, self._indices)

    def __getitem__(self, place: Any) -> Any:
        found = self._indices[place]
        return [self._read(index) for index in found] if isinstance(found, range) else self._read(found)

    def _read(self, index: int) -> Counts:
        return self.checkpoints.evaluated(index) or {}


class SoFar:
    """Numbers over the rows of a run, of which each is read once: they go on from the rows that were met before."""

    def __init__(self) -> None:
        self._met = 0
        self._checkpoints: Checkpoints | None = None
        self.clear()

    def over(self, rows: Rows) -> Self:
        """The numbers over these rows."""
        if rows.checkpoints is not self._checkpoints or len(rows) < self._met:
            self._checkpoints, self._met = rows.checkpoints, 0
            self.clear()
        for index in range(self._met, len(rows)):
            self.add(rows[index])
        self._met = len(rows)
        return self

    def clear(self) -> None:
        """Begin at no row."""
        raise NotImplementedError

    def add(self, row: Counts) -> None:
        """Go on by the counts of one boundary."""
        raise NotImplementedError


class CurveSoFar(SoFar):
    """Curve and forgetting, as ``metrics.summary`` gives them; subclasses ``extend`` them by a row of R.

    Attributes:
        curve: The score after each experience, percent; NaN where undefined.
        forgetting: Mean over earlier experiences of (best accuracy before the last one - last accuracy), in points.
    """

    def clear(self) -> None:
        self.curve: list[float] = []
        self.forgetting = float("nan")
        self._best = np.zeros(0)  # of each experience behind

    def extend(self, score: float, accuracies: np.ndarray[Any, Any]) -> None:
        """Go on by the point of the curve, and (T,) percent by experience, NaN where not evaluated."""
        now = accuracies[: len(self.curve) + 1]
        fallen = self._best - now[:-1]
        self.forgetting = float(fallen.mean()) if len(fallen) else float("nan")
        self._best = np.append(np.maximum(self._best, now[:-1]), now[-1])  # the maximum hands a NaN on
        self.curve.append(score)

    def results(self) -> dict[str, Any]:
        """``accuracy_curve``, ``average_incremental_accuracy`` and ``forgetting``; NaN is None."""
        return {
            "accuracy_curve": plain(self.curve),
            "average_incremental_accuracy": plain(metrics.average_incremental_accuracy(self.curve)),
            "forgetting": plain(self.forgetting),
        }
