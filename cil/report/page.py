"""One HTML page that holds everything: no script, nothing fetched, the same bytes for the same records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from cil.errors import ConfigError
from cil.report.grids import Grid, Line, Titled, flops, grid, seconds
from cil.report.plots import Plot, colours
from cil.report.runs import RunSummary
from cil.report.section import ReadingAid, Section
from cil.report.table import Table, table
from cil.tracking import Record, identity_hash, write_bytes_atomic

BEST = ' class="best"'
DENSE = 13  # columns from which a table is set smaller, so that it fits


def write_html(records: Iterable[Record], path: str | Path, title: str = "Comparison") -> Path:
    """Write one self-contained page of records: tables, bills, plots, settings, warnings.

    Returns:
        The path.

    Raises:
        ConfigError: if there are no records, or the page cannot be written there.
    """
    return write_page(html(table(records), title), path)


def write_page(text: str, path: str | Path) -> Path:
    """Write a page, with the folders above it.

    Raises:
        ConfigError: if it cannot be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made ({error.strerror}); choose another place") from error
    write_bytes_atomic(path, text.encode())
    return path


def html(content: Table, title: str) -> str:
    """The page as text."""
    paint = colours(row.label for section in content.sections for row in section.rows)
    body = [
        _list(content.warnings, "warnings"),
        *(_section(section, place, paint) for place, section in enumerate(content.sections, 1)),
        _list(content.footnotes, "remarks"),
        *map(_reading, content.readings),
        _runs(content.runs) if content.runs else "",
    ]
    return document(title, _summary(content), body)


def document(title: str, subtitle: str, body: Iterable[str]) -> str:
    """A whole page: its head with the style, a header, and the parts of the body that are not empty."""
    style = resources.files("cil.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="under">{escape(subtitle)}</p></header>\n'
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _summary(content: Table) -> str:
    learners: dict[str, set[str]] = {}
    for run in content.runs:
        learners.setdefault(run.kind.learner, set()).add(run.learner)
    parts = [_count(len(content.runs), "run"), *(_count(len(names), word) for word, names in learners.items())]
    tables = sum(bool(section.entries) for section in content.sections)
    if tables > 1:
        parts.append(f"{tables} settings that are not to be compared with each other")
    return ", ".join(parts)


def _count(number: int, word: str) -> str:
    words = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number} {word if number == 1 else words}"


def _section(section: Section, place: int, paint: Mapping[str, str]) -> str:
    mark = f'<span class="number">{section.number}</span>' if section.number else ""
    subtitle = escape(section.subtitle)
    if section.condition:
        subtitle = f"{section.condition}: <strong>{subtitle}</strong>"
    plots = section.plots(place, paint)
    parts = [
        f"<section>\n<h2>{mark}{escape(section.title)}</h2>",
        f'<p class="budget">{subtitle}</p>' if subtitle else "",
        figures([plot for plot in plots if plot.leads]),
        _grid(section.grid, section.best),
        *(f'<p class="verdict">{escape(verdict.text)}</p>' for verdict in section.verdicts),
        _list(section.remarks, "remarks"),
        _list(section.warnings, "warnings"),
        *map(_titled, section.tables),
        figures([plot for plot in plots if not plot.leads]),
        section.extra(),
        *map(_titled, section.bills),
        f"<details open><summary>Settings</summary>\n{definitions(section.facts)}</details>" if section.facts else "",
    ]
    return "\n".join(part for part in parts if part) + "\n</section>"


def _titled(table: Titled) -> str:
    """A further table under its heading."""
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h3>{escape(table.heading)}</h3>\n{_grid(table.grid)}{note}"


def _grid(grid: Grid, best: Mapping[str, str] | None = None) -> str:
    """A table; deviations are aligned below each other."""
    best = best or {}
    rooms = {head: max(len(cell.partition(" ± ")[2]) for cell in grid.column(head)) for head in grid.heads}
    heads = [grid.first, *grid.heads]
    body: list[str] = []
    for heading, part in grid.parts:
        if heading:
            body.append(f'<tr class="part"><th colspan="{len(heads)}">{escape(heading)}</th></tr>')
        for line in part:
            marks = "".join(f' <span class="mark">{escape(mark)}</span>' for mark in line.marks)
            row = [f'<th scope="row">{escape(line.name)}{marks}</th>']
            for head, cell in zip(grid.heads, grid.cells(line), strict=True):
                won = not heading and best.get(head) == line.name
                row.append(f"<td{BEST if won else ''}>{_cell(cell, rooms[head])}</td>")
            body.append(f"<tr>{''.join(row)}</tr>")
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    inside = "\n".join(body)
    dense = ' class="dense"' if len(heads) >= DENSE else ""
    return f'<div class="wide"><table{dense}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{inside}\n</tbody></table></div>'


def _cell(text: str, room: int) -> str:
    mean, _, std = text.partition(" ± ")
    if not room:
        return escape(text)
    shown = f"± {std}" if std else ""
    return f'{escape(mean)} <span class="std" style="width:{room + 2}ch">{escape(shown)}</span>'


def figures(plots: Sequence[Plot]) -> str:
    """Plots side by side, those that want the whole width below each other."""
    shown = [
        f'<figure class="{"broad" if plot.broad else "plain"}"><h3>{escape(plot.title)}</h3>\n'
        f"{plot.svg}\n<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    ]
    return '<div class="plots">\n' + "\n".join(shown) + "\n</div>" if shown else ""


def definitions(terms: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    """Terms and what is said of each."""
    lines = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in dict(terms).items())
    return f"<dl>\n{lines}\n</dl>"


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _reading(aid: ReadingAid) -> str:
    head = f"<section>\n<h2>{escape(aid.title)}</h2>\n<p>{escape(aid.introduction)}</p>\n"
    return f"{head}{definitions(aid.terms)}\n</section>"


def _runs(runs: Sequence[RunSummary]) -> str:
    """Each run, and how to run it again where its record says how."""
    learners = dict.fromkeys(run.kind.learner for run in runs)
    unit = units.pop() if len(units := {run.kind.unit for run in runs}) == 1 else "done"
    runs = sorted(runs, key=lambda run: (run.learner, run.seed, run.record.directory.name, identity_hash(run.identity)))
    lines = []
    for run in runs:
        config = str(run.identity.get("config_hash") or identity_hash(run.config))
        cells = {
            "seed": str(run.seed),
            "status": run.status.replace("_", " "),
            unit: f"{run.done}/{run.steps}",
            "seconds": seconds(run.result("seconds", "total")),
            "FLOPs": flops(run.flops),
            "config": config[:12],
            "directory": run.record.directory.name,
        }
        lines.append(Line(run.learner, cells))
    commands = dict.fromkeys(str(command) for run in runs if (command := run.record.environment.get("command")))
    again = "".join(f"<li><code>{escape(command)}</code></li>" for command in commands)
    return (
        f"<section>\n<h2>Runs</h2>\n{_grid(grid(' or '.join(learners), lines))}"
        + (f"\n<h3>To run them again</h3>\n<ul>{again}</ul>" if again else "")
        + "\n</section>"
    )
