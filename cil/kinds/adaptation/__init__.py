"""Test-time adaptation: a trained network meets test images that shift, and predicts each of them once."""

from __future__ import annotations

from typing import Any, ClassVar


class Adaptation:
    """The kind ``adaptation``."""

    name: ClassVar[str] = "adaptation"
    learner: ClassVar[str] = "adapter"

    def identity_type(self) -> type:
        """What makes a run of this kind that run."""
        from cil.kinds.adaptation.record_types import AdaptationIdentity

        return AdaptationIdentity

    def results_type(self) -> type:
        """What a record of this kind has as results."""
        from cil.kinds.adaptation.record_types import AdaptationResults

        return AdaptationResults

    def work(self, **parts: Any) -> Any:
        """The work of a run; ``parts`` as ``AdaptationWork`` takes them."""
        from cil.kinds.adaptation.work import AdaptationWork

        return AdaptationWork(**parts)


ADAPTATION = Adaptation()
