"""Test-time adaptation: a trained network meets test images that shift, and predicts each of them once."""

from __future__ import annotations

from typing import Any, ClassVar

from cil.kinds.command_line import CommandLine


class Adaptation(CommandLine):
    """The kind ``adaptation``."""

    name: ClassVar[str] = "adaptation"
    learner: ClassVar[str] = "adapter"
    commands: ClassVar[str] = "cil.kinds.adaptation.commands:COMMANDS"

    def work(self, **parts: Any) -> Any:
        """The work of a run; ``parts`` as ``AdaptationWork`` takes them."""
        from cil.kinds.adaptation.work import AdaptationWork

        return AdaptationWork(**parts)


ADAPTATION = Adaptation()
