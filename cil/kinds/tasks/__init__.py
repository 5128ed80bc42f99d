"""Task streams: a strategy learns data sets that arrive one after the other, and is told which one it answers for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.strategies import Strategy
    from cil.streams import Stream
    from cil.testing import Rule
    from cil.testing.subject import Subject


class Tasks:
    """The kind of runs on task streams."""

    name = "tasks"
    learner = "strategy"

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
