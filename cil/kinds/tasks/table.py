"""Task-stream rows that met the same tasks in the same order, with what they share and how they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cil.kinds.tasks.rows import TaskRow, chance_errors, task_rows
from cil.report.grouping import Group, budget_words, by_budget, comparisons, grouped
from cil.report.labels import labels_of
from cil.report.rows import accuracy
from cil.report.settings_list import computing, edited_code, known, one_seed
from cil.report.verdicts import Verdict, few, verdict
from cil.tracking import Record


@dataclass(frozen=True)
class TaskTable:
    """Rows that met the same tasks in the same order.

    Attributes:
        title, budget: In words.
        tasks: What the record says of each event: id, year, domain, kind, classes, counts.
        split: Which one the errors are of.
        chance: Error of a guess at each task, percent; None where no run says.
        rows: Lowest mean error first.
    """

    title: str
    budget: str
    facts: dict[str, str]
    tasks: tuple[dict[str, Any], ...]
    split: str
    chance: tuple[float | None, ...]
    rows: tuple[TaskRow, ...]
    verdict: Verdict | None
    warnings: tuple[str, ...]
    groups: tuple[Group, ...] = field(repr=False, default=())


def task_tables(records: Iterable[Record]) -> list[TaskTable]:
    """Task-stream records by what may be compared: the same tasks, precision and kind of device.

    Budgets may differ within a table, as operations are one of its axes; a row then says its own.
    """
    return [_table(comparison.groups) for comparison in comparisons(grouped(records))]


def _table(groups: Sequence[Group]) -> TaskTable:
    labels = _labelled(groups)
    stream = groups[0].first.stream
    tasks = tuple(stream["tasks"])
    split = str((stream.get("splits") or ["test"])[0])
    chance = chance_errors((run for group in groups for run in group.runs), tasks, split)
    rows = task_rows(groups, labels, split, chance)
    competitors = {row.label: accuracy(row.error) for row in rows if row.error.mean is not None and not row.bound}
    years = [task["year"] for task in tasks]
    return TaskTable(
        title=f"{stream['name']}: {len(years)} tasks, {min(years)} to {max(years)}",
        budget=_budgets(groups),
        facts=_facts(groups, split),
        tasks=tasks,
        split=split,
        chance=chance,
        rows=tuple(rows),
        verdict=verdict("Mean score (100 − E)", competitors) if len(competitors) > 1 else None,
        warnings=tuple(_warnings(dict(zip(labels, groups, strict=True)), rows)),
        groups=tuple(groups),
    )


def _labelled(groups: Sequence[Group]) -> list[str]:
    parts = by_budget(groups)
    named = {id(group): name for part in parts for group, name in zip(part, labels_of(part), strict=True)}
    plain = [named[id(group)] for group in groups]
    if len(parts) == 1:
        return plain
    for words in (_applied, _asked):
        labels = [f"{name}, {words(group)}" for name, group in zip(plain, groups, strict=True)]
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
    """True if it keeps images, and not as a bound, which no budget stops; taken to do so until a run says."""
    kept = [run.exemplars for run in group.runs if run.exemplars is not None]
    return not group.first.bound and (any(kept) or not kept)


def _budgets(groups: Sequence[Group]) -> str:
    """All budgets of a table; where one is of some learners alone, it says of which."""
    judged = [group for group in groups if not group.first.bound] or list(groups)
    applied: dict[str, list[str]] = {}
    for group in judged:
        applied.setdefault(_applied(group), []).append(group.first.learner)
    if len(applied) == 1 or len(set(map(_asked, judged))) == len(applied):
        return " | ".join(applied)
    return " | ".join(f"{words} ({few(list(dict.fromkeys(names)))})" for words, names in applied.items())


def _budget_facts(groups: Sequence[Group]) -> Iterable[str]:
    """The budgets that were set, and for whom they are none."""
    without: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        names = without.setdefault(_asked(group), {})
        if group.first.budget.get("exemplars") is not None and not _keeps(group):
            what = "a bound is not held to it" if group.first.bound else "a cap on exemplars, of which none are kept"
            names.setdefault(what, []).append(group.first.learner)
    for words, names in without.items():
        exempt = "; ".join(f"{few(list(dict.fromkeys(own)))}: {what}" for what, own in names.items())
        yield f"{words} ({exempt})" if exempt else words


def _facts(groups: Sequence[Group], split: str) -> dict[str, str]:
    """What was the same for all, in words."""
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
        "images": " × ".join(map(str, stream.get("image_shape") or [])),
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


def _warnings(labelled: Mapping[str, Group], rows: Sequence[TaskRow]) -> Iterable[str]:
    yield from one_seed([row.label for row in rows if len(row.seeds) == 1])
    yield "The task of each test image was given at test time; each task has a head of its own."
    searched = _trials(labelled.values())
    if len(searched) > 1:
        yield f"Rows differ in their trials a task: {' and '.join(map(str, searched))}."
    for row in rows:
        made, asked = row.trials
        if made < asked:
            yield f"{row.label}: a budget of compute left {made} of {asked} trials over the stream."
    if len({str(run.stream.get("reevaluate")) for group in labelled.values() for run in group.runs}) > 1:
        yield "Rows differ in when earlier tasks are evaluated again; E is right after training in all of them."
    yield from edited_code(labelled)
