"""Streams of tasks: a strategy is given the task of each image, and is tested task by task."""

from __future__ import annotations

from typing import Any, ClassVar

from cil.kinds.command_line import CommandLine


class Tasks(CommandLine):
    """The kind ``tasks``."""

    name: ClassVar[str] = "tasks"
    learner: ClassVar[str] = "strategy"
    commands: ClassVar[str] = "cil.kinds.tasks.commands:COMMANDS"

    def work(self, **parts: Any) -> Any:
        """The work of a run; ``parts`` as ``TaskWork`` takes them."""
        from cil.kinds.tasks.work import TaskWork

        return TaskWork(**parts)


TASKS = Tasks()
