"""Shell completion: Hydra's own, behind the name of the command."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from cil.cli.compose import application

COMPOSING = ("run", "sweep", "compare", "budget", "show", "evaluate")


def complete(arguments: Sequence[str], commands: Iterable[str]) -> int:
    """Answer ``cil -sc install=bash``, and what the installed function asks for at each key press."""
    words = os.environ.get("COMP_LINE", "").split()
    new_word = os.environ.get("COMP_LINE", "").endswith(" ")
    if "COMP_LINE" in os.environ:
        if len(words) < 2 or (len(words) == 2 and not new_word):
            start = words[1] if len(words) == 2 else ""
            print(" ".join(name for name in commands if name.startswith(start)))
            return 0
        if words[1] not in COMPOSING:
            return 0
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]]) + (" " if new_word else "")
    application(arguments, lambda job: None)
    return 0
