"""Rows of class-incremental runs: which are ranked, and remarks on what they knew, carried and did not finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import log

from cil.report.bills import budget_notes
from cil.report.grids import Grid, Line
from cil.report.grouping import Group
from cil.report.labels import labels_of
from cil.report.rows import Note, Row, beside, caps, largest, left_out, marked
from cil.report.runs import RunSummary

AVERAGE, LAST, FORGETTING = "average_incremental_accuracy", "last_accuracy", "forgetting"
STANDINGS = {  # in order, each with its heading
    "ranked": "",
    "bound": "bounds: may look back at all past data, so not ranked",
    "unranked": "not ranked",
}


def class_rows(groups: Sequence[Group]) -> list[Row]:
    """Groups of one setting as rows: ranked ones first, highest last accuracy first."""
    planned = [bool(group.first.identity.get("uses_horizon")) for group in groups]
    runs = [run for group in groups for run in group.finished if run.exemplars and not run.bound]
    sizes = (run.carried(run.convention) for run in runs)  # of competitors with exemplars
    least = min((size for size in sizes if size is not None), default=None)
    rows = [
        _row(group, label, planner and not all(planned), least)
        for group, label, planner in zip(groups, labels_of(groups), planned, strict=True)
    ]
    return sorted(
        marked(rows), key=lambda row: ([*STANDINGS].index(row.standing), -(row.score(LAST).mean or 0.0), row.label)
    )


def ranked(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.standing == "ranked"]


def by_standing(rows: Iterable[Row], cells: Callable[[Row], Mapping[str, str]]) -> Grid:
    """A table of the ranked rows, then of bounds, then of those that are not ranked, each part under its heading."""
    lines: dict[str, list[Line]] = {heading: [] for heading in STANDINGS.values()}
    for row in rows:
        lines[STANDINGS[row.standing]].append(row.line(cells(row)))
    return Grid("strategy", tuple((heading, tuple(part)) for heading, part in lines.items() if part))


def _row(group: Group, label: str, planner: bool, least: int | None) -> Row:
    """Runs that differ in their seed alone; a planner was told the length of the stream, unlike others."""
    first, runs = group.first, group.finished
    excess = next((f"seed {run.seed}: {run.excess}" for run in runs if run.excess), None)
    standing = "bound" if first.bound else "ranked"
    if not runs or (excess and not first.bound):
        standing = "unranked"
    notes = [
        *_status_notes(group, runs),
        *_memory_notes(first, runs, least),
        *budget_notes(runs),
        *beside(runs, len(first.stream.get("classes") or ())),
    ]
    diverged = [run for run in runs if diverged_at(run) is not None]
    if diverged:
        notes.append(_diverged_note(diverged, runs))
        standing = "unranked" if len(diverged) == len(runs) and standing == "ranked" else standing
    if planner:
        notes.append(Note("uses horizon", "uses the horizon: was told the length of the stream"))
    if excess and not first.bound:
        notes.append(Note("over budget", f"over budget, so not ranked: {excess}"))
    notes += [note for cap in caps(runs) for note in cap.notes]
    return Row(label, group, standing, tuple(notes))


def diverged_at(run: RunSummary) -> int | None:
    """The first experience after which answers were no better than chance, with a loss far above that of chance.

    Far: 100 times the cross-entropy of equal scores, ln C, for C classes; no better: less than 1.5 / C are right.
    """
    new, losses, curve = (run.stream.get("new_slots") or (), run.result("losses") or (), run.result("accuracy_curve"))
    for index, (count, loss, accuracy) in enumerate(zip(accumulate(map(len, new)), losses, curve or (), strict=False)):
        if loss is None or accuracy is None or count < 2:
            continue
        if loss > 100 * log(count) and accuracy <= 150 / count:
            return index
    return None


def _diverged_note(diverged: Sequence[RunSummary], runs: Sequence[RunSummary]) -> Note:
    run = diverged[0]
    index = diverged_at(run) or 0
    loss, accuracy = run.result("losses", index), run.result("accuracy_curve", index)
    some = "" if len(diverged) == len(runs) else f"{len(diverged)} of {len(runs)} "
    ranked = "" if some else ", so not ranked"
    return Note(
        f"{some}diverged",
        f"{some}diverged{ranked}: seed {run.seed} had a loss of {loss:,.0f} and {accuracy:.1f} % after experience "
        f"{index}",
    )


def _status_notes(group: Group, runs: Sequence[RunSummary]) -> Iterable[Note]:
    stopped = [run for run in group.runs if run.status != "finished"]
    for status, count in sorted(Counter(run.status for run in stopped).items()):
        example = next(run for run in stopped if run.status == status)
        why = f": {example.record.error}" if example.record.error else ""
        words = status.replace("_", " ")
        mark = words if status == "over_budget" else f"{words} {example.done}/{example.steps}"
        if runs:
            mark = f"{count} of {len(group.runs)} {words}"
            yield Note(mark, f"{mark}, left out{why}")
        elif status == "over_budget":
            yield Note(mark, f"over budget{why}")
        else:
            yield Note(mark, f"{words} after {example.done} of {example.steps} experiences{why}")
    yield from left_out(group)


def _memory_notes(first: RunSummary, runs: Sequence[RunSummary], least: int | None) -> Iterable[Note]:
    if first.identity.get("uses_validation") and (first.config.get("stream") or {}).get("validation"):
        yield Note("held-out images", "held-out images: may train on those that stream.validation holds out")
    lost = max((sum(run.result("given_up") or ()) for run in runs), default=0)
    if lost:
        yield Note("gave up images", f"gave up images: learned without {lost:,} of those that arrived")
    if runs and not first.bound and not any(run.exemplars for run in runs):
        limit, carried = first.limit, largest(run.carried(first.convention) for run in runs)
        if limit is not None and carried is not None and carried < limit:
            yield Note("uses less", f"uses less: no exemplars, {limit - carried:,} bytes below the limit")
        counted = limit is None and (first.budget.get("exemplars") or first.budget.get("per_class"))
        if counted and least is not None and carried is not None and carried < least:
            yield Note("uses less", "uses less: no exemplars")
