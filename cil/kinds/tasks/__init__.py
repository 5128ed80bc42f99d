"""Streams of tasks: a strategy is given the task of each image, and is tested task by task."""

from __future__ import annotations

from typing import Any, ClassVar


class Tasks:
    """The kind ``tasks``."""

    name: ClassVar[str] = "tasks"
    learner: ClassVar[str] = "strategy"

    def identity_type(self) -> type:
        """What makes a run of this kind that run."""
        from cil.kinds.tasks.record_types import TaskIdentity

        return TaskIdentity

    def results_type(self) -> type:
        """What a record of this kind has as results."""
        from cil.kinds.tasks.record_types import TaskResults

        return TaskResults

    def work(self, **parts: Any) -> Any:
        """The work of a run; ``parts`` as ``TaskWork`` takes them."""
        from cil.kinds.tasks.work import TaskWork

        return TaskWork(**parts)


TASKS = Tasks()
