"""Rows of text in columns of equal width."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


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
