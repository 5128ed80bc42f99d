"""Adaptation: a trained network meets unlabelled images whose domain shifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.adapt import Adapter
    from cil.streams.shifts import ShiftStream
    from cil.testing import Rule
    from cil.testing.subject import Subject


class Adaptation:
    """The kind of runs that adapt while they predict."""

    name = "adaptation"
    learner = "adapter"

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
