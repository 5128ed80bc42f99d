"""A table as Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cil.report.grids import Grid, Line, Titled
from cil.report.table import Table
from cil.tracking import plain


def to_markdown(table: Table) -> str:
    """Tables, verdicts, warnings and bills."""
    blocks = [f"> {_escaped(warning)}" for warning in table.warnings]
    for section in table.sections:
        blocks += [f"### {_escaped(section.heading)}", _markdown(section.grid)]
        blocks += [_escaped(section.legend)] if section.legend else []
        sentences = [*(verdict.text for verdict in section.verdicts), *section.remarks, *section.warnings]
        blocks += ["\n".join(f"- {_escaped(sentence)}" for sentence in sentences)] if sentences else []
        blocks += [block for table in (*section.tables, *section.bills) for block in _titled(table)]
        blocks += [f"Set-up: {_escaped(section.setup)}"] if section.setup else []
    blocks += map(_escaped, table.footnotes)
    return "\n\n".join(blocks) + "\n"


def _titled(table: Titled) -> Iterable[str]:
    yield f"{_escaped(table.heading)}:"
    yield _markdown(table.grid)
    if table.note:
        yield _escaped(table.note)


def _markdown(grid: Grid) -> str:
    columns = len(grid.heads)
    lines = [_joined([grid.first, *grid.heads]), _joined([":--", *["--:"] * columns])]
    for heading, part in grid.parts:
        lines += [_joined([f"*{heading}*", *[""] * columns])] if heading else []
        lines += [_joined([_named(line), *grid.cells(line)]) for line in part]
    return "\n".join(lines)


def _named(line: Line) -> str:
    name = _escaped(line.name).replace("|", "\\|")
    return f"{name} ({', '.join(line.marks)})" if line.marks else name


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("#", "\\#")


def to_csv(table: Table) -> str:
    """One line a row, numbers unrounded, nothing where undefined; columns are those of all kinds together."""
    entries = [entry for section in table.sections for entry in section.entries]
    return csv_text(entries) if entries else ""  # of runs without results alone


def _no_formula(value: Any) -> Any:
    """Text that a spreadsheet would calculate, as the name of a stranger's method may be, begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines as CSV with all columns that any of them has, nothing where undefined."""
    out = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))
    rows: list[list[Any]] = [columns, *([line.get(name) for name in columns] for line in lines)]
    csv.writer(out, lineterminator="\n").writerows(map(_no_formula, row) for row in rows)
    return out.getvalue()


def to_json(table: Table) -> str:
    """Everything, numbers unrounded, null where undefined."""
    sections = [
        {
            "title": section.heading,
            "facts": section.facts,
            "setup": section.setup,
            "rows": section.entries,
            "verdicts": [{"metric": v.metric, "winner": v.winner, "text": v.text} for v in section.verdicts],
            "warnings": section.warnings,
            **section.content,
        }
        for section in table.sections
    ]
    content = {"warnings": table.warnings, "sections": sections, "footnotes": table.footnotes}
    return json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
