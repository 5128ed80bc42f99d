"""The work of a run on a stream of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cil.engine.learning import StrategyWork
from cil.engine.running import Counts, Rows
from cil.engine.work import Facts
from cil.errors import ConfigError
from cil.kinds.tasks.evaluation import evaluate_tasks
from cil.kinds.tasks.record_types import TaskScores
from cil.kinds.tasks.results import ErrorsSoFar, task_scores
from cil.strategies import Strategy
from cil.streams.show import thumbnails
from cil.streams.task_stream import TaskStream
from cil.tracking import Record
from cil.tracking.arrays import Part
from cil.tracking.panels import Panel, Table, curves


@dataclass
class TaskWork(StrategyWork):
    """Trains a strategy on a stream of tasks, and evaluates it task by task."""

    stream: TaskStream

    batch_key = "strategy.search.batch_size"  # these learners set their own

    def __post_init__(self) -> None:
        super().__post_init__()
        self._so_far = ErrorsSoFar(self.stream.splits[0])

    def check_stream(self, learner: Strategy) -> None:
        """Refuse trials without held-out data, and a look inside experiences: heads are evaluated one by one."""
        events = self.stream.events if learner.searches else ()
        lacking = [event.id for event in events if event.counts.get("dev") == 0]
        if lacking:
            raise ConfigError(
                f"strategy.search has trials, and no dev images judge them in {', '.join(lacking[:3])}"
                f"{f' and {len(lacking) - 3} more tasks' if lacking[3:] else ''}; give these a dev split, choose "
                f"others by stream.ids, or set strategy.search.trials=0"
            )
        if self.anytime is not None:
            raise ConfigError(
                f"anytime.every is {self.anytime.every}, and stream '{self.stream.name}' tells the task: set it to "
                f"null, or stream.heads=offset"
            )

    def count(self, index: int, learner: Strategy, predict: Callable[..., Tensor]) -> Counts:
        """Scores of the tasks that the stream wants evaluated after this event, and a few of its training images."""
        scores = evaluate_tasks(
            predict, self.stream, index,
            seed=self.seed, device=self.runtime.torch_device, batch_size=self.evaluation_batch,
        )  # fmt: skip
        shown = {"thumbnails": thumbnails(self._training_half[index].train)} if self.pictures else {}
        return {**scores, **shown}

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        """The images of the task, for the timeline of a report, which opens no data."""
        row = rows[-1]
        return {f"thumbnails.{len(rows) - 1}": Part(row["thumbnails"].numpy())} if "thumbnails" in row else {}

    def scores(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> TaskScores:
        return task_scores(rows, facts, self.stream)

    def panels(self, record: Record) -> list[Panel]:
        results = record.results
        keys = ("index", "task", "year", "domain", "classes", "updates", "carried_bytes")
        events = [[event[key] for key in keys] for event in results.get("events") or ()]
        return [
            *super().panels(record),
            *curves("error", results.get("errors") or {}),
            *([Table("events", keys, events)] if events else []),
        ]

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        """The curve of the headline split, its mean, and forgetting where tasks are evaluated again."""
        found = self._so_far.over(rows).results()
        return found if self.stream.reevaluate != "none" else found | {"forgetting": None}
