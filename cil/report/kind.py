"""The part of a kind of run that a report reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cil.report.section import Sections
from cil.tracking import Record


class ReportedKind(Protocol):
    """How records of one kind of run are read; ``cil.kinds`` has the whole protocol.

    Attributes:
        name: Name in the record, and of the entry point in ``cil.kinds``.
        learner: Key of the identity that names the method, such as ``strategy``; the word for it in a report.
        unit: Key of the stream's description for its steps, a count or a list: ``experiences``, ``segments``.
        progress: Key of the results whose length is the number of steps that were evaluated.
    """

    name: str
    learner: str
    unit: str
    progress: str

    def sections(self, records: Sequence[Record]) -> Sections:
        """Tables, plots and words of records of this kind."""
        ...
