"""Many records as one table: a section for each setting that can be compared, bounds and unfinished runs apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cil.errors import ConfigError
from cil.report.areas import Areas, areas_of
from cil.report.facts import apart, facts_of, warnings_of
from cil.report.labels import labels_of
from cil.report.online import OnlineSection, online_sections
from cil.report.rows import Row, least_with_exemplars, row_of
from cil.report.runs import is_adaptation
from cil.report.settings import Arena, Group, arenas, budget_words, by_budget, grouped, stream_words
from cil.report.tasks import TaskSection, is_task_run, task_sections
from cil.report.tuning import NONE
from cil.report.verdicts import Verdict, verdict
from cil.tracking import Record


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
        from cil.report.text import to_text

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
    online = online_sections(adaptations)
    tasks = task_sections(record for record in records if is_task_run(record))
    groups = grouped(record for record in records if not (is_adaptation(record) or is_task_run(record)))
    fields = arenas(group for group in groups if _told(group))
    sections = [
        _section(number, arena, part) for number, arena in enumerate(fields) for part in by_budget(arena.groups)
    ]
    empty = [group for group in groups if not _told(group)]
    warnings, footnotes = tuple(apart(sections)), tuple(_without_result(empty))
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
    labels = labels_of(groups)
    told = [bool(group.first.identity.get("uses_horizon")) for group in groups]
    least = least_with_exemplars(groups)
    rows = [
        row_of(group, label, marked=planner and not all(told), least=least)
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
        facts=facts_of(arena, groups, budget),
        limit=first.limit,
        convention=first.convention,
        rows=tuple(rows),
        verdicts=verdicts if len(ranked) > 1 else (),
        warnings=tuple(warnings_of(dict(zip(labels, groups, strict=True)), rows)),
        groups=tuple(groups),
    )


_ORDER = {"ranked": 0, "bound": 1, "unranked": 2}
