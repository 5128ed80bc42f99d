"""One tree of exceptions. Every message is one line: what was given, what is allowed, where to change it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType


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


class RankEnded(TrainingError):
    """Another process of a run on several devices ended, or cannot be reached."""


HERE = Path(__file__).parent
LIBRARIES = sys.stdlib_module_names | {
    *("torch", "torchvision", "numpy", "PIL", "scipy", "sklearn", "timm", "safetensors"),
    *("hydra", "omegaconf", "yaml", "antlr4", "joblib", "wandb", "tensorboard", "matplotlib", "rich", "optuna"),
}


def places_of(error: BaseException) -> tuple[str, str]:
    """``FILE:LINE, in FUNCTION`` where an error was last in code of a user or a plugin, and in that of the framework.

    Each is empty where it was not there.
    """
    return _places(error.__traceback__)


def _places(trace: TracebackType | None) -> tuple[str, str]:
    own, ours = "", ""
    while trace is not None:
        code, line = trace.tb_frame.f_code, trace.tb_lineno
        place = f"{code.co_filename}:{line}, in {code.co_name}"
        if Path(code.co_filename).is_relative_to(HERE):
            ours = place
        elif str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] not in LIBRARIES:
            own = place
        trace = trace.tb_next
    return own, ours


def _called_place(error: BaseException) -> str:
    """``FILE:LINE, in FUNCTION`` where an error was last in code of a user that the framework called; else empty."""
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).is_relative_to(HERE):
            return _places(trace)[0]
        trace = trace.tb_next
    return ""


def in_words(error: BaseException) -> str:
    """An error in one line: one of the framework as it is, any other with its type and the place where it arose.

    A broken rule that arose in a learner's code has its place too.
    """
    text = " ".join(str(error).split())
    if isinstance(error, ContractError | NotKept) and (place := _called_place(error)) and place not in text:
        return f"{text} ({place})"
    if isinstance(error, CilError):
        return text
    if isinstance(error, SystemExit):
        text = f"sys.exit({error.code!r}) was called, which ends the whole command"
    else:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    own, ours = places_of(error)
    return f"{text} ({own or ours})" if own or ours else text


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
