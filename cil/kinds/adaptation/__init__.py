"""Runs of an adapter: a trained network meets a stream of shifting test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cil.kinds.command_line import CommandLine

if TYPE_CHECKING:
    from cil.adapt import Adapter
    from cil.kinds.adaptation.work import AdaptationWork
    from cil.report.section import Sections
    from cil.streams.shifts import ShiftStream
    from cil.testing import Rule
    from cil.testing.subject import Subject
    from cil.tracking import Record


class Adaptation(CommandLine):
    """The kind of adaptation runs; see ``cil.kinds.base.Kind``."""

    name = "adaptation"
    learner = "adapter"
    unit = "segments"
    progress = "segment_errors"
    commands = "cil.kinds.adaptation.commands:COMMANDS"

    def identity_type(self) -> type:
        """What makes a run of this kind that run."""
        from cil.kinds.adaptation.record_types import AdaptationIdentity

        return AdaptationIdentity

    def results_type(self) -> type:
        """What a record of this kind has as results."""
        from cil.kinds.adaptation.record_types import AdaptationResults

        return AdaptationResults

    def work(self, **parts: Any) -> AdaptationWork:
        """The work of a run; ``parts`` as ``AdaptationWork`` takes them."""
        from cil.kinds.adaptation.work import AdaptationWork

        return AdaptationWork(**parts)

    def sections(self, records: Sequence[Record]) -> Sections:
        """A table for each source and order of images: online error by domain, bytes and seconds."""
        from cil.kinds.adaptation.section import sections

        return sections(records)

    # contract checks

    def runs(self, learner: type) -> bool:
        """True for adapters."""
        from cil.adapt import Adapter

        return issubclass(learner, Adapter)

    def rules(self) -> tuple[Rule, ...]:
        """The contract checks of adapters."""
        from cil.kinds.adaptation.rules import RULES

        return RULES

    def subject(
        self, target: type[Adapter], hyperparameters: Mapping[str, Any], stream: ShiftStream | None = None
    ) -> Subject[Adapter]:
        """The adapter under test."""
        from cil.kinds.adaptation.subject import AdapterSubject

        return AdapterSubject(target, hyperparameters, stream)


ADAPTATION = Adaptation()
