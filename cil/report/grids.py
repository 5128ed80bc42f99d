"""What every form of a table is laid out from, and how numbers are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NOTHING = "–"
KINDS = (
    "parameters", "buffers", "exemplars", "labels", "features", "prototypes", "statistics", "replay_logits",
    "optimizer", "teacher", "temporary", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A row as text: its name, short marks that belong to it, numbers."""

    name: str
    cells: tuple[str, ...]
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """What every form of a table is laid out from.

    Attributes:
        heads: Of the name and of each number.
        parts: (heading, lines) blocks; the heading may be empty.
    """

    heads: tuple[str, ...]
    parts: tuple[tuple[str, tuple[Line, ...]], ...]

    @property
    def lines(self) -> list[Line]:
        return [line for _, lines in self.parts for line in lines]


@dataclass(frozen=True)
class Titled:
    """A further table: its heading, and below it what a reader must know of its columns."""

    heading: str
    grid: Grid
    note: str = ""


def kinds_of_bytes(sizes: Iterable[Iterable[str]]) -> list[str]:
    """The kinds that are met, in the order of ``KINDS``."""
    met = {kind for kinds in sizes for kind in kinds}
    return sorted(met, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))


def whole(value: float | None) -> str:
    """
    >>> whole(7998016), whole(None)
    ('7,998,016', '–')
    """
    return NOTHING if value is None else f"{value:,.0f}"


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
    if value is None:
        return NOTHING
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
