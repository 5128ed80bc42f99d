"""Runs of a strategy on a stream of unlike tasks, each with its task known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.kinds.tasks.work import TaskWork
    from cil.report.section import Sections
    from cil.tracking import Record


class Tasks:
    """The kind of task-stream runs; see ``cil.kinds.base.Kind``."""

    name = "tasks"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    needed: tuple[str, ...] = ("config", "strategy", "seed", "stream", "budget")

    def work(self, **parts: Any) -> TaskWork:
        """The work of a run; ``parts`` as ``TaskWork`` takes them."""
        from cil.kinds.tasks.work import TaskWork

        return TaskWork(**parts)

    def sections(self, records: Sequence[Record]) -> Sections:
        """A table for each stream of tasks: error against operations, and which learners trade best."""
        from cil.kinds.tasks.section import sections

        return sections(records)


TASKS = Tasks()
