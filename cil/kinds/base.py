"""The kind of run: what the driver, the command line, the report and the checks ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cil.report.kind import ReportedKind
from cil.tracking import Record


class Kind(ReportedKind, Protocol):
    """One kind of run, found by the name that a stream or a record holds (entry point ``cil.kinds``).

    An implementation imports what it needs when a method is called, so that finding it costs nothing.

    Attributes:
        results: TypedDict of what a record of this kind has as results.
    """

    results: type

    def rules(self) -> tuple[Callable[..., None], ...]:
        """Contract checks of learners of this kind."""
        ...

    def build(self, job: Any, stream: Any, options: Any) -> Any:
        """The run of a composed configuration, not yet begun.

        Raises:
            ConfigError: where the configuration asks for what this kind does not have.
        """
        ...

    def bill(self, run: Any) -> str:
        """Bytes that the run will carry, as ``cil run --dry-run`` prints them."""
        ...

    def summary(self, record: Record, note: str) -> str:
        """The outcome of a run, as ``cil run`` prints it."""
        ...

    def curve(self, record: Record) -> str:
        """A run drawn as text, as ``cil show RUN_DIR`` prints it."""
        ...

    def stream_lines(self, stream: Any) -> list[str]:
        """A stream in a few lines, as ``cil show stream=...`` prints it."""
        ...

    def memory(self, job: Any, stream: Any, experience: int) -> Sequence[Any]:
        """Training memory by part, as ``cil memory`` prints it."""
        ...

    def load(self, record: Record, **options: Any) -> Any:
        """The trained network of a finished run."""
        ...
