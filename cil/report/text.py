"""A table for a terminal: columns of one width, what does not fit goes on below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cil.report import online_forms, task_forms
from cil.report.grids import Grid
from cil.report.section_forms import areas_grids, areas_words, grid, remarks

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
        blocks.append("\n".join(lines))
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
        lines += [line for sentence in task_forms.task_said(tasks) for line in _wrap(sentence, width)]
        for heading, cells in task_forms.task_tables(tasks):
            lines += ["", heading, "", *_layout(cells, width)]
        blocks.append("\n".join(lines))
    blocks += ["\n".join(_wrap(note, width)) for note in table.footnotes]
    return "\n\n".join(block.rstrip() for block in blocks if block) + "\n"


def _layout(cells: Grid, width: int) -> list[str]:
    """Columns side by side as far as they fit, then the rest below with the names repeated."""
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
