"""Runs of an adapter: a trained network meets a stream of shifting test images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.kinds.adaptation.work import AdaptationWork
    from cil.report.section import Sections
    from cil.tracking import Record


class Adaptation:
    """The kind of adaptation runs; see ``cil.kinds.base.Kind``."""

    name = "adaptation"
    learner = "adapter"
    unit = "segments"
    progress = "segment_errors"
    needed: tuple[str, ...] = ("config", "adapter", "seed", "stream", "source")

    def work(self, **parts: Any) -> AdaptationWork:
        """The work of a run; ``parts`` as ``AdaptationWork`` takes them."""
        from cil.kinds.adaptation.work import AdaptationWork

        return AdaptationWork(**parts)

    def sections(self, records: Sequence[Record]) -> Sections:
        """A table for each source and order of images: online error by domain, bytes and seconds."""
        from cil.kinds.adaptation.section import sections

        return sections(records)


ADAPTATION = Adaptation()
