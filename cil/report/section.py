"""The section of a report: all that one table says, in a shape that every output format writes the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from cil.report.grids import Grid, Line, Titled
from cil.report.plots import Plot
from cil.report.verdicts import Verdict
from cil.tracking import Record

DrawPlots = Callable[[int, Mapping[str, str]], list[Plot]]


class Labelled(Protocol):
    """A row, whatever it is of."""

    @property
    def label(self) -> str: ...


@dataclass(frozen=True)
class RowsOfOthers:
    """Rows on the same setting that no run of ours made: of a publication, or of another toolbox. They are not ranked.

    Attributes:
        heading: Source, and what is not the same.
        lines: For the main table.
        entries: The same for CSV and JSON.
    """

    heading: str
    lines: tuple[Line, ...]
    entries: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Section:
    """Rows that may be compared with each other, and everything that is said of them.

    Attributes:
        title: The stream in words.
        rows: Rows of the tables; the label of each has one colour on a page.
        grid: The main table.
        plots: Draws the plots, given the section's number on the page and the colour of each label.
        subtitle: Condition that the rows share, such as the budget; ``condition`` is the word for it on a page.
        number: Place among the sections of its kind, 0 where it is the only one.
        facts: Settings that all rows share, in words; where rows differ, which has what.
        setup: The same as a paragraph for a paper.
        best: Label of the best row by heading of ``grid``.
        tables: Further tables.
        bills: Tables of bytes, which a terminal is spared.
        remarks: Sentences on single rows.
        warnings: Sentences to read before comparing rows.
        legend: Headings that are short for something, said once: of sections of one kind the first has them.
        entries: Rows without structure for CSV and JSON, numbers unrounded.
        content: Further content for JSON; a key here replaces one of the section.
        pictures: Makes further HTML of the page: images of the data set, and what goes with them.
        published: Finds numbers of publications on the same setting, where they are asked for.
        setting: The record of a run, by which rows of other toolboxes are found that belong below the main table.
    """

    title: str
    rows: tuple[Labelled, ...]
    grid: Grid
    plots: DrawPlots = field(repr=False, compare=False)
    subtitle: str = ""
    condition: str = ""
    number: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    setup: str = ""
    best: Mapping[str, str] = field(default_factory=dict)
    tables: tuple[Titled, ...] = ()
    bills: tuple[Titled, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    legend: str = ""
    entries: tuple[dict[str, Any], ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    pictures: Callable[[], str] = field(default=str, repr=False, compare=False)
    published: Callable[[], tuple[RowsOfOthers, ...]] = field(default=tuple, repr=False, compare=False)
    setting: Record | None = field(default=None, repr=False, compare=False)

    def with_published(self) -> Section:
        """The same with published numbers below the rows of the main table."""
        return self.with_others("published", self.published())

    def with_others(self, name: str, found: Sequence[RowsOfOthers]) -> Section:
        """The same with rows of others below those of the main table, and as ``name`` in JSON."""
        if not found:
            return self
        entries = tuple(entry for one in found for entry in one.entries)
        return replace(
            self,
            grid=Grid(self.grid.first, (*self.grid.parts, *((one.heading, one.lines) for one in found))),
            entries=(*self.entries, *entries),
            content={**self.content, name: entries},
        )

    @property
    def heading(self) -> str:
        """Title and subtitle in one line."""
        return f"{self.title}; {self.subtitle}" if self.subtitle else self.title


@dataclass(frozen=True)
class ReadingAid:
    """How to read the sections of one kind: a heading, an introduction, the terms and what they mean."""

    title: str
    introduction: str
    terms: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sections:
    """All that a report says of the records of one kind.

    Attributes:
        others: Finds rows among them that belong below the table of a run of another kind; they are not ranked.
    """

    sections: tuple[Section, ...]
    reading: ReadingAid
    warnings: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()
    others: Callable[[Record], tuple[RowsOfOthers, ...]] | None = field(default=None, repr=False, compare=False)


class ReportedKind(Protocol):
    """How records of one kind of run are read; ``cil.kinds`` has the whole protocol.

    Attributes:
        name: Name in the record, and of the entry point in ``cil.kinds``.
        learner: Key of the identity that names the method, such as ``strategy``; the word for it in a report.
        unit: Key of the stream's description for its steps, a count or a list: ``experiences``, ``segments``.
        progress: Key of the results whose length is the number of steps that were evaluated.
    """

    name: str
    learner: str
    unit: str
    progress: str

    def sections(self, records: Sequence[Record]) -> Sections:
        """Tables, plots and words of records of this kind."""
