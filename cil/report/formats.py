"""A table as Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError
from cil.report import online_forms, task_forms
from cil.report.anytime import anytime_entry, is_watched
from cil.report.areas import Area
from cil.report.grids import Grid, Line, Titled
from cil.report.section_forms import areas_grids, areas_words, bill, flat_entry, grid, more_tables, remarks, scores_of
from cil.tracking import plain

if TYPE_CHECKING:
    from cil.report.rows import Row
    from cil.report.tables import Table


def to_markdown(table: Table) -> str:
    """Tables, verdicts, warnings and both bills."""
    blocks = [f"> {_escaped(warning)}" for warning in table.warnings]
    for section in table.sections:
        blocks += [f"### {_escaped(section.title)}", _markdown(grid(section))]
        said = [*(v.text for v in section.verdicts), *remarks(section), *section.warnings]
        blocks += ["\n".join(f"- {_escaped(sentence)}" for sentence in said)] if said else []
        blocks += _further(more_tables(section))
        for convention in ("exact", "survey"):
            lines = bill(section, convention)
            if lines.lines:
                blocks += [f"Bytes carried after the last experience, {convention}:", _markdown(lines)]
    for areas in table.areas:
        blocks += [_escaped(areas_words(areas)), *(_markdown(cells) for cells in areas_grids(areas))]
    for online in table.online:
        blocks += [f"### {_escaped(online.title)}", _markdown(online_forms.online_grid(online))]
        said = [online.verdict.text] if online.verdict else []
        said += [*online_forms.online_remarks(online), *online.warnings]
        blocks += ["\n".join(f"- {_escaped(sentence)}" for sentence in said)] if said else []
        blocks += ["Bytes after the last segment, and with what an update holds besides:"]
        blocks += [_markdown(online_forms.online_bill(online))]
    for tasks in table.tasks:
        blocks += [f"### {_escaped(tasks.title)}", _markdown(task_forms.task_grid(tasks))]
        blocks += ["\n".join(f"- {_escaped(sentence)}" for sentence in task_forms.task_said(tasks))]
        blocks += _further(task_forms.task_tables(tasks))
    blocks += map(_escaped, table.footnotes)
    return "\n\n".join(blocks) + "\n"


def _further(tables: Sequence[Titled]) -> list[str]:
    """More tables, each under its heading."""
    blocks: list[str] = []
    for table in tables:
        blocks += [f"{_escaped(table.heading)}:", _markdown(table.grid)]
        blocks += [_escaped(table.note)] if table.note else []
    return blocks


def _markdown(cells: Grid) -> str:
    lines = [_joined(cells.heads), _joined([":--", *["--:"] * (len(cells.heads) - 1)])]
    for heading, part in cells.parts:
        lines += [_joined([f"*{heading}*", *[""] * (len(cells.heads) - 1)])] if heading else []
        lines += [_joined([_named(line), *line.cells]) for line in part]
    return "\n".join(lines)


def _named(line: Line) -> str:
    name = _escaped(line.name).replace("|", "\\|")
    return f"{name} ({', '.join(line.marks)})" if line.marks else name


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("#", "\\#")


def to_csv(table: Table) -> str:
    """One line a row, numbers unrounded, nothing where undefined."""
    out = io.StringIO()
    watched = any(is_watched(row) for section in table.sections for row in section.rows)
    entries = [
        {"table": number, "budget": section.facts.get("budget"), "title": section.title, **flat_entry(row)}
        | (anytime_entry(row) if watched else {})
        for number, section in enumerate(table.sections, 1)
        for row in section.rows
    ]
    met = {"of strategies": entries, "of adapters": table.online, "on streams of tasks": table.tasks}
    kinds = [kind for kind, found in met.items() if found]
    if len(kinds) > 1:
        raise ConfigError(f"runs {' and '.join(kinds)} have other columns; give the paths of one kind")
    entries = entries or online_forms.online_entries(table.online) or task_forms.task_entries(table.tasks)
    if not entries:  # of runs without results alone
        return ""
    writer = csv.DictWriter(out, list(entries[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    return out.getvalue()


def to_json(table: Table) -> str:
    """Everything, numbers unrounded, null where undefined."""
    content = {
        "warnings": table.warnings,
        "sections": [
            {
                "title": section.title,
                "facts": section.facts,
                "rows": [_entry(row) for row in section.rows],
                "verdicts": [{"metric": v.metric, "winner": v.winner, "text": v.text} for v in section.verdicts],
                "warnings": section.warnings,
            }
            for section in table.sections
        ],
        "areas": [
            {
                "title": areas.title,
                "convention": areas.convention,
                "limits": areas.limits,
                "rows": [_area_entry(row) for row in areas.rows],
            }
            for areas in table.areas
        ],
        "footnotes": table.footnotes,
        **({"online": online_forms.online_entries(table.online)} if table.online else {}),
        **({"tasks": task_forms.task_entries(table.tasks)} if table.tasks else {}),
    }
    return json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _entry(row: Row) -> dict[str, Any]:
    values = {name: {str(seed): value for seed, value in score.values.items()} for name, score in scores_of(row)}
    more = anytime_entry(row) if is_watched(row) else {}
    return {**flat_entry(row), **more, "seeds": row.seeds, "bytes_by_kind": row.kinds, "values": values}


def _area_entry(row: Area) -> dict[str, Any]:
    entry: dict[str, Any] = {"label": row.label, "seeds": row.seeds}
    for name, scores, under in (("a", row.average, row.auc_a), ("l", row.last, row.auc_l)):
        entry[f"accuracy_{name}"] = [None if score is None else score.mean for score in scores]
        entry |= {f"auc_{name}": under.area, f"auc_{name}_std": under.std, f"auc_{name}_mean": under.mean}
    return entry
