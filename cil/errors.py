"""One tree of exceptions. Every message is one line: what was given, what is allowed, where to change it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CilError(Exception):
    """Root of all errors that the framework raises on purpose."""


class ConfigError(CilError):
    """A key, name or value of the configuration is wrong."""


class DataError(CilError):
    """Images, labels or files of a data set are wrong; names the file where there is one."""


class ShapeError(DataError):
    """A tensor has another shape than the call allows."""


class StreamError(CilError):
    """A stream cannot be built as asked for."""


class StateError(CilError):
    """A learner's state is not what its structure says."""


class NotKept(StateError):
    """A tensor, parameter or module was assigned without ``keep``."""


class BudgetExceeded(CilError):
    """A learner carries more than its budget allows."""


class ContractError(CilError):
    """A strategy breaks a rule of the contract (see ``cil.testing``)."""


class ResumeError(CilError):
    """A run directory belongs to another run."""


class TrainingError(CilError):
    """Training cannot go on: a loss that is not finite, no memory left, a full disk."""


class Diverged(TrainingError):
    """A loss is not finite."""


def nearest(name: str, known: Iterable[str], limit: int = 3, prefix: str = "") -> str:
    """Describe the names one could have meant.

    Args:
        prefix: What stands before a name where it is written.

    >>> nearest("icarll", ["icarl", "wa"])
    "did you mean 'icarl'? known: icarl, wa"
    >>> nearest("epoch", ["epochs"], prefix="trainer.")
    "did you mean 'trainer.epochs'? known: epochs"
    """
    names = sorted(str(item) for item in known)
    close = difflib.get_close_matches(str(name), names, n=limit, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(prefix + item) for item in close)}? " if close else ""
    return f"{hint}known: {', '.join(names) if names else 'none'}"
