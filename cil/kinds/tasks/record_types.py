"""Types of what stands in the record of a run on a stream of tasks."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from cil.tracking.record_types import (
    Accuracy,
    Caps,
    ExperienceDescription,
    Plan,
    Scores,
    Spending,
    Spent,
    StrategyIdentity,
)


class TaskDescription(TypedDict):
    """What the stream says of one event."""

    id: str
    dataset: str
    year: int
    domain: str
    kind: str
    classes: int
    first_slot: int
    final: bool
    counts: dict[str, int]


class TaskStreamDescription(ExperienceDescription):
    """A stream of tasks; a manifest adds its hash, that of the data, and how tasks are shuffled."""

    tasks: list[TaskDescription]
    heads: str
    splits: list[str]
    reevaluate: str


class TaskIdentity(StrategyIdentity):
    """What makes a run on a stream of tasks this run."""

    kind: Literal["tasks"]
    stream: TaskStreamDescription


class SplitScore(TypedDict):
    """How an event was answered in one split; ``metrics``: accuracy, or mAP and the labels that it skips."""

    error: float | None
    chance_error: float | None
    metrics: dict[str, float | None]
    count: int


class Trial(TypedDict):
    """One trial of a search; its settings stand beside, by name."""

    phase: int
    trial: int
    error: float
    steps: int
    flops: int
    chosen: NotRequired[bool]
    diverged: NotRequired[bool]


class Event(TypedDict):
    """One event of the stream: how it was answered right after its training, and what it took."""

    index: int
    event: str
    task: str
    year: int
    domain: str
    kind: str
    final: bool
    classes: int
    repeat: bool
    splits: dict[str, SplitScore]
    flops: dict[str, int]
    flops_so_far: int
    updates: int
    peak_parameters: int | None
    carried_bytes: int
    search: list[Trial]
    findings: dict[str, Any]
    compute: dict[str, Spent] | None


class TaskScores(Accuracy):
    """Errors by split and event; see ``cil.kinds.tasks.results``."""

    errors: dict[str, Scores]
    errors_at_end: dict[str, Scores] | None
    mean_error: dict[str, float | None]
    mean_error_by: dict[str, dict[str, float | None]]
    area_under_errors: dict[str, float | None]
    events: list[Event]


class TaskResults(TaskScores, Spending, Caps, Plan):
    """All results of a run on a stream of tasks."""
