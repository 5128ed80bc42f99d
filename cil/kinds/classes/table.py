"""Class-incremental rows that met the same streams under the same budget: the only ones that are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cil.kinds.classes.rows import ClassRow, least_with_exemplars, row_of
from cil.report.grouping import Group, allowance, budget_words, by_budget, comparisons, differing
from cil.report.labels import labels_of
from cil.report.runs import RunSummary, all_equal
from cil.report.settings_list import (
    computing,
    edited_code,
    known,
    one_seed,
    unlike_values,
    unlike_versions,
    versions_of,
)
from cil.report.tuning import NONE, tuning_facts, tuning_warnings
from cil.report.verdicts import Verdict, few, verdict

RECIPE = ("model", "trainer", "optimizer", "scheduler")  # parts of a config that rows of one table usually share
STANDINGS = {  # in order, each with its heading
    "ranked": "",
    "bound": "bounds: may look back at all past data, so not ranked",
    "unranked": "not ranked",
}


@dataclass(frozen=True)
class ClassTable:
    """One setting that can be compared.

    Attributes:
        stream, budget: In words.
        comparison: Number of the streams; tables of one number differ in their budget alone.
        facts: What was the same for all, in words.
        limit: Bytes allowed at the end of the stream, counted by ``convention``.
    """

    stream: str
    budget: str
    comparison: int
    facts: dict[str, str]
    limit: int | None
    convention: str
    rows: tuple[ClassRow, ...]
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]

    def of(self, standing: str) -> list[ClassRow]:
        """The rows that are ``ranked`` (best last accuracy first), ``bound`` or ``unranked``."""
        return [row for row in self.rows if row.standing == standing]

    @property
    def drawn(self) -> list[ClassRow]:
        """Ranked rows and bounds with accuracies that may be drawn."""
        return [row for row in self.rows if row.finished and all(run.result("accuracy_curve") for run in row.runs)]

    @property
    def public(self) -> bool:
        """True if a row carries public weights, so that totals without them are worth showing."""
        return any(row.public for row in self.rows)

    @property
    def tuned(self) -> bool:
        """True if settings of a row were chosen by tuning."""
        return any(row.tuning != NONE for row in self.rows)


def class_tables(groups: Iterable[Group]) -> list[ClassTable]:
    """Groups that have results, by what may be compared."""
    found = enumerate(comparisons(groups))
    return [_table(number, part) for number, comparison in found for part in by_budget(comparison.groups)]


def _table(number: int, groups: Sequence[Group]) -> ClassTable:
    labels = labels_of(groups)
    planned = [bool(group.first.identity.get("uses_horizon")) for group in groups]
    least = least_with_exemplars(groups)
    rows = [
        row_of(group, label, planner and not all(planned), least)
        for group, label, planner in zip(groups, labels, planned, strict=True)
    ]
    rows.sort(key=lambda row: ([*STANDINGS].index(row.standing), -(row.last.mean or 0.0), row.label))
    ranked = [row for row in rows if row.standing == "ranked"]
    verdicts = (
        verdict("Avg", {row.label: row.average for row in ranked}),
        verdict("Last", {row.label: row.last for row in ranked}),
    )
    first = groups[0].first
    budget = next((group.first.budget for group in groups if not group.first.bound), first.budget)
    return ClassTable(
        stream=stream_words(first),
        budget=budget_words(budget),
        comparison=number,
        facts=_facts(groups, budget),
        limit=first.limit,
        convention=first.convention,
        rows=tuple(rows),
        verdicts=verdicts if len(ranked) > 1 else (),
        warnings=tuple(_warnings(dict(zip(labels, groups, strict=True)), rows)),
    )


def stream_words(run: RunSummary) -> str:
    """The stream in one line.

    For example ``split_digits: 10 classes in 5 experiences of 2``.
    """
    stream = run.stream
    sizes = [len(slots) for slots in stream.get("new_slots") or []]
    if not sizes:
        each = ""
    elif all_equal(sizes):
        each = f" of {sizes[0]}"
    else:
        each = f" ({', '.join(map(str, sizes))})"
    name = stream.get("name", "stream")
    return f"{name}: {len(stream.get('classes') or [])} classes in {run.steps} experiences{each}"


def _facts(groups: Sequence[Group], budget: dict[str, Any]) -> dict[str, str]:
    """What the rows share, in words."""
    first, runs = groups[0].first, [run for group in groups for run in group.runs]
    stream = first.stream
    orders = {run.seed: run.order[1] for run in runs}
    if all_equal(orders.values()):
        order = " ".join(map(str, first.order[1])) or "unknown"
    else:
        order = "; ".join(f"seed {seed}: {' '.join(map(str, orders[seed]))}" for seed in sorted(orders))
    prints = {str(run.stream.get("fingerprint"))[:12]: None for run in sorted(runs, key=lambda run: run.seed)}
    facts = {
        "stream": stream_words(first),
        "data": str(stream.get("data", "unknown")),
        "fingerprint": ", ".join(prints),
        "class order": order,
        "images": " × ".join(map(str, stream.get("image_shape") or [])),
        "training images": " + ".join(map(str, stream.get("train_counts") or [])),
        "budget": budget_words(budget),
        "counted": f"at {budget['at']}" if budget.get("at") else "",
        "reserve": " or ".join(sorted({str(run.budget["reserve"]) for run in runs if run.budget.get("reserve")})),
        **computing(runs),
        "tuning": " | ".join(dict.fromkeys(words for run in runs if (words := tuning_facts(run)))),
        "versions": ", ".join(versions_of(runs)),
    }
    return known(facts)


def _warnings(labelled: Mapping[str, Group], rows: Sequence[ClassRow]) -> Iterable[str]:
    """Sentences on rows that are unlike, in what they knew, were given or are made of."""
    groups = list(labelled.values())
    runs = [run for group in groups for run in group.runs]
    first = runs[0]
    if first.stream.get("data") == "unofficial":
        yield "Unofficial data: the fingerprint is not that of the official set."
    yield from one_seed([row.label for row in rows if row.finished and len(row.seeds) == 1])
    if all(group.first.identity.get("uses_horizon") for group in groups):
        yield "The length of the stream was known in advance to all rows (budget.reserve=final, or by design)."
    planners = [row.label for row in rows if any(note.mark == "uses horizon" for note in row.notes)]
    if planners:
        yield f"Told the length of the stream, which no other row knows: {few(planners)}."
    if first.stream.get("task_known_at_test"):
        yield "The experience of each test image was given at test time: an easier question."
    if first.limit is None:
        counted = "The budget counts exemplars" if allowance(first)[0] is not None else "There is no budget"
        yield f"{counted}: carried bytes are reported and not equal."
    yield from unlike_versions(runs)
    yield from unlike_values(runs, "threads")
    yield from edited_code(labelled)
    yield from tuning_warnings([group.first for group in groups if not group.first.bound])
    recipe = [key for key in differing([group.first for group in groups]) if key.split(".")[0] in RECIPE]
    if recipe:
        yield f"Rows differ in their recipe: {few(recipe)}."
