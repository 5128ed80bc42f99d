"""One HTML page that holds everything: nothing is fetched, the same bytes for the same records.

Its one script sorts, chooses and picks out; a policy on the page allows that script by its digest, and no other.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path

from cil.errors import ConfigError
from cil.report.files import write_file
from cil.report.grids import Grid, Line, Titled, flops, grid, seconds
from cil.report.plots import Plot
from cil.report.runs import RunSummary
from cil.report.section import ReadingAid, Section
from cil.report.table import Table, table
from cil.tracking import Record, identity_hash

BEST = ' class="best"'
WORDS, LETTERS = ' class="words"', 40  # cells with more letters are wrapped
DENSE, HUGE = 13, 17  # columns from which a table is set smaller, and from which paper is turned for it
LONG = 3  # parts from which a page has a table of contents
PAGE, TABLES = "index.html", ("table.csv", "table.md")  # what the report of a comparison is called
OURS = ('<meta name="generator" content="cil">', "--ink: #1f2933")  # a page that was made here has one of these


def write_html(
    records: Iterable[Record], path: str | Path, title: str = "Comparison", command: str | None = None
) -> Path:
    """Write one self-contained page of records: tables, bills, plots, settings, warnings.

    Args:
        command: The command line that makes the page again.

    Returns:
        The path.

    Raises:
        ConfigError: if there are no records, or the page cannot be written there.
    """
    refuse_foreign(Path(path))
    return write_page(html(table(records), title, command), path)


def write_page(text: str, path: str | Path) -> Path:
    """Write a page, with the folders above it; one that was made here is replaced.

    Raises:
        ConfigError: if it cannot be written there, or a file of that name was not made here.
    """
    path = Path(path)
    refuse_foreign(path)
    return write_file(path, text.encode())


def refuse_foreign(path: Path) -> None:
    """Refuse to replace a file that is no page of ours."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file for the page")
    if path.exists() and not any(sign in path.read_text("utf-8", errors="replace")[:4000] for sign in OURS):
        raise ConfigError(f"{path} is there already, and no page of cil; remove it, or choose another name")


def refuse_foreign_report(folder: Path) -> None:
    """Refuse a folder with files of the names of a report, ``index.html`` and tables, that were not made here."""
    refuse_foreign(folder / PAGE)
    found = [name for name in TABLES if (folder / name).exists()]
    if found and not (folder / PAGE).exists():  # a page is written before the tables beside it
        raise ConfigError(
            f"{folder / found[0]} is there already, without an {PAGE} of cil beside it; remove it, or choose another "
            f"folder"
        )


def html(content: Table, title: str, command: str | None = None) -> str:
    """The page as text; ``command`` is the line that makes it again."""
    paint = content.paint
    body = [
        _contents(content),
        _list(content.warnings, "warnings"),
        *(_section(section, place, paint) for place, section in enumerate(content.sections, 1)),
        _list(content.footnotes, "remarks"),
        *(_reading(aid, place) for place, aid in enumerate(content.readings, 1)),
        _runs(content.runs, command) if content.runs else "",
    ]
    return document(title, _summary(content), body)


@cache
def _asset(name: str) -> str:
    return resources.files("cil.report").joinpath(name).read_text(encoding="utf-8")


def document(title: str, subtitle: str, body: Iterable[str]) -> str:
    """A whole page: its head with style and policy, a header, the parts of the body that are not empty, the script."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{OURS[0]}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1>\n<p class="under">{escape(subtitle)}</p></header>\n'
        + "\n".join(part for part in body if part)
        + f"\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _contents(content: Table) -> str:
    parts = [(f"table-{place}", section.heading) for place, section in enumerate(content.sections, 1)]
    parts += [(f"reading-{place}", aid.title) for place, aid in enumerate(content.readings, 1)]
    parts += [("runs", "Runs, and the commands that make them")] if content.runs else []
    if len(parts) <= LONG:
        return ""
    links = "".join(f'<li><a href="#{place}">{escape(title)}</a></li>' for place, title in parts)
    return f'<nav class="contents" aria-label="Contents"><strong>Contents</strong><ol>{links}</ol></nav>'


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
        f'<section id="table-{place}">\n<h2>{mark}{escape(section.title)}</h2>',
        f'<p class="budget">{subtitle}</p>' if subtitle else "",
        figures([plot for plot in plots if plot.leads]),
        _grid(section.grid, section.best),
        f'<p class="note">{escape(section.legend)}</p>' if section.legend else "",
        *(f'<p class="verdict">{escape(verdict.text)}</p>' for verdict in section.verdicts),
        _list(section.remarks, "remarks"),
        _list(section.warnings, "warnings"),
        *map(_titled, section.tables),
        figures([plot for plot in plots if not plot.leads]),
        section.pictures(),
        *map(_titled, section.bills),
        f"<details open><summary>Settings</summary>\n{definitions(section.facts)}</details>" if section.facts else "",
        f"<h3>Set-up, in a paragraph</h3>\n<p>{escape(section.setup)}</p>" if section.setup else "",
    ]
    return "\n".join(part for part in parts if part) + "\n</section>"


def _titled(table: Titled) -> str:
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
                look = BEST if won else WORDS if len(cell) > LETTERS else ""
                row.append(f"<td{look}>{_cell(cell, rooms[head])}</td>")
            body.append(f'<tr data-row="{escape(line.name)}">{"".join(row)}</tr>')
    look = "dense huge" if len(heads) >= HUGE else "dense" if len(heads) >= DENSE else ""
    return html_table(map(escape, heads), body, look)


def html_table(heads: Iterable[str], rows: Iterable[str], look: str = "") -> str:
    """A table as HTML: the inside of its headings, whole rows, and its classes in the style of the page."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body, style = "\n".join(rows), f' class="{look}"' if look else ""
    return f'<div class="wide"><table{style}>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


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
        f'<div class="drawing">{plot.svg}</div>\n<figcaption>{escape(plot.caption)}</figcaption></figure>'
        for plot in plots
    ]
    return '<div class="plots">\n' + "\n".join(shown) + "\n</div>" if shown else ""


def definitions(terms: Mapping[str, str] | Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in dict(terms).items())
    return f"<dl>\n{lines}\n</dl>"


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _reading(aid: ReadingAid, place: int) -> str:
    head = f'<section id="reading-{place}">\n<h2>{escape(aid.title)}</h2>\n<p>{escape(aid.introduction)}</p>\n'
    return f"{head}{definitions(aid.terms)}\n</section>"


def _runs(runs: Sequence[RunSummary], command: str | None) -> str:
    """Each run, how to run it again where its record says how, and the line that makes the page again."""
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
    commands = dict.fromkeys(str(line) for run in runs if (line := run.record.environment.get("command")))
    again = "".join(f"<li><code>{escape(line)}</code></li>" for line in commands)
    page = f"\n<h3>To make this page again</h3>\n<p><code>{escape(command)}</code></p>" if command else ""
    return (
        f'<section id="runs">\n<h2>Runs</h2>\n{_grid(grid(" or ".join(learners), lines))}{page}'
        + (f"\n<h3>To run them again</h3>\n<ul>{again}</ul>" if again else "")
        + "\n</section>"
    )
