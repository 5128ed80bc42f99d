"""Runs of a strategy on a stream of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cil.kinds.command_line import CommandLine

if TYPE_CHECKING:
    from cil.kinds.classes.work import ClassWork
    from cil.report.section import Sections
    from cil.strategies import Strategy
    from cil.streams import Stream
    from cil.testing import Rule
    from cil.testing.subject import Subject
    from cil.tracking import Record


class Classes(CommandLine):
    """The kind of class-incremental runs; see ``cil.kinds.base.Kind``."""

    name = "classes"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    commands = "cil.kinds.classes.commands:COMMANDS"

    def identity_type(self) -> type:
        """What makes a run of this kind that run."""
        from cil.kinds.classes.record_types import ClassIdentity

        return ClassIdentity

    def results_type(self) -> type:
        """What a record of this kind has as results."""
        from cil.kinds.classes.record_types import ClassResults

        return ClassResults

    def work(self, **parts: Any) -> ClassWork:
        """The work of a run; ``parts`` as ``ClassWork`` takes them."""
        from cil.kinds.classes.work import ClassWork

        return ClassWork(**parts)

    def sections(self, records: Sequence[Record]) -> Sections:
        """A table for each setting that can be compared, and accuracy over budgets."""
        from cil.kinds.classes.section import sections

        return sections(records)

    # contract checks

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
