"""A table as text: for a terminal, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError
from cil.report.areas import Area, Areas, Under
from cil.report.verdicts import Score
from cil.tracking import plain

if TYPE_CHECKING:
    from cil.report.tables import Row, Section, Table

GAP = "  "
NOTHING = "–"
KINDS = (
    "parameters", "buffers", "exemplars", "labels", "features", "prototypes", "statistics", "replay_logits",
    "optimizer", "teacher", "temporary", "other",
)  # fmt: skip
HEADINGS = {
    "bound": "bounds: may look back at all past data, so not ranked",
    "unranked": "not ranked",
}


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


def grid(section: Section) -> Grid:
    """The main table of a section."""
    heads = ["strategy", "n", "Avg %", "Last %", "forgetting"]
    heads += ["tuning", "tuning FLOPs"] if section.tuned else []
    heads += ["exemplars", "exact B", "survey B"]
    heads += ["own exact B", "own survey B"] if section.public else []
    heads += ["FLOPs", "peak B", "seconds"]
    parts = []
    for standing in ("ranked", "bound", "unranked"):
        lines = tuple(_line(row, section.public, section.tuned) for row in section.of(standing))
        if lines:
            parts.append((HEADINGS.get(standing, ""), lines))
    return Grid(tuple(heads), tuple(parts))


def _line(row: Row, public: bool, tuned: bool) -> Line:
    cells = [str(len(row.seeds)) if row.finished else "0"]
    cells += [str(row.average), str(row.last), str(row.forgetting)]
    cells += [row.tuning, flops(row.tuning_flops)] if tuned else []
    cells += [whole(row.exemplars), whole(row.carried["exact"]), whole(row.carried["survey"])]
    cells += [whole(row.own["exact"]), whole(row.own["survey"])] if public else []
    cells += [flops(row.flops), whole(row.peak_training_bytes), seconds(row.seconds)]
    return Line(row.label, tuple(cells), tuple(note.mark for note in row.notes))


def bill(section: Section, convention: str) -> Grid:
    """Carried bytes by kind at the end of the stream, and in all."""
    rows = [row for row in section.rows if row.carried[convention] is not None]
    kinds = kinds_of(rows, (convention,))
    heads = ["strategy", *kinds, *(["public"] if section.public else []), "total"]
    lines = []
    for row in rows:
        sizes = [whole(row.kinds[convention].get(kind, 0)) for kind in kinds]
        public = [whole(row.public)] if section.public else []
        lines.append(Line(row.label, (*sizes, *public, whole(row.carried[convention]))))
    return Grid(tuple(heads), (("", tuple(lines)),))


def kinds_of(rows: Iterable[Row], conventions: Iterable[str]) -> list[str]:
    """The kinds of bytes that the rows carry, in the order of ``KINDS``; what that does not know comes last."""
    return kinds_of_bytes(row.kinds[convention] for row in rows for convention in conventions)


def kinds_of_bytes(sizes: Iterable[Iterable[str]]) -> list[str]:
    """The kinds that are met, in the order of ``KINDS``."""
    met = {kind for kinds in sizes for kind in kinds}
    return sorted(met, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))


def areas_grids(areas: Areas) -> tuple[Grid, Grid]:
    """Average incremental accuracy at each budget and the area under it; the same of last accuracy."""
    at = [f"{size:.2f}" for size in areas.mebibytes]
    average = tuple(_area_line(row, row.average, row.auc_a, areas.decimals) for row in areas.rows)
    last = tuple(_area_line(row, row.last, row.auc_l, areas.decimals) for row in areas.rows)
    return (
        Grid(("strategy", "n", *(f"Avg @{x}" for x in at), "AUC-A", "mean"), (("", average),)),
        Grid(("strategy", "n", *(f"Last @{x}" for x in at), "AUC-L", "mean"), (("", last),)),
    )


def _area_line(row: Area, scores: Sequence[Score | None], under: Under, decimals: int) -> Line:
    cells = [NOTHING if score is None else str(score) for score in scores]
    mean = NOTHING if under.mean is None else f"{under.mean:.3f}"
    return Line(row.label, (str(len(row.seeds)), *cells, _area(under, decimals), mean))


def _area(under: Under, decimals: int) -> str:
    if under.area is None:
        return NOTHING
    spread = "" if under.std is None else f" ± {under.std:.{decimals}f}"
    return f"{under.area:.{decimals}f}{spread}"


def areas_words(areas: Areas) -> str:
    """What the numbers are."""
    x = areas.mebibytes
    return (
        f"{areas.title}: accuracy over {len(x)} budgets from {x[0]:.2f} to {x[-1]:.2f} MiB ({areas.convention}). "
        f"AUC-A and AUC-L: area under Avg and Last as fractions, in MiB, at most {x[-1] - x[0]:.2f}; mean: the area "
        "divided by the range. Areas over other budgets are not to be compared; a missing point leaves none."
    )


def remarks(section: Section) -> list[str]:
    """Sentences on rows; what holds for several is said once."""
    said: dict[str, list[str]] = {}
    for row in section.rows:
        for note in row.notes:
            said.setdefault(note.text, []).append(row.label)
    return [f"{', '.join(labels)}: {text}" for text, labels in said.items()]


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


# terminal ---------------------------------------------------------------------------------------------------------


def to_text(table: Table, width: int = 120) -> str:
    """For a terminal of so many columns; a table that is wider goes on below, under the same first column."""
    from cil.report import online_forms, task_forms

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


# Markdown, CSV, JSON ----------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """Tables, verdicts, warnings and both bills."""
    from cil.report import online_forms, task_forms

    blocks = [f"> {_escaped(warning)}" for warning in table.warnings]
    for section in table.sections:
        blocks += [f"### {_escaped(section.title)}", _markdown(grid(section))]
        said = [*(v.text for v in section.verdicts), *remarks(section), *section.warnings]
        blocks += ["\n".join(f"- {_escaped(sentence)}" for sentence in said)] if said else []
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
        for heading, cells in task_forms.task_tables(tasks):
            blocks += [f"{heading}:", _markdown(cells)]
    blocks += map(_escaped, table.footnotes)
    return "\n\n".join(blocks) + "\n"


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
    from cil.report import online_forms, task_forms

    out = io.StringIO()
    entries = [
        {"table": number, "budget": section.facts.get("budget"), "title": section.title, **_flat(row)}
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


def _flat(row: Row) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "label": row.label,
        "strategy": row.strategy,
        "standing": row.standing,
        "n": len(row.seeds) if row.finished else 0,
        "seeds": " ".join(map(str, row.seeds)),
    }
    for name, score in _scores(row):
        entry |= {name: score.mean, f"{name}_std": score.std}
    for convention in ("exact", "survey"):
        entry |= {f"{convention}_bytes": row.carried[convention], f"own_{convention}_bytes": row.own[convention]}
    entry |= {"public_bytes": row.public, "exemplars": row.exemplars, "flops": row.flops}
    entry |= {"tuning": row.tuning, "tuning_flops": row.tuning_flops}
    entry |= {"peak_training_bytes": row.peak_training_bytes, "seconds": row.seconds}
    return entry | {"notes": "; ".join(note.text or note.mark for note in row.notes)}


def _scores(row: Row) -> Iterable[tuple[str, Score]]:
    return (
        ("average_incremental_accuracy", row.average),
        ("last_accuracy", row.last),
        ("forgetting", row.forgetting),
    )


def to_json(table: Table) -> str:
    """Everything, numbers unrounded, null where undefined."""
    from cil.report import online_forms, task_forms

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
    values = {name: {str(seed): value for seed, value in score.values.items()} for name, score in _scores(row)}
    return {**_flat(row), "seeds": row.seeds, "bytes_by_kind": row.kinds, "values": values}


def _area_entry(row: Area) -> dict[str, Any]:
    entry: dict[str, Any] = {"label": row.label, "seeds": row.seeds}
    for name, scores, under in (("a", row.average, row.auc_a), ("l", row.last, row.auc_l)):
        entry[f"accuracy_{name}"] = [None if score is None else score.mean for score in scores]
        entry |= {f"auc_{name}": under.area, f"auc_{name}_std": under.std, f"auc_{name}_mean": under.mean}
    return entry
