"""Records as one table: sections of every kind of run that is among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from cil import plugins
from cil.errors import ConfigError
from cil.report.plots import colours
from cil.report.runs import RunSummary
from cil.report.section import ReadingAid, Section, Sections
from cil.tracking import Record


@dataclass(frozen=True)
class Table:
    """Sections of all kinds with their words; ``runs`` are those that it was made of."""

    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    readings: tuple[ReadingAid, ...] = ()
    runs: tuple[RunSummary, ...] = field(default=(), repr=False)

    @property
    def paint(self) -> dict[str, str]:
        """Colour of each label, the same in all sections."""
        return colours(row.label for section in self.sections for row in section.rows)

    def with_published(self) -> Table:
        """The same with numbers of publications on the same settings beside the rows; they are never ranked."""
        sections = tuple(section.with_published() for section in self.sections)
        if any(new is not old for new, old in zip(sections, self.sections, strict=True)):
            return replace(self, sections=sections)
        none = "No published numbers of this data set, split and budget are known."
        return replace(self, warnings=(*self.warnings, none))

    def without_pictures(self) -> Table:
        """The same without images of the data sets, which not everybody may be shown."""
        return replace(self, sections=tuple(replace(section, pictures=str) for section in self.sections))


def _reduced(runs: Iterable[RunSummary]) -> Iterable[str]:
    """Say so where runs are not of the setting that their experiment publishes."""
    for scale in sorted({run.scale for run in runs if run.scale}):
        yield f"scale={scale}: a reduced setting, whose numbers are not to be held against published ones."


def _with_others(section: Section, found: Sequence[Sections]) -> Section:
    """A section with the rows of other toolboxes that met the same stream, below its own."""
    if section.setting is None:
        return section
    return section.with_others(
        "foreign", [rows for part in found if part.others is not None for rows in part.others(section.setting)]
    )


def table(records: Iterable[Record]) -> Table:
    """Put records into one table: sections by kind of run, made by the kind itself.

    Records of a kind that no installed package knows are left out, with a warning.

    Raises:
        ConfigError: if there are no records.
    """
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record.kind, []).append(record)
    if not by_kind:
        raise ConfigError("no records: a table needs at least one run")
    order = list(dict.fromkeys([*plugins.names("cil.kinds"), *sorted(by_kind)]))
    found: list[Sections] = []
    runs: list[RunSummary] = []
    unknown: list[str] = []
    for name in sorted(by_kind, key=order.index):
        try:
            kind = plugins.find("cil.kinds", name)
        except ConfigError as error:
            count = len(by_kind[name])
            runs_words = "1 run" if count == 1 else f"{count} runs"
            unknown.append(f"Left out, because their kind is not installed: {runs_words} ({error}).")
            continue
        found.append(kind.sections(by_kind[name]))
        runs += map(RunSummary, by_kind[name])
    return Table(
        sections=tuple(_with_others(section, found) for part in found for section in part.sections),
        warnings=(*_reduced(runs), *(warning for part in found for warning in part.warnings), *unknown),
        footnotes=tuple(note for part in found for note in part.footnotes),
        readings=tuple(part.reading for part in found),
        runs=tuple(runs),
    )
