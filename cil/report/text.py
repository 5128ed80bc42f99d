"""A table for a terminal: columns of one width, what does not fit goes on below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from cil.report.grids import Grid, Titled
from cil.report.section import Section
from cil.report.table import Table

GAP = "  "
MARK = " *"  # the method's own answer among several


def to_text(table: Table, width: int = 120) -> str:
    """For a terminal of so many columns; a table that is wider goes on below, under the same first column."""
    blocks = ["\n".join(line for warning in table.warnings for line in _wrap(f"! {warning}", width))]
    blocks += ["\n".join(_section(section, width)) for section in table.sections]
    blocks += ["\n".join(_wrap(note, width)) for note in table.footnotes]
    return "\n\n".join(block.rstrip() for block in blocks if block) + "\n"


def _section(section: Section, width: int) -> list[str]:
    title = f"[{section.number}] {section.heading}" if section.number else section.heading
    lines = [*_wrap(title, width), "", *_layout(section.grid, width), ""]
    sentences = [
        *(verdict.text for verdict in section.verdicts),
        *(f"* {remark}" for remark in section.remarks),
        *(f"! {warning}" for warning in section.warnings),
        section.legend,
    ]
    lines += [line for sentence in sentences for line in _wrap(sentence, width)]
    return lines + [line for table in section.tables for line in _titled(table, width)]


def _titled(table: Titled, width: int) -> list[str]:
    """A further table under its heading, and below it the rows that have a mark."""
    marked: dict[str, list[str]] = {}
    for line in table.grid.lines:
        for mark in line.marks:
            marked.setdefault(mark, []).append(line.name)
    lines = ["", *_wrap(table.heading, width), "", *_layout(table.grid, width)]
    lines += [text for mark, names in marked.items() for text in _wrap(f"* {mark}: {', '.join(names)}", width)]
    return lines + _wrap(table.note, width)


def _layout(grid: Grid, width: int) -> list[str]:
    """Columns side by side as far as they fit, then the rest below with the names repeated.

    Where they do not fit, those that say the same of all rows are told in one line instead.
    """
    lines = _columns(grid, grid.heads, width)
    if "" not in lines or len(grid.lines) < 2:  # one block
        return lines
    alike = {head: cells[0] for head in grid.heads if len(set(cells := grid.column(head))) == 1}
    if not alike or len(alike) == len(grid.heads):
        return lines
    words = ", ".join(f"{head} {cell}" for head, cell in alike.items())
    shown = [head for head in grid.heads if head not in alike]
    return [*_columns(grid, shown, width), *_wrap(f"the same in all rows: {words}", width)]


def _columns(grid: Grid, heads: Sequence[str], width: int) -> list[str]:
    names = _padded([grid.first, *(f"{line.name} *" if line.marks else line.name for line in grid.lines)], left=True)
    rest = [_numbers(head, grid.column(head)) for head in heads]
    lines: list[str] = []
    while rest:
        taken = [names]
        while rest and (len(taken) == 1 or _width([*taken, rest[0]]) <= width):
            taken.append(rest.pop(0))
        lines += [*([""] if lines else []), *_block(grid, taken)]
    return lines


def _block(grid: Grid, columns: Sequence[list[str]]) -> list[str]:
    head, *joined = [GAP.join(entries).rstrip() for entries in zip(*columns, strict=True)]
    lines = [head, "─" * _width(columns)]
    for heading, part in grid.parts:
        lines += [f"· {heading}"] if heading else []
        lines += joined[: len(part)]
        joined = joined[len(part) :]
    return lines


def _numbers(head: str, values: Sequence[str]) -> list[str]:
    """A column of numbers; deviations stand below one another, and an asterisk has a place of its own behind them."""
    split = [value.removesuffix(MARK).partition(" ± ") for value in values]
    room = max((len(std) for _, _, std in split), default=0)
    shown = [mean for mean, _, _ in split]
    if room:
        shown = [mean + (f" ± {std:>{room}}" if std else " " * (3 + room)) for mean, _, std in split]
    if any(value.endswith(MARK) for value in values):
        blank = " " * len(MARK)
        shown = [text + (MARK if value.endswith(MARK) else blank) for text, value in zip(shown, values, strict=True)]
    return _padded([head, *shown], left=False)


def _padded(texts: Sequence[str], left: bool) -> list[str]:
    size = max(map(len, texts))
    return [f"{text:<{size}}" if left else f"{text:>{size}}" for text in texts]


def _width(columns: Sequence[list[str]]) -> int:
    return sum(len(column[0]) for column in columns) + len(GAP) * (len(columns) - 1)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")
