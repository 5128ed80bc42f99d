"""Results of other toolboxes in a report: tables of their own, and lines below our tables of the same stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cil.report.grids import Line, grid, scores_entry, whole
from cil.report.grouping import Group, comparisons, grouped
from cil.report.labels import labels_of
from cil.report.plots import WIDTH, Picture, draw_plots, figure_of, legend, line_style
from cil.report.rows import incomplete, largest
from cil.report.runs import RunSummary
from cil.report.section import ReadingAid, RowsOfOthers, Section, Sections
from cil.report.verdicts import Score
from cil.tracking import Record

AVERAGE, LAST = "average_incremental_accuracy", "last_accuracy"
TOP5 = "last top-5 %"
HEADS = {"Avg %": AVERAGE, "Last %": LAST, "forgetting": "forgetting", TOP5: "last_top5"}
WORDS = {"head": "", "nearest_mean": ", nearest mean"}  # of an answer, behind the name of a method
SAME_DATA = {  # names of theirs for data sets of ours
    "cifar224": "cifar100", "cub": "cub200", "imageneta": "imagenet_a", "imagenetr": "imagenet_r",
}  # fmt: skip
READING = ReadingAid(
    "How to read foreign results",
    "They were read from the logs of another toolbox, which trained and evaluated them by its own code. What they "
    "carried is not known byte by byte, so they have no bill, and they are never ranked.",
    (
        ("exemplars", "Images stored at the end, as the log says; nothing else of what was carried is known."),
        ("nearest mean", "The same runs, answered by the nearest mean of the exemplars' features."),
        ("forgetting", "Where the groups of classes in the log are the experiences, else unknown."),
    ),
)


@dataclass(frozen=True)
class ForeignRow:
    """One answer of one setting, over its seeds."""

    label: str
    group: Group
    answer: str

    @property
    def runs(self) -> tuple[RunSummary, ...]:
        """Those that have results: finished ones, where there are any."""
        return self.group.finished or tuple(run for run in self.group.runs if run.done)

    @property
    def curves(self) -> list[list[float]]:
        return [run.result("answers", self.answer, "accuracy_curve") or [] for run in self.runs]

    @property
    def marks(self) -> tuple[str, ...]:
        run = self.runs[0]
        stopped = () if run.status == "finished" else (f"{run.status} {run.done}/{run.steps}",)
        return ("foreign", *stopped)

    def scores(self) -> dict[str, Score]:
        """By name of the result; of a run that stopped, up to there."""
        at = ("answers", self.answer)
        scores = {name: self._score(*at, name) for name in (AVERAGE, LAST)}
        lost = self._score("forgetting") if self.answer == "head" else Score({})
        return {**scores, "forgetting": lost, "last_top5": self._score(*at, "top5_curve", -1)}

    def _score(self, *path: str | int) -> Score:
        return Score({run.seed: run.result(*path) for run in self.runs})

    def line(self) -> Line:
        scores = self.scores()
        cells = {head: str(scores[name]) for head, name in HEADS.items()}
        return Line(self.label, {"n": str(len(self.runs)), **cells, "exemplars": whole(self._exemplars())}, self.marks)

    def entry(self, heading: str) -> dict[str, Any]:
        """The same for CSV and JSON, numbers unrounded."""
        first, notes = self.group.first, [note.text for note in incomplete(self.group)]
        return {
            "label": self.label, "strategy": first.learner, "standing": "foreign",
            "toolbox": first.identity["toolbox"], "n": len(self.runs),
            "seeds": " ".join(str(run.seed) for run in self.runs), **scores_entry(self.scores()),
            "exemplars": self._exemplars(), "notes": "; ".join([heading, *notes]),
        }  # fmt: skip

    def _exemplars(self) -> int | None:
        return largest(run.result("exemplars", -1) for run in self.runs)


def sections(records: Sequence[Record]) -> Sections:
    """A table for each stream, none of whose rows is ranked; and rows for our tables of the same stream."""
    groups = grouped(records)
    told = [group for group in groups if any(run.done for run in group.runs)]
    parts = [(part, list(_rows(part))) for part in comparisons(told)]
    found = [
        _section(part[0].first, rows, number if len(parts) > 1 else 0) for number, (part, rows) in enumerate(parts, 1)
    ]
    empty = [run for group in groups if group not in told for run in group.runs]
    footnotes = [f"No row, because no experience was evaluated: {run.learner}, {run.record.error}." for run in empty]
    return Sections(tuple(found), READING, footnotes=tuple(footnotes), others=partial(_beside, parts))


def _rows(groups: Sequence[Group]) -> Iterator[ForeignRow]:
    for group, label in zip(groups, labels_of(groups), strict=True):
        toolbox = group.first.identity["toolbox"]
        for answer in dict.fromkeys(name for run in group.runs for name in run.result("answers") or ()):
            yield ForeignRow(f"{label}{WORDS[answer]} [{toolbox}]", group, answer)


def _section(first: RunSummary, rows: Sequence[ForeignRow], number: int) -> Section:
    stream = first.stream
    title = f"{stream['name']}: {len(stream['classes'])} classes in {first.steps} experiences"
    identity = {"table": max(number, 1), "title": title}
    stopped = [f"{row.label}: {note.text}" for row in rows for note in incomplete(row.group) if row.answer == "head"]
    return Section(
        title=title,
        subtitle="foreign results, read from logs",
        condition="Source",
        number=number,
        rows=tuple(rows),
        grid=grid("strategy", [row.line() for row in rows]),
        facts={
            "stream": title,
            "class order": " ".join(map(str, stream["class_order"])) or "unknown",
            "logs": ", ".join(dict.fromkeys(run.identity["log"]["file"] for row in rows for run in row.group.runs)),
        },
        remarks=tuple(stopped),
        warnings=("Foreign results: read from logs of another toolbox, not billed, and not ranked.",),
        entries=tuple(identity | row.entry("read from logs, not billed") for row in rows),
        plots=lambda number, paint: draw_plots(number, partial(_curves, rows, paint), labels=paint),
    )


def _curves(rows: Sequence[ForeignRow], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(4.2, width=1.7 * WIDTH)
    sizes = [len(slots) for slots in rows[0].runs[0].stream["new_slots"]]
    for place, row in enumerate(rows):
        steps = min(map(len, row.curves))
        centre = [sum(curve[step] for curve in row.curves) / len(row.curves) for step in range(steps)]
        classes = [sum(sizes[: step + 1]) for step in range(steps)]
        axes.plot(classes, centre, **line_style(paint[row.label], place, dashed=True), label=row.label)
    axes.set(ylim=(0, 100), xlabel="classes seen", ylabel="accuracy on all classes seen, %")
    legend(axes)
    return "Accuracy over the stream, foreign", "As the logs say, after each experience; mean over seeds.", figure


def _beside(parts: Sequence[tuple[Sequence[Group], Sequence[ForeignRow]]], record: Record) -> tuple[RowsOfOthers, ...]:
    """The rows that met the same data set in the same portions as a run of ours."""
    run, found = RunSummary(record), []
    for groups, rows in parts:
        first = groups[0].first
        if rows and _same_split(first, run):
            order = "" if first.stream["class_order"] == list(run.order[1]) else ", another class order"
            heading = f"foreign: read from logs, not billed{order}; not ranked"
            lines = [row.line() for row in rows]  # other answers have a table of their own
            lines = [replace(one, cells={h: cell for h, cell in one.cells.items() if h != TOP5}) for one in lines]
            found.append(RowsOfOthers(heading, tuple(lines), tuple(row.entry(heading) for row in rows)))
    return tuple(found)


def _same_split(other: RunSummary, run: RunSummary) -> bool:
    dataset = other.stream["dataset"]
    names = str(run.stream.get("name")).split("_b")[0], SAME_DATA.get(dataset, dataset)
    sizes = [[len(slots) for slots in one.stream.get("new_slots") or ()] for one in (run, other)]
    return names[0] == names[1] and sizes[0] == sizes[1]
