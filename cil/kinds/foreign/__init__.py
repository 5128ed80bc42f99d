"""Results of another toolbox, read from its logs: shown beside ours, never ranked with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError
from cil.kinds.parts import KindOfParts

if TYPE_CHECKING:
    from cil.engine.work import Work


class Foreign(KindOfParts):
    """The kind of records that no run of this framework left: they have accuracies, and neither bill nor checkpoint."""

    name = "foreign"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    by_step = ("accuracy_matrix", "answers", "exemplars")
    commands = "cil.kinds.foreign.commands:COMMANDS"
    identity = "cil.kinds.foreign.record_types:ForeignIdentity"
    results = "cil.kinds.foreign.record_types:ForeignResults"
    report = "cil.kinds.foreign.section:sections"

    def runs(self, learner: type) -> bool:
        return False

    def work(self, **parts: Any) -> Work:
        """Refuse to run."""
        raise ConfigError("a foreign record is of another toolbox, which alone can run it again")


FOREIGN = Foreign()
