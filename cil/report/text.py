"""A table for a terminal: columns of one width, what does not fit goes on below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cil.report import online_forms, task_forms
from cil.report.grids import Grid, Titled
from cil.report.section_forms import areas_grids, areas_words, grid, more_tables, remarks

if TYPE_CHECKING:
    from cil.report.tables import Table

GAP = "  "


def to_text(table: Table, width: int = 120) -> str:
    """For a terminal of so many columns; a table that is wider goes on below, under the same first column."""
    several = len(table.sections) > 1
    blocks = ["\n".join(line for warning in table.warnings for line in _wrap(f"! {warning}", width))]
    for number, section in enumerate(table.sections, 1):
        title = f"[{number}] {section.title}" if several else section.title
        lines = [*_wrap(title, width), "", *_layout(grid(section), width), ""]
        for sentence in (*(v.text for v in section.verdicts), *(f"* {remark}" for remark in remarks(section))):
            lines += _wrap(sentence, width)
        for warning in section.warnings:
            lines += _wrap(f"! {warning}", width)
        blocks.append("\n".join([*lines, *_further(more_tables(section), width)]))
    for areas in table.areas:
        lines = _wrap(areas_words(areas), width)
        for cells in areas_grids(areas):
            lines += ["", *_layout(cells, width)]
        blocks.append("\n".join(lines))
    for number, online in enumerate(table.online, 1):
        title = f"[{number}] {online.title}" if len(table.online) > 1 else online.title
        lines = [*_wrap(title, width), "", *_layout(online_forms.online_grid(online), width), ""]
        said = [online.verdict.text] if online.verdict else []
        said += [f"* {remark}" for remark in online_forms.online_remarks(online)]
        said += [f"! {warning}" for warning in online.warnings]
        lines += [line for sentence in said for line in _wrap(sentence, width)]
        blocks.append("\n".join(lines))
    for number, tasks in enumerate(table.tasks, 1):
        title = f"[{number}] {tasks.title}" if len(table.tasks) > 1 else tasks.title
        lines = [*_wrap(title, width), "", *_layout(task_forms.task_grid(tasks), width), ""]
        said = [*task_forms.task_said(tasks), task_forms.LEGEND]
        lines += [line for sentence in said for line in _wrap(sentence, width)]
        blocks.append("\n".join([*lines, *_further(task_forms.task_tables(tasks), width)]))
    blocks += ["\n".join(_wrap(note, width)) for note in table.footnotes]
    return "\n\n".join(block.rstrip() for block in blocks if block) + "\n"


def _further(tables: Sequence[Titled], width: int) -> list[str]:
    """More tables, each under its heading."""
    lines: list[str] = []
    for table in tables:
        lines += ["", *_wrap(table.heading, width), "", *_layout(table.grid, width)]
        marked: dict[str, list[str]] = {}
        for line in table.grid.lines:
            for mark in line.marks:
                marked.setdefault(mark, []).append(line.name)
        lines += [text for mark, names in marked.items() for text in _wrap(f"* {mark}: {', '.join(names)}", width)]
        lines += _wrap(table.note, width)
    return lines


def _layout(cells: Grid, width: int) -> list[str]:
    """Columns side by side as far as they fit, then the rest below with the names repeated.

    Where they do not fit, those that say the same of all rows are told in one line instead.
    """
    lines = _columns(cells, width)
    if "" not in lines or len(cells.lines) < 2:  # one block
        return lines
    columns = list(zip(*(line.cells for line in cells.lines), strict=True))
    alike = {index for index, values in enumerate(columns) if len(set(values)) == 1}
    if not alike or len(alike) == len(columns):
        return lines
    told = ", ".join(f"{cells.heads[index + 1]} {columns[index][0]}" for index in sorted(alike))
    return [*_columns(_without(cells, alike), width), *_wrap(f"the same in all rows: {told}", width)]


def _without(cells: Grid, columns: set[int]) -> Grid:
    """The same without some columns of numbers."""
    kept = [index for index in range(len(cells.heads) - 1) if index not in columns]
    parts = [
        (heading, tuple(replace(line, cells=tuple(line.cells[index] for index in kept)) for line in lines))
        for heading, lines in cells.parts
    ]
    return Grid((cells.heads[0], *(cells.heads[index + 1] for index in kept)), tuple(parts))


def _columns(cells: Grid, width: int) -> list[str]:
    """Columns side by side, block below block."""
    names = _padded(
        [cells.heads[0], *(f"{line.name} *" if line.marks else line.name for line in cells.lines)], left=True
    )
    rest = [_numbers(head, [line.cells[i] for line in cells.lines]) for i, head in enumerate(cells.heads[1:])]
    lines: list[str] = []
    while rest:
        taken = [names]
        while rest and (len(taken) == 1 or _width([*taken, rest[0]]) <= width):
            taken.append(rest.pop(0))
        lines += [*([""] if lines else []), *_block(cells, taken)]
    return lines


def _block(cells: Grid, columns: Sequence[list[str]]) -> list[str]:
    head, *joined = [GAP.join(entries).rstrip() for entries in zip(*columns, strict=True)]
    lines = [head, "─" * _width(columns)]
    for heading, part in cells.parts:
        lines += [f"· {heading}"] if heading else []
        lines += joined[: len(part)]
        joined = joined[len(part) :]
    return lines


def _numbers(head: str, values: Sequence[str]) -> list[str]:
    """A column of numbers; deviations stand below one another."""
    split = [value.partition(" ± ") for value in values]
    room = max((len(std) for _, _, std in split), default=0)
    if room:
        values = [mean + (f" ± {std:>{room}}" if std else " " * (3 + room)) for mean, _, std in split]
    return _padded([head, *values], left=False)


def _padded(texts: Sequence[str], left: bool) -> list[str]:
    size = max(map(len, texts))
    return [f"{text:<{size}}" if left else f"{text:>{size}}" for text in texts]


def _width(columns: Sequence[list[str]]) -> int:
    return sum(len(column[0]) for column in columns) + len(GAP) * (len(columns) - 1)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")
