"""What a section says beside its numbers: what was the same for all rows, and what a reader must know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cil.report.runs import Outcome, same_everywhere
from cil.report.settings import Arena, Group, allowance, budget_words, differing, stream_words
from cil.report.tuning import tuning_facts, tuning_warnings
from cil.report.verdicts import few

if TYPE_CHECKING:
    from cil.report.rows import Row
    from cil.report.tables import Section

RECIPE = ("model", "trainer", "optimizer", "scheduler")  # parts of a config that rows of one table usually share


def facts_of(arena: Arena, groups: Sequence[Group], budget: dict[str, Any]) -> dict[str, str]:
    """What the rows share, in words; empty ones are left out."""
    first, runs = groups[0].first, [run for group in groups for run in group.runs]
    stream = first.stream
    orders = {run.seed: run.order[1] for run in runs}
    if same_everywhere(orders.values()):
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
        "precision": first.precision,
        "device": first.device,
        "threads": ", ".join(_values(runs, "threads")),
        "tuning": " | ".join(dict.fromkeys(words for run in runs if (words := tuning_facts(run)))),
        "versions": ", ".join(f"{name} {' and '.join(found)}" for name, found in _versions(runs).items()),
    }
    return {name: text for name, text in facts.items() if text}


def _values(runs: Iterable[Outcome], key: str) -> list[str]:
    return sorted({str(run.identity[key]) for run in runs if key in run.identity})


def _versions(runs: Iterable[Outcome]) -> dict[str, list[str]]:
    """Versions met of each package; a plugin's strategy names packages that others do not."""
    met: dict[str, set[str]] = {}
    for run in runs:
        for name, version in (run.identity.get("versions") or {}).items():
            met.setdefault(str(name), set()).add(str(version))
    return {name: sorted(met[name]) for name in sorted(met)}


def warnings_of(labelled: Mapping[str, Group], rows: Sequence[Row]) -> Iterable[str]:
    """Sentences on rows that are unlike, in what they knew, were given or are made of."""
    groups = list(labelled.values())
    runs = [run for group in groups for run in group.runs]
    first = runs[0]
    if first.stream.get("data") == "unofficial":
        yield "Unofficial data: the fingerprint is not that of the official set."
    lone = [row.label for row in rows if row.finished and len(row.seeds) == 1]
    if lone:
        yield f"One seed only: {few(lone)}. A difference from it may be chance."
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
    several = [f"{name} {' and '.join(found)}" for name, found in _versions(runs).items() if len(found) > 1]
    if several:
        yield f"Runs differ in versions: {', '.join(several)}."
    if len(threads := _values(runs, "threads")) > 1:
        yield f"Runs differ in threads: {' and '.join(threads)}."
    edited = [label for label, group in labelled.items() if len(_values(group.runs, "code")) > 1]
    if edited:
        yield f"The code was edited between the seeds of one row: {few(edited)}."
    yield from tuning_warnings([group.first for group in groups if not group.first.bound])
    recipe = [key for key in differing([group.first for group in groups]) if key.split(".")[0] in RECIPE]
    if recipe:
        yield f"Rows differ in their recipe: {few(recipe)}."


def apart(sections: Sequence[Section]) -> Iterable[str]:
    """Say so where sections must not be compared, and what they differ in."""
    if len(sections) < 2:
        return
    yield f"{len(sections)} settings, each with its own table: numbers of different tables are not to be compared."
    keys = ("stream", "data", "class order", "fingerprint", "images", "budget", "precision", "device")
    numbers: dict[str, list[str]] = {}
    for number, section in enumerate(sections[1:], 2):
        changed = [key for key in keys if section.facts.get(key) != sections[0].facts.get(key)]
        if "class order" in changed and "fingerprint" in changed:
            changed.remove("fingerprint")
        numbers.setdefault(", ".join(changed) or "the way the budget is counted", []).append(str(number))
    for changed_keys, which in numbers.items():
        subject = f"Table {which[0]} differs" if len(which) == 1 else f"Tables {', '.join(which)} differ"
        yield f"{subject} from table 1 in: {changed_keys}."
