"""Many records as one table: a section for each setting that can be compared, bounds and unfinished runs apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cil.errors import ConfigError
from cil.report.areas import Areas, areas_of
from cil.report.online import OnlineSection, online_sections
from cil.report.runs import Outcome, flat, is_adaptation, same_everywhere
from cil.report.settings import (
    Arena,
    Group,
    allowance,
    arenas,
    budget_words,
    by_budget,
    differing,
    grouped,
    stream_words,
)
from cil.report.tasks import TaskSection, is_task_run, task_sections
from cil.report.tuning import NONE, is_tuned, tuning_facts, tuning_of, tuning_warnings, tuning_words
from cil.report.verdicts import Score, Verdict, few, verdict
from cil.tracking import Record

RECIPE = ("model", "trainer", "optimizer", "scheduler")  # parts of a config that rows of one table usually share
LABEL, VALUE = 60, 24  # most characters of a row's label, and of one value in it
AVERAGE, LAST, FORGETTING = "average_incremental_accuracy", "last_accuracy", "forgetting"


@dataclass(frozen=True)
class Note:
    """A remark on a row: a short mark beside its name, and a sentence below the table."""

    mark: str
    text: str


@dataclass(frozen=True)
class Row:
    """One setting, over its seeds. Percent, bytes, FLOPs, seconds; None where unknown.

    Attributes:
        label: The strategy, and what tells it from another row of the same strategy.
        runs: Those that the numbers are of, one for each seed.
        standing: ``ranked``, ``bound`` or ``unranked``.
        carried: Bytes at the end of the stream by convention, ``exact`` and ``survey``.
        own: The same without public weights.
        kinds: The same by kind.
        flops: Of everything but evaluation.
    """

    label: str
    strategy: str
    standing: str
    runs: tuple[Outcome, ...]
    average: Score
    last: Score
    forgetting: Score
    carried: dict[str, int | None]
    own: dict[str, int | None]
    kinds: dict[str, dict[str, int]]
    public: int
    exemplars: int | None
    flops: float | None
    peak_training_bytes: int | None
    seconds: float | None
    notes: tuple[Note, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def tuning(self) -> str:
        """How its settings were chosen."""
        return tuning_words(self.runs[0]) if self.runs else NONE

    @property
    def tuning_flops(self) -> int:
        """Of all trials, validation included; the runs themselves are not."""
        return int(tuning_of(self.runs[0])["tuning_cost"]) if self.runs else 0

    @property
    def finished(self) -> bool:
        """Whether there are numbers."""
        return bool(self.runs) and all(run.status == "finished" for run in self.runs)


@dataclass(frozen=True)
class Section:
    """Rows that met the same streams under the same budget: the only ones that are compared.

    Attributes:
        title: Stream and budget in words.
        arena: Number of the streams; sections of one arena differ in their budget alone.
        facts: What was the same for all, in words.
        groups: What the rows were made of.
    """

    title: str
    arena: int
    facts: dict[str, str]
    limit: int | None
    convention: str
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]
    groups: tuple[Group, ...] = field(repr=False, default=())

    def of(self, standing: str) -> list[Row]:
        """The rows that are ``ranked`` (best last accuracy first), ``bound`` or ``unranked``."""
        return [row for row in self.rows if row.standing == standing]

    @property
    def finished(self) -> list[Row]:
        """Ranked rows and bounds: those with accuracies that may be drawn."""
        drawn = [row for row in self.rows if row.finished]
        return [row for row in drawn if all(run.result("accuracy_curve") for run in row.runs)]

    @property
    def public(self) -> bool:
        """Whether a row carries public weights, so that totals without them are worth showing."""
        return any(row.public for row in self.rows)

    @property
    def tuned(self) -> bool:
        """Whether settings of a row were chosen by tuning."""
        return any(row.tuning != NONE for row in self.rows)


@dataclass(frozen=True)
class Table:
    """What ``table`` makes; each form is text."""

    sections: tuple[Section, ...]
    areas: tuple[Areas, ...] = ()
    warnings: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    online: tuple[OnlineSection, ...] = ()  # adaptation runs
    tasks: tuple[TaskSection, ...] = ()  # runs on streams that tell the task

    def to_text(self, width: int = 120) -> str:
        """For a terminal of so many columns."""
        from cil.report.formats import to_text

        return to_text(self, width)

    def to_markdown(self) -> str:
        """With both bills."""
        from cil.report.formats import to_markdown

        return to_markdown(self)

    def to_csv(self) -> str:
        """One line a row, numbers unrounded."""
        from cil.report.formats import to_csv

        return to_csv(self)

    def to_json(self) -> str:
        """Everything, numbers unrounded."""
        from cil.report.formats import to_json

        return to_json(self)


def table(records: Iterable[Record]) -> Table:
    """Put records into one table.

    Runs that differ in their seed alone are one row. Rows are compared, and a best one called, only inside a section:
    same data, class orders, budget, precision and kind of device. Bounds, unfinished runs and runs over their budget
    are shown and never ranked. Adaptation runs, and runs on streams of tasks, have tables of their own.

    Raises:
        ConfigError: if there are no records.
    """
    records = list(records)
    if not records:
        raise ConfigError("no records: a table needs at least one run")
    adaptations = [record for record in records if is_adaptation(record)]
    online = online_sections(adaptations, _labels)
    tasks = task_sections([record for record in records if is_task_run(record)], _labels)
    groups = grouped(record for record in records if not (is_adaptation(record) or is_task_run(record)))
    fields = arenas(group for group in groups if _told(group))
    sections = [
        _section(number, arena, part) for number, arena in enumerate(fields) for part in by_budget(arena.groups)
    ]
    empty = [group for group in groups if not _told(group)]
    warnings, footnotes = tuple(_apart(sections)), tuple(_without_result(empty))
    return Table(tuple(sections), tuple(areas_of(sections)), warnings, footnotes, online, tasks)


def _told(group: Group) -> bool:
    """Whether a run has anything to show: an experience that was evaluated, or the bills it was refused for."""
    return any(run.done or (run.status == "over_budget" and run.result("bills")) for run in group.runs)


def _without_result(groups: Sequence[Group]) -> Iterable[str]:
    """A footnote on runs that ended, or still are, before the first boundary."""
    met = Counter(f"{run.strategy} {run.status.replace('_', ' ')}" for group in groups for run in group.runs)
    if met:
        words = [f"{what} ({count} runs)" if count > 1 else what for what, count in sorted(met.items())]
        yield f"No row, because no result yet: {', '.join(words)}."


def _section(number: int, arena: Arena, groups: Sequence[Group]) -> Section:
    labels = _labels(groups)
    told = [bool(group.first.identity.get("uses_horizon")) for group in groups]
    least = _least_with_exemplars(groups)
    rows = [
        _row(group, label, marked=planner and not all(told), least=least)
        for group, label, planner in zip(groups, labels, told, strict=True)
    ]
    rows.sort(key=lambda row: (_ORDER[row.standing], -(row.last.mean or 0.0), row.label))
    ranked = [row for row in rows if row.standing == "ranked"]
    verdicts = (
        verdict("Avg", {row.label: row.average for row in ranked}),
        verdict("Last", {row.label: row.last for row in ranked}),
    )
    first = groups[0].first
    budget = next((g.first.budget for g in groups if not g.first.bound), first.budget)
    return Section(
        title=f"{stream_words(first)}; {budget_words(budget)}",
        arena=number,
        facts=_facts(arena, groups, budget),
        limit=first.limit,
        convention=first.convention,
        rows=tuple(rows),
        verdicts=verdicts if len(ranked) > 1 else (),
        warnings=tuple(_warnings(dict(zip(labels, groups, strict=True)), rows)),
        groups=tuple(groups),
    )


_ORDER = {"ranked": 0, "bound": 1, "unranked": 2}


def _least_with_exemplars(groups: Sequence[Group]) -> int | None:
    """Fewest bytes that a competitor with exemplars carries; None where none has any."""
    runs = [run for group in groups for run in group.runs if run.status == "finished" and not run.bound]
    sizes = [run.carried(run.convention) for run in runs if run.exemplars]
    return min((size for size in sizes if size is not None), default=None)


def _row(group: Group, label: str, marked: bool, least: int | None) -> Row:
    finished = tuple(run for run in group.runs if run.status == "finished")
    first = group.first
    # without a finished run the row is empty, but for what the dry run knew of one over its budget
    runs = finished or tuple(run for run in group.runs if run.status == "over_budget")
    excess = next((f"seed {run.seed}: {run.excess}" for run in finished if run.excess), None)
    standing = "bound" if first.bound else "ranked"
    if not finished or (excess and not first.bound):
        standing = "unranked"
    notes = [*_status_notes(group, finished), *_kind_notes(first, finished, least)]
    if marked:
        notes.append(Note("uses horizon", "uses the horizon: was told the length of the stream"))
    if excess and not first.bound:
        notes.append(Note("over budget", f"over budget, so not ranked: {excess}"))
    conventions = ("exact", "survey")
    return Row(
        label=label,
        strategy=first.strategy,
        standing=standing,
        runs=runs,
        average=_score(finished, AVERAGE),
        last=_score(finished, LAST),
        forgetting=_score(finished, FORGETTING),
        carried={convention: _whole([run.carried(convention) for run in runs]) for convention in conventions},
        own={convention: _whole([run.own(convention) for run in runs]) for convention in conventions},
        kinds={convention: _kinds(runs, convention) for convention in conventions},
        public=max((run.public for run in runs), default=0),
        exemplars=_whole([run.exemplars for run in runs]),
        flops=_mean([run.flops for run in finished]),
        peak_training_bytes=_whole([run.result("peak_training_bytes") for run in finished]),
        seconds=_mean([run.result("seconds", "total") for run in finished]),
        notes=tuple(notes),
    )


def _score(runs: Iterable[Outcome], name: str) -> Score:
    return Score({run.seed: run.result(name) for run in runs})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _whole(values: Sequence[int | None]) -> int | None:
    """Bytes and counts hardly differ between seeds; where they do, the largest is what had to fit."""
    known = [value for value in values if value is not None]
    return max(known, default=None)


def _kinds(runs: Sequence[Outcome], convention: str) -> dict[str, int]:
    """By kind, of the seed that carries most."""
    if not runs:
        return {}
    return max(runs, key=lambda run: run.carried(convention) or 0).kinds(convention)


def _status_notes(group: Group, finished: Sequence[Outcome]) -> Iterable[Note]:
    stopped = [run for run in group.runs if run.status != "finished"]
    for status, count in sorted(Counter(run.status for run in stopped).items()):
        example = next(run for run in stopped if run.status == status)
        why = f": {example.record.error}" if example.record.error else ""
        words = status.replace("_", " ")
        mark = words if status == "over_budget" else f"{words} {example.done}/{example.experiences}"
        if finished:
            mark = f"{count} of {len(group.runs)} {words}"
            yield Note(mark, f"{mark}, left out{why}")
        elif status == "over_budget":
            yield Note(mark, f"over budget{why}")
        else:
            yield Note(mark, f"{words} after {example.done} of {example.experiences} experiences{why}")
    if group.dropped:
        runs = "1 more run" if group.dropped == 1 else f"{group.dropped} more runs"
        yield Note("repeated", f"repeated: {runs} of seeds that are there already, left out")


def _kind_notes(first: Outcome, finished: Sequence[Outcome], least: int | None) -> Iterable[Note]:
    lost = max((sum(run.result("given_up") or ()) for run in finished), default=0)
    if lost:
        yield Note("gave up images", f"gave up images: learned without {lost:,} of those that arrived")
    if finished and not first.bound and not any(run.exemplars for run in finished):
        limit, carried = first.limit, _whole([run.carried(first.convention) for run in finished])
        if limit is not None and carried is not None and carried < limit:
            yield Note("uses less", f"uses less: no exemplars, {limit - carried:,} bytes below the limit")
        counted = limit is None and first.budget.get("exemplars")
        if counted and least is not None and carried is not None and carried < least:
            yield Note("uses less", "uses less: no exemplars")


def _labels(groups: Sequence[Group]) -> list[str]:
    """The strategy's name, with the keys that tell rows of one strategy apart."""
    labels = []
    for group in groups:
        alike = [other.first for other in groups if other.first.strategy == group.first.strategy]
        configs = [flat(run.config) for run in alike]
        leaves = flat(group.first.config)
        parts = [
            f"{key.removeprefix('strategy.').removeprefix('adapter.')}={_cut(str(leaves[key]), VALUE)}"
            for key in differing(alike)
            if key in leaves and not (leaves[key] is None and any(key not in config for config in configs))
        ]
        if is_tuned(group.first) and not all(map(is_tuned, alike)):
            parts = [f"tuned: {parts[0]}" if parts else "tuned", *parts[1:]]
        label = f"{group.first.strategy} ({', '.join(parts)})" if parts else group.first.strategy
        labels.append(_cut(label, LABEL))
    seen: Counter[str] = Counter()
    for index, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > 1:
            labels[index] = f"{label} #{seen[label]}"
    return labels


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _facts(arena: Arena, groups: Sequence[Group], budget: dict[str, Any]) -> dict[str, str]:
    """What the rows share, in words."""
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


def _warnings(labelled: Mapping[str, Group], rows: Sequence[Row]) -> Iterable[str]:
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


def _apart(sections: Sequence[Section]) -> Iterable[str]:
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
