"""Runs of a strategy on a stream of unlike tasks, each with its task known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cil.kinds.command_line import CommandLine

if TYPE_CHECKING:
    from cil.kinds.tasks.work import TaskWork
    from cil.report.section import Sections
    from cil.strategies import Strategy
    from cil.streams import Stream
    from cil.testing import Rule
    from cil.testing.subject import Subject
    from cil.tracking import Record


class Tasks(CommandLine):
    """The kind of task-stream runs; see ``cil.kinds.base.Kind``."""

    name = "tasks"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    commands = "cil.kinds.tasks.commands:COMMANDS"

    def identity_type(self) -> type:
        """What makes a run of this kind that run."""
        from cil.kinds.tasks.record_types import TaskIdentity

        return TaskIdentity

    def results_type(self) -> type:
        """What a record of this kind has as results."""
        from cil.kinds.tasks.record_types import TaskResults

        return TaskResults

    def work(self, **parts: Any) -> TaskWork:
        """The work of a run; ``parts`` as ``TaskWork`` takes them."""
        from cil.kinds.tasks.work import TaskWork

        return TaskWork(**parts)

    def sections(self, records: Sequence[Record]) -> Sections:
        """A table for each stream of tasks: error against operations, and which learners trade best."""
        from cil.kinds.tasks.section import sections

        return sections(records)

    # contract checks

    def runs(self, learner: type) -> bool:
        """True for strategies that are told the task."""
        from cil.strategies import Strategy

        return issubclass(learner, Strategy) and learner.takes_task

    def rules(self) -> tuple[Rule, ...]:
        """The contract checks of strategies."""
        from cil.kinds.tasks.rules import RULES

        return RULES

    def subject(
        self, target: type[Strategy], hyperparameters: Mapping[str, Any], stream: Stream | None = None
    ) -> Subject[Strategy]:
        """The strategy under test."""
        from cil.kinds.tasks.rules import TaskSubject

        return TaskSubject(target, hyperparameters, stream)


TASKS = Tasks()
