"""Runs of a strategy on a stream of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cil.kinds.command_line import CommandLine

if TYPE_CHECKING:
    from cil.kinds.classes.work import ClassWork
    from cil.report.section import Sections
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


CLASSES = Classes()
