"""The timeline of a stream of tasks: years, domains, sizes, and a strip of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from cil.report.images import picture
from cil.report.page import definitions, document, figures, html_table, write_page
from cil.report.plots import COLOURS, FAINT, INK, WIDTH, Picture, draw_plots, figure_of, legend

Task = Mapping[
    str, Any
]  # as the record of a task stream describes its events: id, dataset, year, domain, kind, classes, final, counts


def timeline_picture(tasks: Sequence[Task]) -> Picture:
    """Training images of each task in order, coloured by domain."""
    figure, (axes,) = figure_of(3.6, width=1.7 * WIDTH)
    domains = list(dict.fromkeys(task["domain"] for task in tasks))
    seen: set[str] = set()
    for place, task in enumerate(tasks):
        size = max(1, (task.get("counts") or {}).get("train") or 1)
        colour = COLOURS[domains.index(task["domain"]) % len(COLOURS)]
        again, several = task["dataset"] in seen, task["kind"] == "multilabel"
        seen.add(task["dataset"])
        axes.vlines(place, 1, size, color=colour, linewidth=1.2)
        axes.plot([place], [size], "s" if several else "o", color="white" if again else colour, markeredgecolor=colour,
                  markersize=7)  # fmt: skip
    for domain in domains:
        axes.plot([], [], "o", color=COLOURS[domains.index(domain) % len(COLOURS)], label=domain)
    final = next((place for place, task in enumerate(tasks) if task.get("final")), None)
    if final is not None:
        axes.axvline(final - 0.5, color=INK, linewidth=1, linestyle=":")
        axes.annotate("final years", (final - 0.5, 1), (4, 4), textcoords="offset points", fontsize=8.5, color=INK)
    every = max(1, -(-len(tasks) // 30))
    shown = list(range(0, len(tasks), every))
    names = [f"{tasks[place]['year']} {tasks[place]['id']}" for place in shown]
    axes.set_xticks(shown, names, rotation=55, ha="right", fontsize=8)
    axes.set(yscale="log", ylim=(1, None), ylabel="training images")
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", color=FAINT)
    legend(axes)
    caption = "In order of arrival. Round: one label an image; square: several; hollow: a data set that came before."
    return "The stream", caption, figure


def write_timeline(
    name: str,
    tasks: Sequence[Task],
    strips: Sequence[bytes | None],
    path: str | Path,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write one self-contained page: the timeline, then each task with what it is and a strip of images.

    Args:
        strips: A PNG for each task, or None.

    Raises:
        ConfigError: where the page cannot be written there.
    """
    years = [task["year"] for task in tasks]
    repeats = len(tasks) - len({task["dataset"] for task in tasks})
    subtitle = f"{len(tasks)} tasks, {min(years)} to {max(years)}, {repeats} of them of a data set that came before"
    picture = figures(draw_plots(0, partial(timeline_picture, tasks)))
    body = [
        f"<section>\n{picture}\n{definitions(facts or {})}\n</section>",
        f"<section>\n<h2>Tasks</h2>\n{timeline_table(tasks, strips)}\n</section>",
    ]
    return write_page(document(name, subtitle, body), path)


def timeline_table(tasks: Sequence[Task], strips: Sequence[bytes | None]) -> str:
    """Each task in a line, as HTML: year, name, domain and kind, images of each split, and a strip of them."""
    shown = any(strips)
    splits = dict.fromkeys(name for task in tasks for name in task.get("counts") or {})
    heads = ["year", "task", "domain", "asks for", *splits, *(["training images"] if shown else [])]
    rows = [_row(task, strip, list(splits), shown) for task, strip in zip(tasks, strips, strict=True)]
    return html_table(map(escape, heads), rows, "timeline")


def _row(task: Task, strip: bytes | None, splits: Sequence[str], shown: bool) -> str:
    counts = task.get("counts") or {}
    what = f"one of {task['classes']} classes" if task["kind"] == "multiclass" else f"any of {task['classes']} labels"
    more = f" (again {task['dataset']})" if task["dataset"] != task["id"] else ""
    final = " (final)" if task.get("final") else ""
    cells = [str(task["domain"]), f"{what}{more}", *(f"{counts[name]:,}" if name in counts else "–" for name in splits)]
    body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    shown_strip = picture(strip, str(task["id"])) if strip else "–"
    name = f'<th scope="row">{escape(str(task["id"]))}</th>'
    return f"<tr><td>{task['year']}{final}</td>{name}{body}{f'<td>{shown_strip}</td>' if shown else ''}</tr>"
