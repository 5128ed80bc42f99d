"""Class streams: a strategy learns classes that arrive in experiences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.strategies import Strategy
    from cil.streams import Stream
    from cil.testing import Rule
    from cil.testing.subject import Subject


class Classes:
    """The kind of runs on class streams."""

    name = "classes"
    learner = "strategy"

    def runs(self, learner: type) -> bool:
        """True for strategies that are not told the task."""
        from cil.strategies import Strategy

        return issubclass(learner, Strategy) and not learner.takes_task

    def rules(self) -> tuple[Rule, ...]:
        """The contract checks of strategies."""
        from cil.kinds.classes.rules import RULES

        return RULES

    def subject(
        self, target: type[Strategy], hyperparameters: Mapping[str, Any], stream: Stream | None = None
    ) -> Subject[Strategy]:
        """The strategy under test."""
        from cil.kinds.classes.subject import StrategySubject

        return StrategySubject(target, hyperparameters, stream)


CLASSES = Classes()
