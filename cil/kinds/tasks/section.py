"""Task-stream runs in a report: error over tasks against operations, and which learners trade best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from cil.kinds.tasks.plots import plots
from cil.kinds.tasks.rows import TaskRow, chance_errors, task_rows
from cil.kinds.tasks.timeline import Task, timeline_table
from cil.report.bills import USE_TERMS, bill_cells, bill_entry, bill_terms, use_cells, use_entry
from cil.report.grids import NOTHING, Grid, Line, Titled, decimal, flops, grid, scores_entry, seconds, whole
from cil.report.grouping import Group, budget_words, by_budget, comparisons, grouped
from cil.report.images import png_strip
from cil.report.labels import labels_of
from cil.report.rows import lowest_error, remarks
from cil.report.runs import CONVENTIONS, conventions_of
from cil.report.section import ReadingAid, Section, Sections
from cil.report.settings_list import computing, edited_code, known, one_seed
from cil.report.setup import image_facts, paragraph, training_facts
from cil.report.verdicts import Score, few
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
    ("peak params", "Most parameters held at once; peak B: most bytes held at once in training."),
    *USE_TERMS,
    *bill_terms(CONVENTIONS),
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
    """Sections of task-stream records: rows that met the same tasks in the same order.

    Budgets may differ within a section, as operations are one of its axes; a row then says its own.
    """
    parts = comparisons(grouped(records))
    found = [_section(groups, number if len(parts) > 1 else 0) for number, groups in enumerate(parts, 1)]
    return Sections(tuple(found), READING)


def _section(groups: Sequence[Group], number: int) -> Section:
    stream = groups[0].first.stream
    tasks: Sequence[Task] = stream["tasks"]
    split = str((stream.get("splits") or ["test"])[0])
    chance = chance_errors((run for group in groups for run in group.runs), tasks, split)
    rows = task_rows(groups, _labelled(groups), split, chance)
    years = [task["year"] for task in tasks]
    title = f"{groups[0].first.stream_name}: {len(years)} tasks, {min(years)} to {max(years)}"
    budgets = _budgets(groups)
    identity = {"table": max(number, 1), "title": f"{title}; {budgets}"}
    return Section(
        title=title,
        subtitle=budgets,
        condition="Budget",
        number=number,
        rows=tuple(rows),
        facts=_facts(groups, split),
        setup=paragraph(f"Stream: {title}, in the order in which they were published.", groups, budgets),
        grid=_grid(rows),
        tables=tuple(_tables(rows, tasks, chance)),
        verdicts=lowest_error(
            "Mean score (100 − E)", {row.label: row.error for row in rows if row.standing == "ranked"}
        ),
        remarks=remarks(rows),
        warnings=tuple(_warnings(groups, rows)),
        legend="" if number > 1 else LEGEND,
        entries=tuple(identity | entry for entry in _entries(rows, tasks)),
        plots=partial(plots, rows, tasks),
        pictures=lambda: timeline_table(tasks, strips_of(groups, len(tasks))),
    )


def _grid(rows: Sequence[TaskRow]) -> Grid:
    met = {kind for row in rows for kind in row.parts}
    pairs = (("development", "final"), ("multiclass", "multilabel"))
    kinds = [kind for pair in pairs if met.issuperset(pair) for kind in pair]
    related = any(row.relative.mean is not None for row in rows)
    again = any(row.at_end.mean is not None for row in rows)
    stored = any(row.exemplars for row in rows)
    counted = conventions_of(run for row in rows for run in row.group.runs)
    used = {row.label: cells for row, cells in zip(rows, use_cells(rows), strict=True)}
    lines = []
    for row in rows:
        cells = {"n": str(len(row.runs)), "E %": str(row.error)}
        cells |= {f"{kind} %": str(row.parts.get(kind, Score({}))) for kind in kinds}
        cells |= {"E at end %": str(row.at_end), "BWT": str(row.score("backward_transfer"))} if again else {}
        cells |= {"E_rel %": str(row.relative)} if related else {}
        cells |= {"N %": str(row.normalised), "AUC_E": str(row.score("area_under_errors", row.split))}
        cells |= {"FLOPs": flops(row.spent if row.runs else None), "front": "yes" if row.front else ""}
        cells |= {"peak params": whole(row.largest("peak_parameters"))}
        cells |= {"exemplars": whole(row.exemplars)} if stored else {}
        cells |= used[row.label] | bill_cells(row, counted) | {"peak B": whole(row.peak_training_bytes)}
        cells |= row.caps_cells
        lines.append(row.line(cells | {"seconds": seconds(row.seconds)}))
    return grid("learner", lines)


def _tables(rows: Sequence[TaskRow], tasks: Sequence[Task], chance: Sequence[float | None]) -> Iterable[Titled]:
    finished = [row for row in rows if row.runs]
    names = [f"{task['year']} {task['id']}" for task in tasks]
    lines = []
    for place, task in enumerate(tasks):
        cells = {"classes": str(task["classes"]), "train": whole((task.get("counts") or {}).get("train"))}
        cells |= {"chance": decimal(chance[place])}
        cells |= {row.label: decimal(row.score("errors", row.split, place).mean) for row in finished}
        lines.append(Line(names[place], cells, _marks(tasks, place)))
    yield Titled(f"Error of each task right after its training, % ({rows[0].split})", grid("task", lines))
    if finished:
        yield _flops_table(finished)
    if chosen := [row for row in finished if any(map(row.sources, range(len(tasks))))]:
        cells_of = [{row.label: _sources(row.sources(place)) for row in chosen} for place in range(len(tasks))]
        yield Titled("The task that each task started from", grid("task", map(Line, names, cells_of)))


def _marks(tasks: Sequence[Task], place: int) -> tuple[str, ...]:
    task = tasks[place]
    again = task["dataset"] in [earlier["dataset"] for earlier in tasks[:place]]
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


def _entries(rows: Sequence[TaskRow], tasks: Sequence[Task]) -> Iterable[dict[str, Any]]:
    parts = list(dict.fromkeys(part for row in rows for part in row.flops))
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.parts))
    for row in rows:
        scores = {"mean_error": row.error, "relative_error": row.relative, "normalised_score": row.normalised}
        scores |= {"area_under_errors": row.score("area_under_errors", row.split)}
        scores |= {f"mean_error_{kind}": row.parts.get(kind, Score({})) for kind in kinds}
        scores |= {f"error_{t['id']}": error for t, error in zip(tasks, row.errors, strict=True)}
        yield {
            "label": row.label,
            "strategy": row.group.first.learner,
            "n": len(row.runs),
            "seeds": " ".join(map(str, row.seeds)),
            **scores_entry(scores),
            **{f"flops_{part}": row.flops.get(part) for part in parts},
            "flops_chosen_trials": row.chosen,
            "flops": row.spent,
            "front": row.front,
            "exemplars": row.exemplars,
            "images_beside": row.images_beside,
            "peak_parameters": row.largest("peak_parameters"),
            "carried_bytes": row.carried(),
            **bill_entry(row, conventions_of(run for one in rows for run in one.group.runs)),
            **use_entry(row),
            "peak_training_bytes": row.peak_training_bytes,
            **row.caps_entry,
            "seconds": row.seconds,
            "remark": "; ".join(note.text for note in row.notes if note.mark != "bound"),
        }


def strips_of(groups: Sequence[Group], tasks: int) -> list[bytes | None]:
    """For each task the images that the first run which met it kept, side by side as a PNG; None where none did."""
    strips: list[bytes | None] = [None] * tasks
    for run in (run for group in groups for run in group.runs):
        missing = {f"{THUMBNAILS}.{index}": index for index, strip in enumerate(strips) if strip is None}
        for name, images in (run.arrays(missing) if missing else {}).items():
            strips[missing[name]] = png_strip(images)
    return strips


def _labelled(groups: Sequence[Group]) -> list[str]:
    parts = by_budget(groups)
    named = {id(group): name for part in parts for group, name in zip(part, labels_of(part), strict=True)}
    plain = [named[id(group)] for group in groups]
    if len(parts) == 1:
        return plain
    for words in (_applied, _budget_of):
        labels = [f"{name}, {words(group)}" for name, group in zip(plain, groups, strict=True)]
        if len(set(labels)) == len(labels):
            break
    return labels


def _budget_of(group: Group) -> str:
    return budget_words(group.first.budget)


def _applied(group: Group) -> str:
    """The budget as far as it is one for this learner: a cap on exemplars is none where none are kept."""
    budget = group.first.budget
    return budget_words(budget if _keeps(group) else {**budget, "exemplars": None, "per_class": None})


def _keeps(group: Group) -> bool:
    """True if it keeps images, and not as a bound, which no budget stops; taken to do so until a run says."""
    kept = [run.exemplars for run in group.runs if run.exemplars is not None]
    return not group.first.bound and (any(kept) or not kept)


def _budgets(groups: Sequence[Group]) -> str:
    """All budgets of a table; where one is of some learners alone, it says of which."""
    judged = [group for group in groups if not group.first.bound] or list(groups)
    applied: dict[str, list[str]] = {}
    for group in judged:
        applied.setdefault(_applied(group), []).append(group.first.learner)
    if len(applied) == 1 or len(set(map(_budget_of, judged))) == len(applied):
        return " | ".join(applied)
    return " | ".join(f"{words} ({few(list(dict.fromkeys(names)))})" for words, names in applied.items())


def _budget_facts(groups: Sequence[Group]) -> Iterable[str]:
    """The budgets that were set, and for whom they are none."""
    without: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        names = without.setdefault(_budget_of(group), {})
        if group.first.counts_exemplars and not _keeps(group):
            what = "a bound is not held to it" if group.first.bound else "a cap on exemplars, of which none are kept"
            names.setdefault(what, []).append(group.first.learner)
    for words, names in without.items():
        exempt = "; ".join(f"{few(list(dict.fromkeys(own)))}: {what}" for what, own in names.items())
        yield f"{words} ({exempt})" if exempt else words


def _facts(groups: Sequence[Group], split: str) -> dict[str, str]:
    runs = [run for group in groups for run in group.runs]
    stream = runs[0].stream
    manifest = stream.get("manifest") or ""
    again = dict.fromkeys(_again(str(run.stream.get("reevaluate"))) for run in runs)
    facts = {
        "stream": str(stream["name"]),
        "manifest": ", ".join(f"{key} {value}" for key, value in manifest.items())
        if isinstance(manifest, dict)
        else str(manifest),
        "fingerprint": str(stream.get("fingerprint"))[:12],
        "evaluated": f"{split}; {' | '.join(again)}",
        **image_facts(groups),
        **training_facts(groups),
        "budget": " | ".join(_budget_facts(groups)),
        "tuning": " | ".join(f"per_task, {count} trials a task judged on dev" for count in _trials(groups) if count),
        **computing(runs),
    }
    return known(facts)


def _again(when: str) -> str:
    """
    >>> _again("all_seen"), _again("every_5")
    ('all tasks so far after each event', 'all tasks so far after every 5 events')
    """
    if when == "none":
        return "earlier tasks are not evaluated again"
    number = when.removeprefix("every_")
    return f"all tasks so far after {f'every {number} events' if number != when else 'each event'}"


def _trials(groups: Iterable[Group]) -> list[int]:
    """How many settings were tried at the first task."""
    return sorted({len(run.result("events", 0, "search") or ()) for group in groups for run in group.runs})


def _warnings(groups: Sequence[Group], rows: Sequence[TaskRow]) -> Iterable[str]:
    yield from one_seed(rows)
    yield "The task of each test image was given at test time; each task has a head of its own."
    searched = _trials(groups)
    if len(searched) > 1:
        yield f"Rows differ in their trials a task: {' and '.join(map(str, searched))}."
    for row in rows:
        made, asked = row.trials
        if made < asked:
            yield f"{row.label}: a budget of compute left {made} of {asked} trials over the stream."
    if len({str(run.stream.get("reevaluate")) for group in groups for run in group.runs}) > 1:
        yield "Rows differ in when earlier tasks are evaluated again; E is right after training in all of them."
    yield from edited_code(groups, rows)
