"""Tables and plots of task streams, laid out for text, Markdown, CSV, JSON and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cil.report.grids import NOTHING, Grid, Line, Titled, flops, seconds, whole
from cil.report.tasks import TaskRow, TaskSection
from cil.report.timeline import png_strip, timeline_figure, timeline_table
from cil.report.verdicts import Score

THUMBNAILS = "thumbnails"  # arrays of a record, ``thumbnails.0`` those of the first task: (n, H, W, 3) uint8
TERMS = (
    ("E %", "Mean over tasks of 100 − accuracy (several labels an image: 100 − mAP), each right after its training."),
    ("E at end %", "The same after the last task, where earlier ones are evaluated again (stream.reevaluate). BWT: "
                   "mean over earlier tasks of their score at the end less that right after training."),
    ("development, final", "E of the tasks before the years kept for the end, and of those years."),
    ("E_rel %", "Mean over tasks of (e − e_ref) / e_ref, the reference being independent on the same seeds: each task "
                "from random weights. Below 0: fewer errors."),
    ("N %", "Mean over tasks of (e_chance − e) / (e_chance − e_best): 0 is a guess, 100 the best row of this table in "
            "each task; tasks that no row knows better than a guess are left out."),
    ("FLOPs", "Of training, all search trials, their validation, probes and consolidation; a multiply-add counts two. "
              "Evaluation on test data stands apart."),
    ("front", "No other row has as low an E for as few FLOPs."),
    ("AUC_E", "Mean over the stream of the running mean error: early tasks weigh more."),
    ("peak params", "Most parameters held at once; carried B: every byte that crosses the last boundary, stored models "
                    "included."),
)  # fmt: skip


LEGEND = (
    "E: mean error right after a task's training; N: 0 a guess, 100 the best row of each task; AUC_E: early tasks "
    "weigh more; FLOPs: search, validation and probes included, evaluation not; front: no row has less of both."
)


def task_grid(section: TaskSection) -> Grid:
    """The main table: error and operations."""
    kinds = _kinds(section)
    related = any(row.relative.mean is not None for row in section.rows)
    again = any(row.at_end.mean is not None for row in section.rows)
    heads = ["learner", "n", "E %", *(f"{kind} %" for kind in kinds), *(["E at end %", "BWT"] if again else [])]
    heads += [*(["E_rel %"] if related else []), "N %"]
    stored = any(row.exemplars for row in section.rows)
    heads += ["AUC_E", "FLOPs", "front", "peak params", *(["exemplars"] if stored else []), "carried B", "seconds"]
    lines = []
    for row in section.rows:
        cells = [str(len(row.seeds)), str(row.error), *(str(row.parts.get(kind, Score({}))) for kind in kinds)]
        cells += [str(row.at_end), str(row.backward)] if again else []
        cells += [*([str(row.relative)] if related else []), str(row.normalised)]
        spent = flops(row.spent) if row.runs else NOTHING
        cells += [str(row.area), spent, "yes" if row.front else "", whole(row.peak_parameters)]
        cells += [whole(row.exemplars)] if stored else []
        cells += [whole(row.carried)]
        marks = [*(["bound"] if row.bound else []), *(["incomplete"] if row.remark else [])]
        lines.append(Line(row.label, (*cells, seconds(row.seconds)), tuple(marks)))
    return Grid(tuple(heads), (("", tuple(lines)),))


def errors_grid(section: TaskSection) -> Grid:
    """Error of each task, a line each, beside that of a guess."""
    rows = [row for row in section.rows if row.runs]
    lines = []
    for index, task in enumerate(section.tasks):
        guess = section.chance[index]
        chance = NOTHING if guess is None else f"{guess:.1f}"
        cells = (str(task["classes"]), whole((task.get("counts") or {}).get("train")), chance)
        errors = (_short(row.errors[index]) for row in rows)
        lines.append(Line(f"{task['year']} {task['id']}", (*cells, *errors), _marks(section, index)))
    return Grid(("task", "classes", "train", "chance", *(row.label for row in rows)), (("", tuple(lines)),))


def _marks(section: TaskSection, index: int) -> tuple[str, ...]:
    task = section.tasks[index]
    again = task["dataset"] in [earlier["dataset"] for earlier in section.tasks[:index]]
    marks = {"several labels": task["kind"] == "multilabel", "repeat": again, "final": bool(task.get("final"))}
    return tuple(mark for mark, holds in marks.items() if holds)


def _short(score: Score) -> str:
    return NOTHING if score.mean is None else f"{score.mean:.1f}"


def flops_grid(section: TaskSection) -> Titled:
    """Operations of the whole stream by part, those that took nothing left out; evaluation is not in the sum."""
    rows = [row for row in section.rows if row.runs]
    each = [_parts(row) for row in rows]
    names = [name for name in PARTS if any(parts.get(name) for parts in each)]
    names += [name for name in dict.fromkeys(name for parts in each for name in parts) if name not in PARTS]
    lines = [
        Line(
            row.label,
            (*(flops(parts.get(name, 0)) for name in names), flops(row.spent), flops(row.flops.get("evaluation", 0))),
        )
        for row, parts in zip(rows, each, strict=True)
    ]
    cells = Grid(("learner", *names, "sum", "evaluation"), (("", tuple(lines)),))
    said = [f"{name}: {words}" for name, words in PARTS.items() if name in names]
    note = "; ".join([*said, "sum: all of these; evaluation: on test data, not in the sum"])
    return Titled("Operations over the stream, by part", cells, f"{note}.")


PARTS = {
    "training": "outside trials, which is a refit of the chosen settings, or all training where nothing is searched",
    "chosen trials": "the trial that is kept of each task's search, so the training of what is evaluated unless it was "
    "refit",
    "other trials": "those that were not chosen",
    "all trials": "of the search, among them the one of each task whose weights are kept unless they are refit",
    "validation": "judging trials on dev",
    "probe": "choosing where a task starts from",
    "consolidation": "what a learner does between tasks, as statistics of old ones",
}


def _parts(row: TaskRow) -> dict[str, float]:
    """Operations by part, a search as the trials that were chosen and the others where that is known."""
    parts = {name: count for name, count in row.flops.items() if name not in ("search", "evaluation") and count}
    searched = row.flops.get("search", 0)
    if searched and row.chosen is not None:
        return parts | {"chosen trials": row.chosen, "other trials": searched - row.chosen}
    return parts | ({"all trials": searched} if searched else {})


def sources_grid(section: TaskSection) -> Grid | None:
    """Which task each task started from, of learners that choose; with several seeds, how many chose so."""
    rows = [row for row in section.rows if any(row.sources)]
    if not rows:
        return None
    lines = [
        Line(f"{task['year']} {task['id']}", tuple(_chosen(row.sources[index]) for row in rows))
        for index, task in enumerate(section.tasks)
    ]
    return Grid(("task", *(row.label for row in rows)), (("", tuple(lines)),))


def _chosen(sources: Sequence[str]) -> str:
    met = Counter(sources).most_common()
    if len(sources) < 2:
        return met[0][0] if met else NOTHING
    return ", ".join(f"{name} {count}/{len(sources)}" for name, count in met)


def task_tables(section: TaskSection) -> list[Titled]:
    """What stands below the main table: errors by task, operations by part, sources."""
    sources = sources_grid(section)
    found = [
        Titled(f"Error of each task right after its training, % ({section.split})", errors_grid(section)),
        flops_grid(section),
        *([Titled("The task that each task started from", sources)] if sources is not None else []),
    ]
    return [one for one in found if one.grid.lines]


def task_said(section: TaskSection) -> list[str]:
    """Verdict, remarks on rows and warnings, for a terminal or a list."""
    said = [section.verdict.text] if section.verdict else []
    said += [f"* {remark}" for remark in task_remarks(section)]
    bounds = [row.label for row in section.rows if row.bound]
    said += [f"* {', '.join(bounds)}: a bound, kept out of the verdict and of the front"] if bounds else []
    return said + [f"! {warning}" for warning in section.warnings]


def task_remarks(section: TaskSection) -> list[str]:
    """Sentences on rows."""
    return [f"{row.label}: {row.remark}" for row in section.rows if row.remark]


def _kinds(section: TaskSection) -> list[str]:
    """Kinds and years, where there are both."""
    met = dict.fromkeys(kind for row in section.rows for kind in row.parts)
    pairs = (("development", "final"), ("multiclass", "multilabel"))
    return [kind for pair in pairs if all(kind in met for kind in pair) for kind in pair]


def task_entries(sections: Sequence[TaskSection]) -> list[dict[str, Any]]:
    """One flat entry a row, numbers unrounded, every entry with the same keys."""
    parts = list(dict.fromkeys(part for section in sections for row in section.rows for part in row.flops))
    kinds = list(dict.fromkeys(kind for section in sections for row in section.rows for kind in row.parts))
    ids = list(dict.fromkeys(task["id"] for section in sections for task in section.tasks))
    entries = []
    for number, section in enumerate(sections, 1):
        for row in section.rows:
            entry: dict[str, Any] = {"table": number, "title": section.title, "label": row.label}
            entry |= {"strategy": row.strategy, "n": len(row.seeds), "seeds": " ".join(map(str, row.seeds))}
            scores = {"mean_error": row.error, "relative_error": row.relative, "normalised_score": row.normalised}
            scores |= {"area_under_errors": row.area}
            scores |= {f"mean_error_{kind}": row.parts.get(kind, Score({})) for kind in kinds}
            errors = dict(zip([task["id"] for task in section.tasks], row.errors, strict=True))
            scores |= {f"error_{name}": errors.get(name, Score({})) for name in ids}
            for name, score in scores.items():
                entry |= {name: score.mean, f"{name}_std": score.std}
            entry |= {f"flops_{part}": row.flops.get(part) for part in parts} | {"flops_chosen_trials": row.chosen}
            entry |= {"flops": row.spent, "front": row.front, "exemplars": row.exemplars}
            entry |= {"peak_parameters": row.peak_parameters, "carried_bytes": row.carried, "seconds": row.seconds}
            entries.append(entry | {"remark": row.remark})
    return entries


# plots --------------------------------------------------------------------------------------------------------------


def task_plots(section: TaskSection, number: int, paint: Mapping[str, str]) -> list[Any]:
    """The front of error and operations first; how they grow over the stream."""
    from cil.report.plots import WIDTH, Plot, styled, svg_of

    rows = [row for row in section.rows if row.error.mean is not None]
    with styled():
        made = [_front(rows, paint), _over_stream(section, rows, paint)] if rows else []
        return [
            Plot(title, caption, svg_of(figure, f"t{number}p{index}", title), figure.get_figwidth() > WIDTH)
            for index, (title, caption, figure) in enumerate(made)
        ]


def task_timeline(section: TaskSection, number: int) -> tuple[Any, str]:
    """The stream itself: years, domains and sizes as a plot, and as HTML a table with the images that runs kept."""
    from cil.report.plots import Plot, styled, svg_of

    with styled():
        title, caption, figure = timeline_figure(section.tasks)
        plot = Plot(title, caption, svg_of(figure, f"t{number}line", title), broad=True)
    return plot, timeline_table(section.tasks, strips_of(section))


def strips_of(section: TaskSection) -> list[bytes | None]:
    """For each task the images that the first run which met it kept, side by side as a PNG; None where none did."""
    strips: list[bytes | None] = [None] * len(section.tasks)
    for run in (run for group in section.groups for run in group.runs):
        kept = run.record.arrays() if None in strips else {}
        for index, strip in enumerate(strips):
            if strip is None and f"{THUMBNAILS}.{index}" in kept:
                strips[index] = png_strip(kept[f"{THUMBNAILS}.{index}"])
    return strips


def _front(rows: Sequence[TaskRow], paint: Mapping[str, str]) -> tuple[str, str, Any]:
    from cil.report.plots import BOUND, INK, WIDTH, figure_of, legend, line_style

    figure, (axes,) = figure_of(4.6, width=1.7 * WIDTH)
    front = sorted((row.spent, row.error.mean or 0.0) for row in rows if row.front)
    if front:
        x, y = zip(*front, (max(row.spent for row in rows), front[-1][1]), strict=True)
        axes.step(x, y, where="post", color=INK, linewidth=1.2, linestyle=":", label="front", zorder=1)
    for place, row in enumerate(rows):
        style = line_style(BOUND if row.bound else paint[row.label], place) | {"linestyle": "none", "markersize": 9}
        axes.errorbar(
            [row.spent], [row.error.mean or 0.0], yerr=[row.error.std or 0.0], **style, capsize=3, elinewidth=1.2,
            label=row.label,
        )  # fmt: skip
    _logarithmic(axes, [row.spent for row in rows])
    axes.set_xlabel("operations over the stream, search and validation included")
    axes.set_ylabel("mean error E, %")
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    caption = (
        "Down and left is better. Bars: one standard deviation over seeds; dotted: rows that no other one beats in "
    )
    return "Error against compute", caption + "both. Grey: bounds.", figure


def _over_stream(section: TaskSection, rows: Sequence[TaskRow], paint: Mapping[str, str]) -> tuple[str, str, Any]:
    from cil.report.plots import BOUND, WIDTH, figure_of, legend, line_style

    figure, (axes,) = figure_of(4.2, width=1.7 * WIDTH)
    for place, row in enumerate(rows):
        errors = [score.mean or 0.0 for score in row.errors]
        running = [sum(errors[: index + 1]) / (index + 1) for index in range(len(errors))]
        style = line_style(BOUND if row.bound else paint[row.label], place, dashed=row.bound)
        axes.plot(row.so_far, running, **style, label=row.label)
    _logarithmic(axes, [value for row in rows for value in row.so_far])
    axes.set_xlabel("operations so far, search and validation included")
    axes.set_ylabel("mean error of the tasks so far, %")
    legend(axes)
    return "The stream, task by task", f"A point a task, {len(section.tasks)} in all. Means over seeds.", figure


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    known = [value for value in values if value > 0]
    if known and len(known) == len(values) and max(known) > 8 * min(known):
        axes.set_xscale("log")


def task_reading() -> str:
    """How to read a page of task streams, as HTML."""
    terms = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in TERMS)
    return (
        "<section>\n<h2>How to read task streams</h2>\n"
        "<p>Unlike tasks come one after the other, in the order in which they were published. A learner is told which "
        "task an image is of, may start from what earlier tasks left, and is judged by how well and how cheaply it "
        "learns the next one: error and operations, search included. Rows are compared inside one table only.</p>\n"
        f"<dl>\n{terms}\n</dl>\n</section>"
    )
