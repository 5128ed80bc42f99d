"""A composed configuration: one run as it was asked for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from cil.cli.names import METHODS, NOT_THE_RUN, key_of, own_conf_dirs


@dataclass(frozen=True)
class Job:
    """One composed configuration.

    Attributes:
        config: All keys but Hydra's, interpolations resolved.
        choices: Which file of each group it is made of.
        overrides: What was asked for.
        sweep: Parameters that the configuration itself sweeps over (``hydra.sweeper.params``).
    """

    config: dict[str, Any]
    choices: dict[str, str]
    overrides: tuple[str, ...]
    sweep: dict[str, str]

    @property
    def learner(self) -> str:
        """The group that names the method: ``strategy``, unless another was chosen beside it."""
        return next((group for group in METHODS[1:] if self.config.get(group)), METHODS[0])

    @property
    def method(self) -> str:
        return self.choices[self.learner]

    @property
    def name(self) -> str | None:
        """The name of the method; None for an own class, which has its own."""
        return None if ":" in self.method else self.method

    @property
    def scale(self) -> str | None:
        """The scale that makes it another setting than its experiment says; None where there is none."""
        name = self.choices.get("scale") or "null"
        return None if name in ("null", "paper") else name.strip("_").partition("_")[0]  # _quick_corrupted: quick

    @property
    def command(self) -> str:
        """The command that runs it again, wherever its folder and its data are; no logger, whose keys may be secret."""
        keys = {item: key_of(item).partition(".")[0] for item in self.overrides}
        own = [part for folder in own_conf_dirs().values() for part in ("--config-dir", folder)]
        return shlex.join(
            ["cil", "run", *own, *(item for item, key in keys.items() if key not in (*NOT_THE_RUN, "hydra"))]
        )
