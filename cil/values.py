"""Values that the keys of the configuration take: one table for the command line and for Python."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

from cil.errors import ConfigError, nearest

Rule = Callable[[Any], str | None]  # None where the value is allowed, else what it must be, in words

MOST_WHOLE = 2**63 - 1  # what 64 bits hold
MOST_EPOCHS = 1_000_000
MOST_NUMBER = 1e30  # what fp32 holds, with room to multiply
MOST_RATE = 1e6  # with images in [0, 1]: beyond it a step leaves nothing of a network
LONGEST_NAME, LONGEST_PATH = 255, 3000  # bytes; what lies in the folder has names too


def whole(least: int, none: bool = False, most: int = MOST_WHOLE) -> Rule:
    """A whole number of ``least`` to ``most``."""

    def rule(value: Any) -> str | None:
        if (none and value is None) or (is_whole(value) and least <= int(value) <= most):
            return None
        upper = f", at most {most:,}" if is_whole(value) and int(value) > most else ""
        return f"it must be a whole number of {least} or more{upper}{', or null' if none else ''}"

    return rule


def above_zero(none: bool = False, zero: bool = False, most: float = MOST_NUMBER) -> Rule:
    """A number greater than 0, or 0 where ``zero`` says so, to ``most``."""

    def rule(value: Any) -> str | None:
        allowed = _is_number(value) and (0 < value <= most or (zero and value == 0))
        if allowed or (none and value is None):
            return None
        upper = f", at most {most:g}" if _is_number(value) and value > most else ""
        return f"it must be a number {'of 0 or more' if zero else 'above 0'}{upper}{', or null' if none else ''}"

    return rule


def one_of(*names: Any) -> Rule:
    def rule(value: Any) -> str | None:
        return None if is_in(value, names) else nearest(value, map(yaml_word, names))

    return rule


def is_in(value: Any, names: Iterable[Any]) -> bool:
    """True for one of these values; 1 is not true, and 0 not false.

    >>> is_in(1, (True, "auto")), is_in("auto", (True, "auto"))
    (False, True)
    """
    return any(isinstance(value, bool) is isinstance(name, bool) and value == name for name in names)


def yaml_word(value: object) -> str:
    """A value as a configuration file writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def text(none: bool = False) -> Rule:
    words = f"it must be text{', or null' if none else ''}"
    return when(lambda value: isinstance(value, str) or (none and value is None), words)


def folder(value: Any) -> str | None:
    """The path of a folder, as one writes it in a line; or null."""
    if value is None:
        return None
    if not isinstance(value, str):
        return "it must be text, or null"
    if value != value.strip() or not value.isprintable():
        return "it must be the path of a folder, without blanks at its ends and signs that cannot be seen, or null"
    longest = max(len(os.fsencode(part)) for part in value.split("/"))
    if len(os.fsencode(value)) > LONGEST_PATH or longest > LONGEST_NAME:
        return f"it must be a path of at most {LONGEST_PATH} bytes, {LONGEST_NAME} for each folder, or null"
    return None


def home_path(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in place of ``~``; that of a user who is not known stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def when(test: Callable[[Any], object], words: str) -> Rule:
    """A value that passes a test."""
    return lambda value: None if test(value) else words


def _all(rule: Rule, values: Iterable[Any]) -> bool:
    return all(rule(item) is None for item in values)


limits = when(
    lambda value: value is None or (value != [] and _all(whole(1), value if isinstance(value, list) else [value])),
    "it must be a positive whole number of bytes, or a list, one for each experience",
)
side_bytes = when(
    lambda value: value in (None, "auto") or whole(0)(value) is None, "it must be auto, null or a whole number of bytes"
)
caps = when(
    lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for name in value)
        and _all(above_zero(), value.values())
    ),
    "it must be a mapping of names of further budgets to numbers above 0, or {}",
)


def milestones(value: Any) -> str | None:
    """Epochs, or shares of the epochs, where a learning rate falls."""
    if value is not None and not (isinstance(value, list | tuple) and _all(above_zero(), value)):
        return "it must be a list of numbers above 0 (epochs, or below 1 shares of them), or null"
    whole = all(item < 1 or item == int(item) for item in value or ())
    return None if whole else "from 1 on these are whole epochs (below 1 shares of them)"


share = when(lambda value: _is_number(value) and 0 < value < 1, "it must be a share above 0 and below 1")
factor = when(lambda value: _is_number(value) and 0 <= value < 1, "it must be a number of 0 or more, and below 1")
factors = when(
    lambda value: isinstance(value, list | tuple) and len(value) == 2 and _all(factor, value),
    "it must be a list of two numbers of 0 or more, and below 1",
)


def looks(value: Any) -> str | None:
    """A whole number above 0, or the word ``free``."""
    must = None if value == "free" else whole(1)(value)
    return must and must.replace("it must be", "it must be free or")


def is_whole(value: object) -> TypeGuard[int]:
    """True for a whole number of any type but bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def beyond_meaning(value: object) -> bool:
    """True for a number, or a list with one, that is not finite or that no tensor takes.

    >>> beyond_meaning(2**70), beyond_meaning([0.5, float("nan")]), beyond_meaning(1e9)
    (True, True, False)
    """
    if isinstance(value, list | tuple):
        return any(map(beyond_meaning, value))
    return _is_number(value) and not abs(value) <= (MOST_WHOLE if is_whole(value) else MOST_NUMBER)


def is_finite(value: object) -> TypeGuard[float]:
    """True for a finite number of any type but bool."""
    return _is_number(value) and abs(value) < float("inf")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


anything = when(lambda value: True, "")  # its reader looks at it more closely
split = when(
    lambda value: value is None or (isinstance(value, str) and re.fullmatch(r"b\d+_inc[1-9]\d*", value)),
    "it must be base and increment in one word, as in split=b50_inc10, or null",
)
VARIANT = re.compile(r"(strategy|adapter)=\S+( +[\w.+]+=\S+)*")  # overrides that begin with a method
variants = when(
    lambda value: isinstance(value, list) and all(VARIANT.fullmatch(str(item).strip()) for item in value),
    "it must be a list of overrides, as in 'strategy=aper strategy.tuner=finetune'",
)


def cases(value: Any) -> str | None:
    """Conditions to overrides."""
    term, terms = r"\+{0,2}[\w.]+=\S+", isinstance(value, Mapping) and [text for pair in value.items() for text in pair]
    allowed = terms == [] or (terms and all(re.fullmatch(rf"{term}( +{term})*", str(item).strip()) for item in terms))
    return None if allowed else "it must be a mapping of conditions to overrides, both as in 'key=value key=value'"


point = when(
    lambda value: value == "all" or whole(1, none=True)(value) is None,
    "it must be a whole number of 1 or more, all for each of them, or null",
)
points = when(
    lambda value: value is None or (isinstance(value, list) and value and _all(whole(1), value)),
    "it must be a list of positive whole numbers, or null",
)


KEYS: dict[str, Rule] = {
    "split": split,
    "point": point,
    "cases": cases,
    "variants": variants,
    "seed": whole(0),
    "run_dir": folder,
    "data_root": folder,
    "device": text(),
    "progress": one_of("auto", True, False),
    "boundary": one_of("inline", "process"),
    "source": folder,
    "reuse": folder,
    "adaptation.batch_size": whole(1),
    "adaptation.clean": one_of(True, False),
    "checkpoint.keep": one_of("last", "all", "best"),
    "trainer.epochs": whole(1, most=MOST_EPOCHS),
    "trainer.batch_size": whole(1),
    "trainer.max_steps": whole(1, none=True),
    "trainer.precision": one_of("fp32", "bf16", "fp16", "auto"),
    "trainer.clip_norm": above_zero(none=True),
    "trainer.updates_per_batch": anything,
    "trainer.complexity": anything,
    "anytime.every": whole(1, none=True),
    "anytime.unit": one_of("steps", "samples"),
    "anytime.images": whole(1, none=True),
    "trainer.accumulate": whole(1),
    "trainer.schedule_by": one_of("epoch", "step"),
    "trainer.first.epochs": whole(1, none=True, most=MOST_EPOCHS),
    "trainer.first.batch_size": whole(1, none=True),
    "trainer.first.lr": above_zero(none=True, most=MOST_RATE),
    "trainer.first.weight_decay": above_zero(none=True, zero=True, most=MOST_RATE),
    "trainer.first.milestones": milestones,
    "trainer.first.schedule": one_of("constant", "cosine", None),
    "trainer.snapshot_minutes": above_zero(none=True),
    "trainer.snapshot_steps": whole(1, none=True),
    "trainer.log_every": whole(1),
    "trainer.threads": whole(1, none=True),
    "trainer.devices": whole(1),
    "trainer.nodes": whole(1),
    "trainer.evaluation_batch": whole(1),
    "trainer.features": one_of(None, "fp32", "bf16"),
    "trainer.answers": one_of("all", "own"),
    "trainer.looks": looks,
    "trainer.open_set": one_of(True, False),
    "trainer.pictures": one_of(True, False),
    "budget.kind": one_of("none", "exemplars", "per_class", "bytes", "aligned"),
    "budget.exemplars": whole(0, none=True),
    "budget.per_class": whole(0, none=True),
    "budget.limit": limits,
    "budget.to": text(none=True),
    "budget.at": one_of("end", "each"),
    "budget.fit": one_of(True, False),
    "budget.convention": one_of("exact", "survey", "libcontinual"),
    "budget.reserve": one_of("now", "final"),
    "budget.scope": one_of("carried", "carried+incoming"),
    "budget.enforce": one_of("error", "shrink", "report"),
    "budget.side_bytes": side_bytes,
    "budget.training_bytes": whole(1, none=True),
    "budget.flops": above_zero(none=True),
    "budget.updates": whole(1, none=True),
    "budget.caps": caps,
    "budget.points": points,
    "tune.protocol": one_of("two_phase", "first_k", "per_task", "none"),
    "tune.stream": text(),
    "tune.k": whole(1),
    "tune.trials": whole(1),
    "tune.space": anything,
    "tune.sampler": one_of("random", "tpe"),
    "tune.metric": one_of("average_incremental_accuracy", "last_accuracy"),
    "tune.validation": share,
    "tune.seed": whole(0),
    "tune.seeds": whole(1),
}
# of what is built by target: those of them that the target has
BUILT_KEYS: dict[str, Rule] = {
    "optimizer.lr": above_zero(zero=True, most=MOST_RATE),
    "optimizer.weight_decay": above_zero(zero=True, most=MOST_RATE),
    "optimizer.momentum": factor,
    "optimizer.betas": factors,
    "scheduler.minimum": above_zero(zero=True),
    "scheduler.gamma": above_zero(most=MOST_RATE),
    "scheduler.first": whole(1, most=MOST_EPOCHS),
    "scheduler.factor": whole(1, most=MOST_EPOCHS),
    "scheduler.milestones": milestones,
    "scheduler.warmup": whole(0),
    "scheduler.warmup_factor": above_zero(most=1),
}


def check_value(key: str, value: Any) -> None:
    """Refuse what a key of the configuration cannot take; a key that is not in the tables takes anything finite.

    Raises:
        ConfigError: naming the key, the value, and what it must be.

    >>> check_value("trainer.epochs", 3)
    """
    numbers = [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, float)]
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{key} is {value}; it must be finite")
    must = (BUILT_KEYS.get(key) or KEYS.get(key, anything))(value)
    if must is not None:
        given = repr(value)
        raise ConfigError(f"{key} is {given if len(given) <= 200 else f'{given[:200]}...'}; {must}")
