"""Runs of a strategy on a stream of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cil.report.section import Sections
    from cil.tracking import Record


class Classes:
    """The kind of class-incremental runs; see ``cil.kinds.base.Kind``."""

    name = "classes"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    needed: tuple[str, ...] = ("config", "strategy", "seed", "stream", "budget")

    def sections(self, records: Sequence[Record]) -> Sections:
        """A table for each setting that can be compared, and accuracy over budgets."""
        from cil.kinds.classes.section import sections

        return sections(records)


CLASSES = Classes()
