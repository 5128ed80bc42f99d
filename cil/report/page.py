"""One HTML page that holds everything: no script, nothing fetched, the same bytes for the same records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from cil.errors import ConfigError
from cil.report.anytime import TERMS as ANYTIME_TERMS
from cil.report.areas import Areas
from cil.report.grids import Grid, Line, Titled, flops, seconds
from cil.report.online import OnlineSection
from cil.report.online_forms import online_bill, online_grid, online_plots, online_reading, online_remarks
from cil.report.plots import Plot, areas_plots, colours, section_plots
from cil.report.runs import Outcome, is_adaptation
from cil.report.section_forms import areas_grids, areas_words, bill, grid, more_tables, remarks
from cil.report.tables import Section, Table, table
from cil.report.task_forms import task_grid, task_plots, task_reading, task_remarks, task_tables, task_timeline
from cil.report.tasks import TaskSection
from cil.tracking import Record, identity_hash, write_bytes_atomic

BEST = ' class="best"'
DENSE = 13  # columns from which a table is set smaller, so that it fits
TERMS = (
    ("n", "Seeds that finished. Numbers are means over them, ± one sample standard deviation (n − 1)."),
    ("Avg %", "Average incremental accuracy: on all classes seen, after each experience; then the mean of these."),
    ("Last %", "Accuracy on all classes after the last experience."),
    ("forgetting", "Highest accuracy an experience once had less its last one, mean over experiences; less is better."),
    ("tuning", "How settings were chosen; tuning FLOPs: of all trials with their validation, beside those of the run."),
    ("exact B", "Every byte that crosses the last boundary: weights, buffers, exemplars, labels, statistics..."),
    ("survey B", "What Zhou et al. 2024 charge: backbones needed at inference, 4 bytes a parameter, and raw pixels."),
    ("own", "The same without public weights, which are referred to and not modified."),
    ("FLOPs", "Of everything but evaluation, all experiences; a multiply-add counts two."),
    ("peak B", "Most bytes held at once in training: what is carried, optimizer, gradients, activations, teachers."),
    ("seconds", "Wall-clock time of the whole run on the machine it ran on; compare only on equal machines."),
    ("bound", "A learner that may look back at all past data: what could be reached, not a competitor."),
    ("uses less", "Keeps no exemplars, and carries less than the limit; without one, less than all rows with some."),
    ("best", "Called only where two seeds or more support it against every other row: a paired t-test on shared seeds "
             "(5 %), or 95 % intervals that do not overlap."),
)  # fmt: skip


def write_html(records: Iterable[Record], path: str | Path, title: str = "Comparison") -> Path:
    """Write one self-contained page of records: tables, both bills, plots, settings, warnings.

    Returns:
        The path.

    Raises:
        ConfigError: if there are no records, or the page cannot be written there.
    """
    records = list(records)
    path = Path(path)
    text = html(table(records), records, title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made ({error.strerror}); choose another place") from error
    write_bytes_atomic(path, text.encode())
    return path


def html(content: Table, records: Sequence[Record], title: str) -> str:
    """The page as text."""
    labels = [row.label for section in content.sections for row in section.rows]
    labels += [row.label for section in content.online for row in section.rows]
    labels += [row.label for section in content.tasks for row in section.rows]
    paint = colours([*labels, *(row.label for areas in content.areas for row in areas.rows)])
    several = len(content.sections) > 1
    body = [
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="under">{escape(_summary(content, records))}</p></header>',
        _list(content.warnings, "warnings"),
        *(_areas(areas, number, paint) for number, areas in enumerate(content.areas, 1)),
        *(_section(section, i, several, paint) for i, section in enumerate(content.sections, 1)),
        *(_online(section, i, len(content.online) > 1, paint) for i, section in enumerate(content.online, 1)),
        *(_tasks(section, i, len(content.tasks) > 1, paint) for i, section in enumerate(content.tasks, 1)),
        _list(content.footnotes, "remarks"),
        "" if (content.online or content.tasks) and not content.sections else _reading(content),
        online_reading(any(section.clean for section in content.online)) if content.online else "",
        task_reading() if content.tasks else "",
        _runs(records),
    ]
    style = resources.files("cil.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _summary(content: Table, records: Sequence[Record]) -> str:
    strategies = {str(record.identity["strategy"]) for record in records if not is_adaptation(record)}
    adapters = {str(record.identity["adapter"]) for record in records if is_adaptation(record)}
    tables = len(content.sections) + len(content.online) + len(content.tasks)
    parts = [_count(len(records), "run")]
    parts += [_count(len(strategies), "strategy", "strategies")] if strategies or not adapters else []
    parts += [_count(len(adapters), "adapter")] if adapters else []
    if tables > 1:
        parts.append(f"{tables} settings that are not to be compared with each other")
    return ", ".join(parts)


def _count(number: int, word: str, words: str | None = None) -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"


def _section(section: Section, number: int, several: bool, paint: dict[str, str]) -> str:
    stream, _, budget = section.title.partition("; ")
    mark = f'<span class="number">{number}</span>' if several else ""
    best = {v.metric: v.winner for v in section.verdicts if v.winner}
    bills = [(convention, bill(section, convention)) for convention in ("exact", "survey")]
    parts = [
        f"<section>\n<h2>{mark}{escape(stream)}</h2>",
        f'<p class="budget">Budget: <strong>{escape(budget)}</strong></p>',
        _grid(grid(section), best),
        *(f'<p class="verdict">{escape(v.text)}</p>' for v in section.verdicts),
        _list(remarks(section), "remarks"),
        _list(section.warnings, "warnings"),
        *map(_titled, more_tables(section)),
        _plots(section_plots(section, number, paint)),
        "<h3>The bills: bytes carried after the last experience</h3>",
        *(f"<p>{_BILLS[convention]}</p>\n{_grid(cells)}" for convention, cells in bills if cells.lines),
        f"<details open><summary>Settings</summary>\n{_terms(section.facts)}</details>\n</section>",
    ]
    return "\n".join(part for part in parts if part)


def _online(section: OnlineSection, number: int, several: bool, paint: dict[str, str]) -> str:
    """Adaptation runs: errors by domain, over time, against memory, and the bill."""
    stream, _, source = section.title.partition("; ")
    mark = f'<span class="number">{number}</span>' if several else ""
    best = {"error, mean": section.verdict.winner} if section.verdict and section.verdict.winner else {}
    parts = [
        f"<section>\n<h2>{mark}{escape(stream)}</h2>",
        f'<p class="budget">{escape(source.capitalize())}</p>',
        _grid(online_grid(section), best),
        f'<p class="verdict">{escape(section.verdict.text)}</p>' if section.verdict else "",
        _list(online_remarks(section), "remarks"),
        _list(section.warnings, "warnings"),
        _plots(online_plots(section, number, paint)),
        "<h3>The bill: bytes carried after the last segment</h3>",
        _grid(online_bill(section)),
        f"<details open><summary>Settings</summary>\n{_terms(section.facts)}</details>\n</section>",
    ]
    return "\n".join(part for part in parts if part)


def _tasks(section: TaskSection, number: int, several: bool, paint: dict[str, str]) -> str:
    """Runs on a stream of tasks: the front first, then errors and operations by task and part."""
    stream, _, budget = section.title.partition("; ")
    mark = f'<span class="number">{number}</span>' if several else ""
    front, *others = task_plots(section, number, paint) or [None]
    timeline, strips = task_timeline(section, number)
    parts = [
        f"<section>\n<h2>{mark}{escape(stream)}</h2>",
        f'<p class="budget">Budget: <strong>{escape(budget)}</strong></p>',
        _plots([front] if front else []),
        _grid(task_grid(section)),
        f'<p class="verdict">{escape(section.verdict.text)}</p>' if section.verdict else "",
        _list(task_remarks(section), "remarks"),
        _list(section.warnings, "warnings"),
        _plots(others),
        *map(_titled, task_tables(section)),
        _plots([timeline]),
        strips,
        f"<details open><summary>Settings</summary>\n{_terms(section.facts)}</details>\n</section>",
    ]
    return "\n".join(part for part in parts if part)


_BILLS = {
    "exact": "<strong>Exact.</strong> Every byte.",
    "survey": "<strong>Survey.</strong> Backbones needed at inference, and raw pixels of the exemplars.",
}


def _titled(table: Titled) -> str:
    """A further table under its heading."""
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h3>{escape(table.heading)}</h3>\n{_grid(table.grid)}{note}"


def _areas(areas: Areas, number: int, paint: dict[str, str]) -> str:
    return "\n".join(
        (
            "<section>\n<h2>Accuracy over budgets</h2>",
            f"<p>{escape(areas_words(areas))}</p>",
            *(_grid(cells) for cells in areas_grids(areas)),
            _plots(areas_plots(areas, number, paint)),
            "</section>",
        )
    )


def _grid(cells: Grid, best: Mapping[str, str] | None = None) -> str:
    """A table; deviations are aligned below each other."""
    best, heads = best or {}, cells.heads
    rooms = [
        max((len(line.cells[index].partition(" ± ")[2]) for line in cells.lines), default=0)
        for index in range(len(heads) - 1)
    ]
    body: list[str] = []
    for heading, part in cells.parts:
        if heading:
            body.append(f'<tr class="part"><th colspan="{len(heads)}">{escape(heading)}</th></tr>')
        for line in part:
            marks = "".join(f' <span class="mark">{escape(mark)}</span>' for mark in line.marks)
            row = [f'<th scope="row">{escape(line.name)}{marks}</th>']
            for head, cell, room in zip(heads[1:], line.cells, rooms, strict=True):
                won = not heading and best.get(head.removesuffix(" %")) == line.name
                row.append(f"<td{BEST if won else ''}>{_cell(cell, room)}</td>")
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


def _plots(plots: Sequence[Plot]) -> str:
    figures = [
        f'<figure class="{"broad" if plot.broad else "plain"}"><h3>{escape(plot.title)}</h3>\n'
        f"{plot.svg}\n<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    ]
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>" if figures else ""


def _terms(facts: Mapping[str, str]) -> str:
    terms = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>\n{terms}\n</dl>"


def _list(items: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _reading(content: Table) -> str:
    rows = [row for section in content.sections for row in section.rows]
    met = {
        "tuning": any(section.tuned for section in content.sections),
        "own": any(section.public for section in content.sections),
        "bound": any(row.standing == "bound" for row in rows),
        "uses less": any(note.mark == "uses less" for row in rows for note in row.notes),
    }
    known = [(term, text) for term, text in TERMS if met.get(term, True)]
    known += ANYTIME_TERMS if any(more_tables(section) for section in content.sections) else ()
    terms = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in known)
    return (
        "<section>\n<h2>How to read this</h2>\n"
        "<p>A learner meets the classes in portions, one experience after the other, and carries nothing across a "
        "boundary but what is charged in the bill. It is evaluated from exactly that. Rows are compared inside one "
        "table only: same images in the same order, same budget, same precision and kind of device.</p>\n"
        f"<dl>\n{terms}\n</dl>\n</section>"
    )


def _runs(records: Sequence[Record]) -> str:
    """Each run, and how to run it again where its record says how."""
    runs = [Outcome(record) for record in records]
    runs.sort(key=lambda run: (run.strategy, run.seed, run.record.directory.name, identity_hash(run.identity)))
    kinds = {is_adaptation(run.record) for run in runs}
    who, steps = ("strategy", "experiences") if kinds == {False} else ("adapter", "segments")
    who, steps = (who, steps) if len(kinds) == 1 else ("strategy or adapter", "done")
    heads = (who, "seed", "status", steps, "seconds", "FLOPs", "config", "directory")
    lines = []
    for run in runs:
        config = str(run.identity.get("config_hash") or identity_hash(run.config))
        done = f"{run.done}/{run.experiences}"
        time, work = seconds(run.result("seconds", "total")), flops(run.flops)
        name = run.record.directory.name
        cells = (str(run.seed), run.status.replace("_", " "), done, time, work, config[:12], name)
        lines.append(Line(run.strategy, cells))
    commands = dict.fromkeys(command for run in runs if (command := _command(run)))
    again = "".join(f"<li><code>{escape(command)}</code></li>" for command in commands)
    return (
        f"<section>\n<h2>Runs</h2>\n{_grid(Grid(heads, (('', tuple(lines)),)))}"
        + (f"\n<h3>To run them again</h3>\n<ul>{again}</ul>" if again else "")
        + "\n</section>"
    )


def _command(run: Outcome) -> str:
    return str(run.record.environment.get("command") or "")
