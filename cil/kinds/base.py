"""The kind of run: what the driver, the command line, the report and the checks ask of it."""

from __future__ import annotations

from typing import Any, Protocol

from cil.engine.work import Work
from cil.report.section import ReportedKind
from cil.testing.check import CheckedKind


class Kind(ReportedKind, CheckedKind, Protocol):
    """One kind of run, found by the name that a stream or a record holds (entry point ``cil.kinds``).

    An implementation imports what it needs when a method is called, so that finding it costs nothing: it derives from
    ``cil.kinds.parts.KindOfParts`` and names its parts, among them one for the command line; or from a built-in kind,
    of which it names other parts.
    """

    def work(self, **parts: Any) -> Work:
        """The work of a run; ``parts`` are those that ``cil.plan`` gives to all kinds with such learners."""
