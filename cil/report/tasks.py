"""Runs on task streams as tables of their own: error over tasks against operations, and which learners trade best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cil import metrics
from cil.report.labels import labels_of
from cil.report.runs import Outcome, dig
from cil.report.settings import Arena, Group, arenas, budget_words, by_budget, grouped
from cil.report.verdicts import Score, Verdict, few, verdict
from cil.tracking import Record

REFERENCE = "independent"  # the learner that E_rel is relative to: each task from random weights
PARTS = ("training", "search", "validation", "probe", "consolidation", "evaluation")  # in order; others before the last


@dataclass(frozen=True)
class TaskRow:
    """One learner in one setting, over its seeds. Percent, operations, bytes, seconds; None where unknown.

    Attributes:
        label: The strategy, and what tells it from another row of the same one.
        runs: Those that finished, one for each seed.
        error: E, the mean error over all tasks; ``parts`` the same of each kind and of development and final years.
        at_end: E at the end of the stream, backward: backward transfer; None where earlier tasks are not met again.
        normalised: N, the mean over tasks of N_t in percent: 0 is a guess, 100 the best row of each task.
        relative: E_rel against ``independent`` on the same seeds, percent; below 0 is fewer errors.
        errors: Of each task right after its training.
        flops: Operations by part, mean over seeds. Trials of a search are ``search``, also the one that is kept.
        chosen: Operations of the trials that are kept, a part of ``search``; None where runs do not say.
        so_far: Operations of all parts but evaluation, up to each task.
        front: Whether no other row has as low an error for as few operations.
        sources: The task that each task started from, by seed, where the learner says so.
        remark: Why seeds are missing; empty where none is.
    """

    label: str
    strategy: str
    bound: bool
    runs: tuple[Outcome, ...]
    error: Score
    parts: dict[str, Score]
    area: Score
    at_end: Score
    backward: Score
    normalised: Score
    relative: Score
    errors: tuple[Score, ...]
    flops: dict[str, float]
    chosen: float | None
    so_far: tuple[float, ...]
    peak_parameters: int | None
    exemplars: int | None
    carried: int | None
    seconds: float | None
    sources: tuple[tuple[str, ...], ...]
    front: bool = False
    remark: str = ""

    @property
    def spent(self) -> float:
        """Operations of everything but evaluation."""
        return sum(count for part, count in self.flops.items() if part != "evaluation")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class TaskSection:
    """Rows that met the same tasks in the same order.

    Attributes:
        tasks: What the record says of each event: id, year, domain, kind, classes, counts.
        split: Which one the errors are of.
        chance: Error of a guess at each task, percent; None where no run says.
        rows: Lowest mean error first.
    """

    title: str
    facts: dict[str, str]
    tasks: tuple[dict[str, Any], ...]
    split: str
    chance: tuple[float | None, ...]
    rows: tuple[TaskRow, ...]
    verdict: Verdict | None
    warnings: tuple[str, ...]
    groups: tuple[Group, ...] = field(repr=False, default=())


def is_task_run(record: Record) -> bool:
    """Whether the record is of a stream that tells the task, one event after the other."""
    return bool(dig(record.identity, "stream", "tasks"))


def task_sections(records: Iterable[Record]) -> tuple[TaskSection, ...]:
    """Task-stream records by what may be compared: the same tasks, precision and kind of device.

    Budgets may differ within a section, as operations are one of its axes; a row then says its own.
    """
    found = arenas(grouped(records))
    return tuple(_section(arena, _labelled(arena.groups)) for arena in found)


def _labelled(groups: Sequence[Group]) -> list[str]:
    parts = by_budget(groups)
    named = {id(group): name for part in parts for group, name in zip(part, labels_of(part), strict=True)}
    plain = [named[id(group)] for group in groups]
    for words in (_applied, _asked):
        labels = [
            f"{name}, {words(group)}" if len(parts) > 1 else name for name, group in zip(plain, groups, strict=True)
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def _asked(group: Group) -> str:
    return budget_words(group.first.budget)


def _applied(group: Group) -> str:
    """The budget as far as it is one for this learner: a cap on exemplars is none where none are kept."""
    budget = group.first.budget
    return budget_words(budget if _keeps(group) else {**budget, "exemplars": None})


def _keeps(group: Group) -> bool:
    """Whether it keeps images, and not as a bound, which no budget stops; taken to do so until a run says."""
    kept = [run.exemplars for run in group.runs if run.exemplars is not None]
    return not group.first.bound and (any(kept) or not kept)


def _budgets(groups: Sequence[Group]) -> str:
    """All budgets of a section; where one is of some learners alone, it says of which."""
    judged = [group for group in groups if not group.first.bound] or list(groups)
    applied: dict[str, list[Group]] = {}
    for group in judged:
        applied.setdefault(_applied(group), []).append(group)
    if len(applied) == 1 or len(set(map(_asked, judged))) == len(applied):
        return " | ".join(applied)
    told = {
        words: few(list(dict.fromkeys(group.first.strategy for group in alike))) for words, alike in applied.items()
    }
    return " | ".join(f"{words} ({names})" for words, names in told.items())


def _section(arena: Arena, labels: Sequence[str]) -> TaskSection:
    first = arena.groups[0].first
    stream = first.stream
    split = str((stream.get("splits") or ["test"])[0])
    rows = [_row(group, label, split, len(stream["tasks"])) for group, label in zip(arena.groups, labels, strict=True)]
    reference = next((row for row in rows if row.strategy == REFERENCE and row.runs), None)
    if reference is not None:
        rows = [replace(row, relative=_relative(row, reference)) for row in rows]
    chance = _chance(arena.groups, stream["tasks"], split)
    best = [
        min((error for row in rows if (error := row.errors[at].mean) is not None), default=math.nan)
        for at in range(len(chance))
    ]
    rows = [replace(row, normalised=_normalised(row, chance, best)) for row in rows]
    errors = [_number(row.error.mean) for row in rows]
    front = metrics.pareto_front([row.spent for row in rows], errors)
    rows = [replace(row, front=bool(on) and not row.bound) for row, on in zip(rows, front, strict=True)]
    rows.sort(key=lambda row: (row.error.mean is None, row.error.mean or 0.0, row.label))
    told = {row.label: _accuracy(row.error) for row in rows if row.error.mean is not None and not row.bound}
    years = [task["year"] for task in stream["tasks"]]
    return TaskSection(
        title=f"{stream['name']}: {len(years)} tasks, {min(years)} to {max(years)}; {_budgets(arena.groups)}",
        facts=_facts(arena.groups, split),
        tasks=tuple(stream["tasks"]),
        split=split,
        chance=chance,
        rows=tuple(rows),
        verdict=verdict("Mean score (100 − E)", told) if len(told) > 1 else None,
        warnings=tuple(_warnings(arena.groups, rows)),
        groups=tuple(arena.groups),
    )


def _row(group: Group, label: str, split: str, tasks: int) -> TaskRow:
    runs = tuple(run for run in group.runs if run.status == "finished")
    stopped = Counter(run.status.replace("_", " ") for run in group.runs if run.status != "finished")
    remark = ", ".join(f"{count} of {len(group.runs)} seeds {status}" for status, count in sorted(stopped.items()))
    reasons = [run.record.error for run in group.runs if run.record.error]
    kinds = dict.fromkeys(kind for run in runs for kind in run.result("mean_error_by", split) or ())
    parts = dict.fromkeys(name for run in runs for name in run.result("flops") or () if name != "total")
    ordered = sorted(parts, key=lambda name: (PARTS.index(name) if name in PARTS else len(PARTS) - 1.5, name))
    return TaskRow(
        label=label,
        strategy=group.first.strategy,
        bound=group.first.bound,
        runs=runs,
        error=_score(runs, "mean_error", split),
        parts={str(kind): _score(runs, "mean_error_by", split, kind) for kind in kinds},
        area=_score(runs, "area_under_errors", split),
        at_end=Score({run.seed: _at_end(run, split) for run in runs}),
        backward=_score(runs, "backward_transfer"),
        normalised=Score({}),
        relative=Score({}),
        errors=tuple(_score(runs, "errors", split, index) for index in range(tasks)),
        flops={name: _mean([run.result("flops", name, -1) for run in runs]) for name in ordered},
        chosen=_mean(chosen) if (chosen := [_chosen(run) for run in runs]) and None not in chosen else None,
        so_far=tuple(_mean([run.result("events", i, "flops_so_far") for run in runs]) for i in range(tasks)),
        peak_parameters=max((run.result("peak_parameters") or 0 for run in runs), default=None),
        exemplars=max((run.exemplars for run in runs if run.exemplars is not None), default=None),
        carried=max((run.carried("exact") or 0 for run in runs), default=None),
        seconds=_mean([run.result("seconds", "total") for run in runs]) if runs else None,
        sources=tuple(
            tuple(str(s) for run in runs if (s := run.result("events", index, "findings", "source")) is not None)
            for index in range(tasks)
        ),
        remark=f"{remark}: {reasons[0]}" if remark and reasons else remark,
    )


def _at_end(run: Outcome, split: str) -> float | None:
    """The mean error of all tasks after the last one; None where earlier ones were not evaluated again."""
    found = run.result("errors_at_end", split) or ()
    met = str(run.stream.get("reevaluate")) != "none" and found and None not in found
    return sum(found) / len(found) if met else None


def _chosen(run: Outcome) -> int | None:
    """Operations of the trials that a search chose; None where there was none, or a trial does not say."""
    trials = [trial for event in run.result("events") or () for trial in event.get("search") or ()]
    chosen = [trial.get("flops") for trial in trials if trial.get("chosen")]
    return sum(chosen) if chosen and None not in chosen else None


def _score(runs: Iterable[Outcome], *path: str | int) -> Score:
    return Score({run.seed: run.result(*path) for run in runs})


def _mean(values: Sequence[float | None]) -> float:
    """Of what is known; a part that a run does not name took nothing."""
    return sum(value or 0 for value in values) / len(values) if values else 0.0


def _relative(row: TaskRow, reference: TaskRow) -> Score:
    """E_rel in percent, by seed."""
    found = {}
    for seed in sorted(set(row.seeds) & set(reference.seeds)):
        errors, others = ([_number(score.values[seed]) for score in of.errors] for of in (row, reference))
        found[seed] = 100 * metrics.relative_error(errors, others)
    return Score({seed: None if math.isnan(value) else value for seed, value in found.items()})


def _chance(groups: Sequence[Group], tasks: Sequence[dict[str, Any]], split: str) -> tuple[float | None, ...]:
    """As the first run that met a task has it; records of earlier versions have none, so by its classes."""
    runs = [run for group in groups for run in group.runs]
    found: list[float | None] = []
    for index, task in enumerate(tasks):
        told = (run.result("events", index, "splits", split, "chance_error") for run in runs)
        guess = metrics.chance_error(task["classes"]) if task["kind"] == "multiclass" else None
        found.append(next((value for value in told if value is not None), guess))
    return tuple(found)


def _normalised(row: TaskRow, chance: Sequence[float | None], best: Sequence[float]) -> Score:
    """N in percent, by seed, over the tasks that some row knows better than a guess."""
    found: dict[int, float | None] = {}
    for seed in row.seeds:
        errors = [_number(score.values[seed]) for score in row.errors]
        scores = metrics.normalised_scores(errors, list(map(_number, chance)), best)
        known = [float(value) for value in scores if not math.isnan(value)]
        found[seed] = 100 * sum(known) / len(known) if known else None
    return Score(found)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _accuracy(error: Score) -> Score:
    return Score({seed: None if value is None else 100 - value for seed, value in error.values.items()})


def _facts(groups: Sequence[Group], split: str) -> dict[str, str]:
    """What was the same for all, in words."""
    runs = [run for group in groups for run in group.runs]
    first = runs[0]
    stream = first.stream
    told = {
        "stream": str(stream["name"]),
        "manifest": ", ".join(f"{key} {value}" for key, value in (stream.get("manifest") or {}).items())
        if isinstance(stream.get("manifest"), dict)
        else str(stream.get("manifest", "")),
        "fingerprint": str(stream.get("fingerprint"))[:12],
        "evaluated": f"{split}; {' | '.join(dict.fromkeys(_again(str(run.stream.get('reevaluate'))) for run in runs))}",
        "images": " × ".join(map(str, stream.get("image_shape") or [])),
        "budget": " | ".join(_told(groups)),
        "tuning": " | ".join(f"per_task, {count} trials a task judged on dev" for count in _trials(groups) if count),
        "precision": first.precision,
        "device": first.device,
        "threads": ", ".join(sorted({str(run.identity.get("threads")) for run in runs})),
    }
    return {name: text for name, text in told.items() if text}


def _again(when: str) -> str:
    """
    >>> _again("all_seen"), _again("every_5")
    ('all tasks so far after each event', 'all tasks so far after every 5 events')
    """
    if when == "none":
        return "earlier tasks are not evaluated again"
    number = when.removeprefix("every_")
    return f"all tasks so far after {f'every {number} events' if number != when else 'each event'}"


def _told(groups: Sequence[Group]) -> list[str]:
    """The budgets that were set, and for whom they are none."""
    without: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        names = without.setdefault(_asked(group), {})
        if group.first.budget.get("exemplars") is not None and not _keeps(group):
            what = "a bound is not held to it" if group.first.bound else "a cap on exemplars, of which none are kept"
            names.setdefault(what, []).append(group.first.strategy)
    return [
        f"{words} ({'; '.join(f'{few(list(dict.fromkeys(own)))}: {what}' for what, own in names.items())})"
        if names
        else words
        for words, names in without.items()
    ]


def _trials(groups: Sequence[Group]) -> list[int]:
    """How many settings were tried at the first task."""
    return sorted({len(run.result("events", 0, "search") or ()) for group in groups for run in group.runs})


def _cut(row: TaskRow) -> tuple[int, int]:
    """Trials that were made, and those that were asked for, of all tasks and seeds."""
    made = asked = 0
    for run in row.runs:
        events = run.result("events") or ()
        made += sum(len(event.get("search") or ()) for event in events)
        asked += len(events) * int(dig(run.identity, "config", "strategy", "search", "trials") or 0)
    return made, asked


def _warnings(groups: Sequence[Group], rows: Sequence[TaskRow]) -> Iterable[str]:
    lone = [row.label for row in rows if len(row.seeds) == 1]
    if lone:
        yield f"One seed only: {few(lone)}. A difference from it may be chance."
    yield "The task of each test image was given at test time; each task has a head of its own."
    searched = _trials(groups)
    if len(searched) > 1:
        yield f"Rows differ in their trials a task: {' and '.join(map(str, searched))}."
    for row in rows:
        made, asked = _cut(row)
        if made < asked:
            yield f"{row.label}: a budget of compute left {made} of {asked} trials over the stream."
    again = {str(run.stream.get("reevaluate")) for group in groups for run in group.runs}
    if len(again) > 1:
        yield "Rows differ in when earlier tasks are evaluated again; E is right after training in all of them."
    if any(len({run.identity.get("code") for run in group.runs}) > 1 for group in groups):
        yield "The code was edited between the seeds of one row."
