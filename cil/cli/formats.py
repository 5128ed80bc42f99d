"""Forms of text that commands share: columns, bars, percentages, the data of a stream."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cil.streams import Stream
    from cil.streams.shifts import ShiftStream

WIDTH = 50  # characters of a full bar


def in_columns(rows: Sequence[Sequence[str]], right: Collection[int]) -> Iterator[str]:
    """A line for each row; two spaces between columns, and those with the numbers ``right`` end flush.

    >>> list(in_columns([("name", "bytes"), ("head", "7")], right={1}))
    ['name  bytes', 'head      7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def percent(value: float | None) -> str:
    """
    >>> percent(12.345), percent(None)
    ('12.35 %', '-')
    """
    return "-" if value is None else f"{value:.2f} %"


def numbers(values: Sequence[float | None]) -> str:
    """
    >>> numbers([12.345, None])
    '12.3  -'
    """
    return "  ".join("-" if value is None or value != value else f"{value:.1f}" for value in values)


def bar(label: str, value: float | None) -> str:
    """A bar of 0 to 100 percent.

    >>> bar("one", 10.0)
    'one |#####                                             | 10.0 %'
    """
    filled = "#" * round(WIDTH * (value or 0.0) / 100)
    return f"{label} |{filled.ljust(WIDTH)}| {'-' if value is None else f'{value:.1f} %'}"


def data_of(stream: Stream | ShiftStream) -> str:
    """Fingerprint, and whose data they are."""
    return f"fingerprint {stream.fingerprint[:12]}, {stream.description()['data']}"
