"""Grids of text, from which every output format lays out its tables, and how numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cil.report.verdicts import Score

NOTHING = "–"
KINDS = (
    "parameters", "buffers", "exemplars", "labels", "features", "prototypes", "statistics", "replay_logits",
    "optimizer", "teacher", "temporary", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row as text: its name, its cells by heading, short marks that belong to it."""

    name: str
    cells: Mapping[str, str]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Attributes:
        first: Heading of the names.
        parts: (heading, lines) blocks; the heading may be empty.
        heads: Headings of the cells, in order; a line without such a cell shows that it has none.
    """

    first: str
    parts: tuple[tuple[str, tuple[Line, ...]], ...]
    heads: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(dict.fromkeys(head for line in self.lines for head in line.cells)))

    @property
    def lines(self) -> list[Line]:
        return [line for _, lines in self.parts for line in lines]

    def cells(self, line: Line) -> list[str]:
        return [line.cells.get(head, NOTHING) for head in self.heads]

    def column(self, head: str) -> list[str]:
        return [line.cells.get(head, NOTHING) for line in self.lines]


@dataclass(frozen=True)
class Titled:
    """A further table: its heading, and below it what a reader must know of its columns."""

    heading: str
    grid: Grid
    note: str = ""


def grid(first: str, lines: Iterable[Line]) -> Grid:
    """Lines under each other, in one block."""
    return Grid(first, (("", tuple(lines)),))


def byte_bill(first: str, rows: Sequence[tuple[str, Mapping[str, int], Mapping[str, int | None]]]) -> Grid:
    """Bytes by kind, of rows of (label, bytes by kind, further columns such as the total)."""
    kinds = kinds_of_bytes(sizes for _, sizes, _ in rows)
    lines = []
    for label, sizes, more in rows:
        cells = {**{kind: sizes.get(kind, 0) for kind in kinds}, **more}
        lines.append(Line(label, {head: whole(size) for head, size in cells.items()}))
    return grid(first, lines)


def kinds_of_bytes(sizes: Iterable[Iterable[str]]) -> list[str]:
    """The kinds that are met, in the order of ``KINDS``; others come last."""
    met = {kind for kinds in sizes for kind in kinds}
    return sorted(met, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))


def whole(value: float | None) -> str:
    """
    >>> whole(7998016), whole(None)
    ('7,998,016', '–')
    """
    return NOTHING if value is None else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 1) -> str:
    """
    >>> decimal(3.14159), decimal(3.14159, 3), decimal(None)
    ('3.1', '3.142', '–')
    """
    return NOTHING if value is None else f"{value:.{digits}f}"


def flops(value: float | None) -> str:
    """
    >>> flops(1234567890123), flops(0)
    ('1.23e12', '0')
    """
    if not value:
        return NOTHING if value is None else "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def seconds(value: float | None) -> str:
    """
    >>> seconds(4.25), seconds(1234.5)
    ('4.2', '1,234')
    """
    return whole(value) if value is not None and value >= 100 else decimal(value)


def scores_entry(scores: Mapping[str, Score]) -> dict[str, float | None]:
    """Mean and deviation of each score, for CSV and JSON."""
    entry: dict[str, float | None] = {}
    for name, score in scores.items():
        entry |= {name: score.mean, f"{name}_std": score.std}
    return entry
