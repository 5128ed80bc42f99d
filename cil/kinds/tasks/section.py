"""Task-stream runs in a report: error over tasks against operations, and which learners trade best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from cil.kinds.tasks.plots import plots
from cil.kinds.tasks.rows import UNKNOWN, TaskRow
from cil.kinds.tasks.table import TaskTable, task_tables
from cil.kinds.tasks.timeline import png_strip, timeline_table
from cil.report.grids import NOTHING, Grid, Line, Titled, decimal, flops, grid, scores_entry, seconds, whole
from cil.report.section import ReadingAid, Section, Sections
from cil.tracking import Record

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
READING = ReadingAid(
    "How to read task streams",
    "Unlike tasks come one after the other, in the order in which they were published. A learner is told which task "
    "an image is of, may start from what earlier tasks left, and is judged by how well and how cheaply it learns the "
    "next one: error and operations, search included. Rows are compared inside one table only.",
    TERMS,
)


def sections(records: Sequence[Record]) -> Sections:
    """Sections of task-stream records."""
    tables = task_tables(records)
    found = [_section(table, number, len(tables) > 1) for number, table in enumerate(tables, 1)]
    return Sections(tuple(found), READING)


def _section(table: TaskTable, number: int, several: bool) -> Section:
    return Section(
        title=table.title,
        subtitle=table.budget,
        condition="Budget",
        number=number if several else 0,
        labels=tuple(row.label for row in table.rows),
        facts=table.facts,
        grid=_grid(table),
        tables=tuple(_tables(table)),
        verdicts=() if table.verdict is None else (table.verdict,),
        remarks=tuple(_remarks(table)),
        warnings=table.warnings,
        legend=LEGEND,
        entries=tuple(_entries(table, number)),
        plots=partial(plots, table),
        extra=lambda: timeline_table(table.tasks, strips_of(table)),
    )


def _grid(table: TaskTable) -> Grid:
    """The main table: error and operations."""
    kinds = _paired_kinds(table)
    related = any(row.relative.mean is not None for row in table.rows)
    again = any(row.at_end.mean is not None for row in table.rows)
    stored = any(row.exemplars for row in table.rows)
    lines = []
    for row in table.rows:
        cells = {"n": str(len(row.seeds)), "E %": str(row.error)}
        cells |= {f"{kind} %": str(row.parts.get(kind, UNKNOWN)) for kind in kinds}
        cells |= {"E at end %": str(row.at_end), "BWT": str(row.backward)} if again else {}
        cells |= {"E_rel %": str(row.relative)} if related else {}
        cells |= {"N %": str(row.normalised), "AUC_E": str(row.area), "FLOPs": flops(row.spent if row.runs else None)}
        cells |= {"front": "yes" if row.front else "", "peak params": whole(row.peak_parameters)}
        cells |= {"exemplars": whole(row.exemplars)} if stored else {}
        cells |= {"carried B": whole(row.carried), **{cap.head: str(cap) for cap in row.caps}}
        marks = [*(["bound"] if row.bound else []), *(["incomplete"] if row.remark else [])]
        marks += [cap.mark for cap in row.caps if cap.mark]
        lines.append(Line(row.label, cells | {"seconds": seconds(row.seconds)}, tuple(marks)))
    return grid("learner", lines)


def _paired_kinds(table: TaskTable) -> list[str]:
    """Kinds and years, where there are both."""
    met = {kind for row in table.rows for kind in row.parts}
    pairs = (("development", "final"), ("multiclass", "multilabel"))
    return [kind for pair in pairs if met.issuperset(pair) for kind in pair]


def _remarks(table: TaskTable) -> Iterable[str]:
    """Sentences on rows."""
    for row in table.rows:
        if row.remark:
            yield f"{row.label}: {row.remark}"
        yield from (f"{row.label}: {cap.mark}, {cap} {cap.unit}, limit {cap.limit:,}" for cap in row.caps if cap.mark)
    if bounds := [row.label for row in table.rows if row.bound]:
        yield f"{', '.join(bounds)}: a bound, kept out of the verdict and of the front"


def _tables(table: TaskTable) -> Iterable[Titled]:
    """What stands below the main table: errors by task, operations by part, sources."""
    yield Titled(f"Error of each task right after its training, % ({table.split})", _errors_grid(table))
    rows = [row for row in table.rows if row.runs]
    if rows:
        yield _flops_table(rows)
    if chosen := [row for row in rows if any(row.sources)]:
        lines = [
            Line(_task_name(task), {row.label: _sources(row.sources[index]) for row in chosen})
            for index, task in enumerate(table.tasks)
        ]
        yield Titled("The task that each task started from", grid("task", lines))


def _errors_grid(table: TaskTable) -> Grid:
    """Error of each task, a line each, beside that of a guess."""
    lines = []
    for index, task in enumerate(table.tasks):
        cells = {
            "classes": str(task["classes"]),
            "train": whole((task.get("counts") or {}).get("train")),
            "chance": decimal(table.chance[index]),
            **{row.label: decimal(row.errors[index].mean) for row in table.rows if row.runs},
        }
        lines.append(Line(_task_name(task), cells, _marks(table, index)))
    return grid("task", lines)


def _task_name(task: dict[str, Any]) -> str:
    return f"{task['year']} {task['id']}"


def _marks(table: TaskTable, index: int) -> tuple[str, ...]:
    task = table.tasks[index]
    again = task["dataset"] in [earlier["dataset"] for earlier in table.tasks[:index]]
    marks = {"several labels": task["kind"] == "multilabel", "repeat": again, "final": bool(task.get("final"))}
    return tuple(mark for mark, holds in marks.items() if holds)


def _sources(sources: Sequence[str]) -> str:
    """Which task was started from; with several seeds, how many chose so."""
    met = Counter(sources).most_common()
    if len(sources) < 2:
        return met[0][0] if met else NOTHING
    return ", ".join(f"{name} {count}/{len(sources)}" for name, count in met)


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


def _flops_table(rows: Sequence[TaskRow]) -> Titled:
    """Operations of the whole stream by part, those that took nothing left out; evaluation is not in the sum."""
    each = [_parts(row) for row in rows]
    names = [name for name in PARTS if any(parts.get(name) for parts in each)]
    names += [name for name in dict.fromkeys(name for parts in each for name in parts) if name not in PARTS]
    lines = []
    for row, parts in zip(rows, each, strict=True):
        cells = {name: parts.get(name, 0) for name in names}
        cells |= {"sum": row.spent, "evaluation": row.flops.get("evaluation", 0)}
        lines.append(Line(row.label, {head: flops(count) for head, count in cells.items()}))
    explained = [f"{name}: {words}" for name, words in PARTS.items() if name in names]
    note = "; ".join([*explained, "sum: all of these; evaluation: on test data, not in the sum"])
    return Titled("Operations over the stream, by part", grid("learner", lines), f"{note}.")


def _parts(row: TaskRow) -> dict[str, float]:
    """Operations by part, a search as the trials that were chosen and the others where that is known."""
    parts = {name: count for name, count in row.flops.items() if name not in ("search", "evaluation") and count}
    searched = row.flops.get("search", 0)
    if searched and row.chosen is not None:
        return parts | {"chosen trials": row.chosen, "other trials": searched - row.chosen}
    return parts | ({"all trials": searched} if searched else {})


def _entries(table: TaskTable, number: int) -> Iterable[dict[str, Any]]:
    """One flat entry a row, numbers unrounded, every entry with the same keys."""
    parts = list(dict.fromkeys(part for row in table.rows for part in row.flops))
    kinds = list(dict.fromkeys(kind for row in table.rows for kind in row.parts))
    for row in table.rows:
        scores = {"mean_error": row.error, "relative_error": row.relative, "normalised_score": row.normalised}
        scores |= {"area_under_errors": row.area}
        scores |= {f"mean_error_{kind}": row.parts.get(kind, UNKNOWN) for kind in kinds}
        scores |= {f"error_{task['id']}": error for task, error in zip(table.tasks, row.errors, strict=True)}
        yield {
            "table": number,
            "title": f"{table.title}; {table.budget}",
            "label": row.label,
            "strategy": row.strategy,
            "n": len(row.seeds),
            "seeds": " ".join(map(str, row.seeds)),
            **scores_entry(scores),
            **{f"flops_{part}": row.flops.get(part) for part in parts},
            "flops_chosen_trials": row.chosen,
            "flops": row.spent,
            "front": row.front,
            "exemplars": row.exemplars,
            "peak_parameters": row.peak_parameters,
            "carried_bytes": row.carried,
            **{f"cap_{cap.name}": cap.last for cap in row.caps},
            "seconds": row.seconds,
            "remark": row.remark,
        }


def strips_of(table: TaskTable) -> list[bytes | None]:
    """For each task the images that the first run which met it kept, side by side as a PNG; None where none did."""
    strips: list[bytes | None] = [None] * len(table.tasks)
    for run in (run for group in table.groups for run in group.runs):
        kept = run.record.arrays() if None in strips else {}
        for index, strip in enumerate(strips):
            if strip is None and f"{THUMBNAILS}.{index}" in kept:
                strips[index] = png_strip(kept[f"{THUMBNAILS}.{index}"])
    return strips
