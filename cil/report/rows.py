"""A row of a table: one setting over its seeds, what its runs measured, and remarks on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeVar

from cil.report.grids import Line
from cil.report.grouping import Group
from cil.report.runs import RunSummary
from cil.report.verdicts import Score, Verdict, few, verdict
from cil.tracking.audits import Audit

SLOW, BRIEF = 4, 1.0  # times the median of seconds for an operation; seconds below which start-up is most of a run


@dataclass(frozen=True)
class Note:
    """A remark on a row: a short mark beside its name, and a sentence below the table."""

    mark: str
    text: str


@dataclass(frozen=True)
class Cap:
    """A further budget, of a plugin: its limit, and what the seed that took most measured last."""

    name: str
    unit: str
    limit: float
    last: float

    @property
    def head(self) -> str:
        return f"{self.name} ({self.unit})"

    @property
    def notes(self) -> list[Note]:
        """Says so where it is exceeded."""
        mark = f"over {self.name}"
        return [Note(mark, f"{mark}: {self} {self.unit}, limit {self.limit:,}")] if self.last > self.limit else []

    def __str__(self) -> str:
        return f"{self.last:,.0f}" if self.last == int(self.last) else f"{self.last:,.4g}"


@dataclass(frozen=True)
class Row:
    """One setting, over its seeds. What a method finds is None where a run does not say it.

    Attributes:
        label: The learner, and what tells it from another row of the same one.
        group: All its runs, finished or not.
        standing: ``ranked``, ``bound`` or ``unranked``.
        notes: Remarks of its kind, and those that every kind of run makes.
    """

    label: str
    group: Group
    standing: str = "ranked"
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(dict.fromkeys((*self.notes, *common_notes(self.group)))))
        if self.standing == "ranked" and any(audit.refutes for run in self.runs for audit in run.audits):
            object.__setattr__(self, "standing", "unranked")

    @property
    def bound(self) -> bool:
        return self.standing == "bound"

    @property
    def runs(self) -> tuple[RunSummary, ...]:
        """Those that finished, one for each seed."""
        return self.group.finished

    @property
    def shown(self) -> tuple[RunSummary, ...]:
        """The same; where none finished, those over their budget, of which the dry run knew the bytes."""
        return self.runs or tuple(run for run in self.group.runs if run.status == "over_budget")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.shown)

    @property
    def exemplars(self) -> int | None:
        return largest(run.exemplars for run in self.shown)

    @property
    def images_beside(self) -> float | None:
        """Of the seed that holds most; see ``RunSummary.images_beside``."""
        return max((run.images_beside for run in self.shown if run.images_beside is not None), default=None)

    @property
    def seconds(self) -> float | None:
        return mean([run.result("seconds", "total") for run in self.runs])

    @property
    def pace(self) -> float | None:
        """Seconds of training for an operation counted; None where either is unknown, or training took no time."""
        seconds, flops = mean([run.training_seconds for run in self.runs]), mean([run.flops for run in self.runs])
        return seconds / flops if seconds is not None and flops and seconds >= BRIEF else None

    @property
    def peak_training_bytes(self) -> int | None:
        return self.largest("peak_training_bytes")

    @property
    def caps(self) -> tuple[Cap, ...]:
        """Further budgets that the runs report; those refused for one too."""
        return caps(self.shown)

    @property
    def caps_cells(self) -> dict[str, str]:
        return {cap.head: str(cap) for cap in self.caps}

    @property
    def caps_entry(self) -> dict[str, float]:
        return {f"cap_{cap.name}": cap.last for cap in self.caps}

    def score(self, *path: str | int) -> Score:
        return Score({run.seed: run.result(*path) for run in self.runs})

    def largest(self, *path: str | int) -> int | None:
        return largest(run.result(*path) for run in self.runs)

    def carried(self, convention: str = "exact") -> int | None:
        """Bytes at the end of the stream."""
        return largest(run.carried(convention) for run in self.shown)

    def bytes_by_kind(self, convention: str = "exact") -> dict[str, int]:
        """The same by kind, of the seed that carries most."""
        fullest = max(self.shown, key=lambda run: run.carried(convention) or 0, default=None)
        return {} if fullest is None else fullest.bytes_by_kind(convention)

    @property
    def three_lines(self) -> dict[str, int]:
        """Bytes of backbone, of what was learned and of what is stored, of the seed that carries most; or empty."""
        return max((run.three_lines for run in self.shown), key=lambda lines: sum(lines.values()), default={})

    def line(self, cells: Mapping[str, str]) -> Line:
        return Line(self.label, cells, tuple(note.mark for note in self.notes))


SomeRow = TypeVar("SomeRow", bound=Row)


def marked(rows: Sequence[SomeRow]) -> list[SomeRow]:
    """The rows of a table, with remarks on those whose effort is unlike that of the others.

    Marked are those that took steps of optimizers by themselves, beside those of their phases; those whose phases had
    images that are neither new nor exemplars, as a generator makes; and those whose seconds for an operation are
    several times the median of the table: what they do is not all counted as operations.
    """
    paces = [row.pace for row in rows if row.pace is not None]
    usual = median(paces) if len(paces) > 2 else None
    return [replace(row, notes=(*row.notes, *_effort(row, usual))) for row in rows]


def effort_notes(results: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Remarks on the steps and images of runs that are not those of phases, of the run that has most."""
    own = max((sum(result.get("own_updates") or ()) for result in results), default=0)
    if own:
        yield Note("own steps", f"own steps: took {own:,} optimizer steps beside those of its phases; they are counted")
    images = max((max(result.get("own_images") or (0,)) for result in results), default=0)
    if images:
        yield Note(
            "own images", f"own images: trained on up to {images:,} that are neither of the experience nor exemplars"
        )


def _effort(row: Row, usual: float | None) -> Iterable[Note]:
    yield from effort_notes([run.record.results for run in row.runs])
    if usual is not None and row.pace is not None and row.pace > SLOW * usual:
        times = f"{row.pace / usual:.1f} times the median of the table"
        words = "it may do what is not counted as FLOPs, or have run on a busier machine"
        yield Note("slow", f"slow: its seconds for an operation are {times}; {words}")


def common_notes(group: Group) -> Iterable[Note]:
    """Remarks that every kind of run makes."""
    if any(run.transductive for run in group.runs):
        yield Note("transductive", "transductive: its answer to a test image may depend on the other test images")
    options = [(run.identity.get("networks") or {}).get("options") or {} for run in group.runs]
    if any(one.get("preprocess") == "unit_range" for one in options):
        yield Note("unit range", "unit range: images stay in [0, 1], not normalised as for the public weights")
    yield from (Note(*words) for words in audit_words(group.finished))


def audit_words(runs: Sequence[RunSummary]) -> Iterable[tuple[str, str]]:
    """Marks and sentences on the audits of the runs of one setting: those that differ first."""
    found = [(run, audit) for run in runs for audit in run.audits]
    refuted = [f"{_audited(run, audit)} ({audit.key})" for run, audit in found if audit.refutes]
    if refuted:
        yield "audit differs", f"audit differs, so not ranked: redone from its stored state, {few(refuted)}"
    unlike = [(run, audit) for run, audit in found if not (audit.equal or audit.elsewhere or audit.refutes)]
    unsure = [f"{_audited(run, audit)} ({audit.key})" for run, audit in unlike]
    if unsure:
        yield "audit unsure", f"audit unsure: other bits on a device that need not give the same twice, {few(unsure)}"
    elsewhere = [
        f"{_audited(run, audit)} (other {', '.join(audit.elsewhere)})" for run, audit in found if audit.elsewhere
    ]
    apart = [pair for pair in found if pair[1].elsewhere and not pair[1].equal]
    if elsewhere:
        much = f"{len(apart)} of {len(elsewhere)} with other bits, which says nothing" if apart else "the same bits"
        yield "audited elsewhere", f"audited elsewhere: {few(elsewhere)}: {much}"
    same = [pair for pair in found if pair[1].equal and not pair[1].elsewhere]
    if same and not refuted:
        seeds = len({run.seed for run, _ in same})
        mark = "audited" if seeds == len(runs) else f"audited {seeds}/{len(runs)}"
        count = f"{len(same)} experience{'s' * (len(same) > 1)}"
        yield mark, f"{mark}: {count} redone from the stored state before, with the same bits"


def _audited(run: RunSummary, audit: Audit) -> str:
    parts = "" if "state" in audit.compared else f" ({' and '.join(audit.compared)} alone)"
    return f"experience {audit.experience} of seed {run.seed}{parts}"


def mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def largest(values: Iterable[int | None]) -> int | None:
    """Bytes and counts hardly differ between seeds; where they do, the largest is what had to fit."""
    return max((value for value in values if value is not None), default=None)


def caps(runs: Sequence[RunSummary]) -> tuple[Cap, ...]:
    """Further budgets that the runs report, each as of the seed that measured most."""
    found: dict[str, Cap] = {}
    for run in runs:
        for name, cap in (run.result("caps") or {}).items():
            measured = [value for value in cap["measured"] if value is not None]
            if measured and (name not in found or measured[-1] > found[name].last):
                found[name] = Cap(name, str(cap["unit"]), cap["limit"], measured[-1])
    return tuple(found.values())


def beside(runs: Sequence[RunSummary], ordinary: int) -> list[Note]:
    """Says so where more than ``ordinary`` images would fit into what is carried beside networks and exemplars."""
    held = [(run.images_beside or 0.0, run) for run in runs]
    most, run = max(held, key=lambda pair: pair[0], default=(0.0, None))
    if run is None or most <= ordinary:
        return []
    size = run.result("ledger", -1, "beside", "bytes")
    mark = f"holds {most:,.0f} images' worth beside"
    return [Note(mark, f"{mark} its networks and exemplars: {size:,} bytes")]


def incomplete(group: Group) -> list[Note]:
    """Says why seeds have no numbers."""
    stopped = Counter(run.status.replace("_", " ") for run in group.runs if run.status != "finished")
    words = ", ".join(f"{count} of {len(group.runs)} seeds {status}" for status, count in sorted(stopped.items()))
    errors = [run.record.error for run in group.runs if run.record.error]
    notes = [Note("incomplete", f"{words}: {errors[0]}" if errors else words)] if words else []
    return notes + left_out(group)


def left_out(group: Group) -> list[Note]:
    """Says which runs a row does without: those of a seed that is there already, those of earlier code."""
    notes = []
    if group.dropped:
        notes.append(Note("repeated", f"repeated: {_more(group.dropped)} of seeds that are there already, left out"))
    if group.older:
        notes.append(Note("edited", f"edited: {_more(group.older)} of an earlier version of the code, left out"))
    return notes


def _more(count: int) -> str:
    return "1 more run" if count == 1 else f"{count} more runs"


def remarks(rows: Iterable[Row]) -> tuple[str, ...]:
    """Sentences on rows; what holds for several is said once."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            labels.setdefault(note.text, []).append(row.label)
    return tuple(f"{', '.join(names)}: {text}" for text, names in labels.items())


def lowest_error(metric: str, errors: Mapping[str, Score]) -> tuple[Verdict, ...]:
    """A verdict on rows by the error that each has, as accuracies; none where fewer than two are known.

    >>> [verdict.text for verdict in lowest_error("Score", {"a": Score({0: 1.0}), "b": Score({0: 2.0})})]
    ['Score: no winner is called on one seed (a, b).']
    """
    scores = {
        label: Score({seed: None if value is None else 100 - value for seed, value in error.values.items()})
        for label, error in errors.items()
        if error.mean is not None
    }
    return (verdict(metric, scores),) if len(scores) > 1 else ()
