"""Types of what stands in a record that was read from a log of another toolbox."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from cil.tracking.record_types import Scores


class ForeignStream(TypedDict):
    """The stream as far as the log tells it. ``name`` is made as ours are: data set, base and increment."""

    name: str
    dataset: str
    experiences: int
    classes: list[int]
    new_slots: list[list[int]]
    class_order: list[int]


class LogLine(TypedDict):
    """Where a run begins: the name of the log without its folder, the line, and the SHA-256 of the file."""

    file: str
    line: int
    sha256: str


class ForeignIdentity(TypedDict):
    """What tells a run of another toolbox from others; ``config`` has its settings as the log has them."""

    kind: Literal["foreign"]
    toolbox: str
    strategy: str
    seed: int
    stream: ForeignStream
    config: dict[str, str | int]
    log: LogLine


class ForeignAnswer(TypedDict):
    """Accuracy of one answer after each experience; ``top5_curve`` is empty where the log has none."""

    accuracy_curve: Scores
    top5_curve: Scores
    average_incremental_accuracy: float | None
    last_accuracy: float | None


class ForeignResults(TypedDict):
    """Accuracies of the classifier, percent; ``answers`` has those of the nearest mean too, where it was asked.

    ``accuracy_matrix`` and with it ``forgetting`` are known where the groups of classes in the log are the experiences.
    """

    accuracy_curve: Scores
    average_incremental_accuracy: float | None
    last_accuracy: float | None
    forgetting: float | None
    accuracy_matrix: list[Scores]
    answers: dict[str, ForeignAnswer]
    exemplars: list[int]
