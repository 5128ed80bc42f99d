"""The kind of run: what the driver, the command line, the report and the checks ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cil.report.kind import ReportedKind
from cil.tracking import Record
from cil.tracking.validation import RecordedKind


class Kind(ReportedKind, RecordedKind, Protocol):
    """One kind of run, found by the name that a stream or a record holds (entry point ``cil.kinds``).

    An implementation imports what it needs when a method is called, so that finding it costs nothing. For the command
    line it derives from ``cil.kinds.command_line.CommandLine`` and names an object with the methods of that.
    """

    def rules(self) -> tuple[Callable[..., None], ...]:
        """Contract checks of learners of this kind."""
        ...

    def load(self, record: Record, **options: Any) -> Any:
        """The trained network of a finished run."""
        ...
