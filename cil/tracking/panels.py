"""What dashboards show of a run beside its curves: tables and pictures, made of its results and arrays.

They hold nothing that the record does not hold. A kind of run names its own in ``Work.panels``; loggers that have a
method ``show`` get them (``cil.tracking.loggers``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Chart = Literal["none", "columns", "rows", "confusion"]
PICTURE = 256  # least pixels of the side of a picture


@dataclass(frozen=True)
class Table:
    """A table, and how it is drawn.

    Attributes:
        name: As dashboards show it: ``accuracy_matrix``.
        columns: Their names; the first one names the rows.
        rows: Numbers, texts, None where undefined.
        chart: ``columns``: a line for each further column over the experience, which is the first; ``rows``: a line for
            each row over the names of the columns; ``confusion``: true class, predicted class and count.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    chart: Chart = "none"

    def points(self) -> dict[tuple[str, int], float]:
        """Of ``chart="columns"``: what is known of each line, such as ``ledger/exemplars``, after each experience."""
        if self.chart != "columns":
            return {}
        return {
            (f"{self.name}/{column}", int(row[0])): value
            for row in self.rows
            for column, value in zip(self.columns[1:], row[1:], strict=True)
            if value is not None
        }


@dataclass(frozen=True)
class Picture:
    """A picture after an experience: ``pixels`` (H, W) uint8."""

    name: str
    experience: int
    pixels: Array

    def points(self) -> dict[tuple[str, int], Array]:
        return {(f"pictures/{self.name}", self.experience): self.pixels}


Panel = Table | Picture


def new_points(panels: Sequence[Panel], sent: set[tuple[str, int]]) -> dict[int, dict[str, Any]]:
    """Points of curves and pictures that were not sent yet, by experience in order; from now on they count as sent."""
    found: dict[int, dict[str, Any]] = {}
    for panel in panels:
        for place, value in panel.points().items():
            if place not in sent:
                sent.add(place)
                name, experience = place
                found.setdefault(experience, {})[name] = value
    return dict(sorted(found.items()))


def ledger_tables(ledger: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Carried bytes by kind after each experience, counted exactly; and what was held in training."""
    found = []
    for name, part in (("ledger", "exact"), ("held_in_training", "training")):
        totals = [line["totals"].get(part) or {} for line in ledger]
        kinds = list(dict.fromkeys(kind for total in totals for kind in total))
        if kinds:
            rows = [[index, *(total.get(kind, 0) for kind in kinds)] for index, total in enumerate(totals)]
            found.append(Table(name, ["experience", *kinds], rows, "columns"))
    return found


def curves(name: str, lines: Mapping[str, Sequence[Any] | None]) -> list[Table]:
    """Values over experiences as one table, a column for each line that is there and holds anything."""
    kept = {key: list(values) for key, values in lines.items() if values}
    length = max(map(len, kept.values()), default=0)
    padded = [values + [None] * (length - len(values)) for values in kept.values()]
    rows = [[index, *row] for index, row in enumerate(zip(*padded, strict=True))]
    return [Table(name, ["experience", *kept], rows, "columns")] if rows else []


def matrix_tables(matrix: Sequence[Sequence[Any]]) -> list[Table]:
    """The accuracy matrix: row i holds percent on the test data of each experience after experience i."""
    names = [f"on_{index}" for index in range(len(matrix[0]))] if matrix else []
    return curves("accuracy_matrix", dict(zip(names, map(list, zip(*matrix, strict=True)), strict=True)))


def confusion_panels(parts: Iterable[Array], classes: Sequence[Any], first: Sequence[int]) -> list[Panel]:
    """Confusion after the last experience, a picture of each, and the accuracy of each class over experiences.

    Args:
        parts: (K, K) true by predicted counts, after each experience.
        classes: (K) name of each slot.
        first: (K) experience in which a slot is seen first.
    """
    names = [str(name) for name in classes]
    pictures: list[Panel] = []
    accuracies: list[Array] = []
    last: Array = np.zeros((0, 0))
    for index, last in enumerate(parts):
        tested = last.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = last / tested[:, None]
        accuracies.append(100 * np.diagonal(share))
        seen = [slot for slot, since in enumerate(first) if since <= index]
        pictures.append(Picture("confusion", index, _picture(share[np.ix_(seen, seen)])))
    if not accuracies:
        return []
    known = np.stack(accuracies, 1)  # (K, t)
    rows = [[name, *(None if np.isnan(x) else float(x) for x in known[k])] for k, name in enumerate(names)]
    cells = [[names[i], names[j], int(last[i, j])] for i, j in zip(*np.nonzero(last), strict=True)]
    return [
        Table("confusion", ["true", "predicted", "count"], cells, "confusion"),
        Table("class_accuracy", ["class", *map(str, range(known.shape[1]))], rows, "rows"),
        *pictures,
    ]


def _picture(share: Array) -> Array:
    """Shares of rows as shades, white for 0, in squares large enough to be seen."""
    side = -(-PICTURE // max(1, len(share)))
    shades = (255 * (1 - np.nan_to_num(share))).round().astype(np.uint8)
    return shades.repeat(side, 0).repeat(side, 1)
