"""Runs of a strategy on a stream of classes."""

from __future__ import annotations

from cil.kinds.parts import KindOfParts


class Classes(KindOfParts):
    """The kind of class-incremental runs: accuracy over experiences, and accuracy over budgets."""

    name = "classes"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    commands = "cil.kinds.classes.commands:COMMANDS"
    identity = "cil.kinds.classes.record_types:ClassIdentity"
    results = "cil.kinds.classes.record_types:ClassResults"
    works = "cil.kinds.classes.work:ClassWork"
    report = "cil.kinds.classes.section:sections"
    contract = "cil.kinds.classes.rules:RULES"
    tested = "cil.kinds.classes.subject:StrategySubject"

    def runs(self, learner: type) -> bool:
        from cil.strategies import Strategy

        return issubclass(learner, Strategy) and not learner.takes_task


CLASSES = Classes()
