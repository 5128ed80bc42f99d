"""Keys of the configuration, and the values that they take. What is built by target is checked by its signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cil.cli.names import METHODS
from cil.cli.refusals import unknown_key
from cil.errors import ConfigError, nearest
from cil.targets import TARGET

Rule = Callable[[Any], str | None]  # None where the value is allowed, else what it must be, in words


def whole(least: int, none: bool = False) -> Rule:
    """A whole number of ``least`` or more."""
    words = f"it must be a whole number of {least} or more{', or null' if none else ''}"

    def rule(value: Any) -> str | None:
        allowed = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if allowed or (none and value is None) else words

    return rule


def above_zero(none: bool = False, zero: bool = False) -> Rule:
    """A number greater than 0, or 0 where ``zero`` says so."""
    words = f"it must be a number {'of 0 or more' if zero else 'above 0'}{', or null' if none else ''}"

    def rule(value: Any) -> str | None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        allowed = number and (0 < value < float("inf") or (zero and value == 0))
        return None if allowed or (none and value is None) else words

    return rule


def one_of(*names: Any) -> Rule:
    """One of a few names."""

    def rule(value: Any) -> str | None:
        return None if value in names else nearest(value, names)

    return rule


def text(none: bool = False) -> Rule:
    """Any text."""
    words = f"it must be text{', or null' if none else ''}"
    return lambda value: None if isinstance(value, str) or (none and value is None) else words


def limits(value: Any) -> str | None:
    """Bytes: one positive number, or one for each experience."""
    values = value if isinstance(value, list) else [value]
    allowed = value is None or (values and all(whole(1)(item) is None for item in values))
    return None if allowed else "it must be a positive number of bytes, or a list of them, one for each experience"


def side_bytes(value: Any) -> str | None:
    """Bytes, the word ``auto``, or no cap."""
    allowed = value in (None, "auto") or whole(0)(value) is None
    return None if allowed else "it must be auto, null or a whole number of bytes"


def caps(value: Any) -> str | None:
    """Limits of further budgets, by their names."""
    each = above_zero()
    allowed = isinstance(value, Mapping) and all(isinstance(name, str) and each(value[name]) is None for name in value)
    return None if allowed else "it must be a mapping of names of further budgets to numbers above 0, or {}"


def milestones(value: Any) -> str | None:
    """Epochs, or shares of the epochs, where a learning rate falls."""
    each = above_zero()
    allowed = value is None or (isinstance(value, list) and all(each(item) is None for item in value))
    return None if allowed else "it must be a list of epochs, or of shares of the epochs below 1, or null"


def share(value: Any) -> str | None:
    """A number between 0 and 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and 0 < value < 1 else "it must be a share above 0 and below 1"


def anything(value: Any) -> str | None:
    """Any value: its reader looks at it more closely."""
    return None


def points(value: Any) -> str | None:
    """A list of positive numbers."""
    allowed = value is None or (isinstance(value, list) and value and all(whole(1)(item) is None for item in value))
    return None if allowed else "it must be a list of positive whole numbers, or null"


KEYS: dict[str, Rule] = {
    "seed": whole(0),
    "run_dir": text(none=True),
    "data_root": text(none=True),
    "device": text(),
    "progress": one_of("auto", True, False),
    "boundary": one_of("inline", "process"),
    "source": text(none=True),
    "adaptation.batch_size": whole(1),
    "adaptation.clean": one_of(True, False),
    "checkpoint.keep": one_of("last", "all", "best"),
    "trainer.epochs": whole(1),
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
    "trainer.first.epochs": whole(1, none=True),
    "trainer.first.batch_size": whole(1, none=True),
    "trainer.first.lr": above_zero(none=True),
    "trainer.first.weight_decay": above_zero(none=True, zero=True),
    "trainer.first.milestones": milestones,
    "trainer.first.schedule": one_of("constant", "cosine", None),
    "trainer.snapshot_minutes": above_zero(none=True),
    "trainer.snapshot_steps": whole(1, none=True),
    "trainer.log_every": whole(1),
    "trainer.threads": whole(1, none=True),
    "trainer.evaluation_batch": whole(1),
    "budget.kind": one_of("none", "exemplars", "bytes", "aligned"),
    "budget.exemplars": whole(0, none=True),
    "budget.limit": limits,
    "budget.to": text(none=True),
    "budget.at": one_of("end", "each"),
    "budget.convention": one_of("exact", "survey"),
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
FILES = {"stream": "builder", "strategy": "", "optimizer": "", "scheduler": "", "model": "name"}  # key beside a target
BUILT = ("stream", "strategy", "adapter", "optimizer", "scheduler", "model", "logger")  # checked when they are built


def check(config: Mapping[str, Any]) -> None:
    """Refuse keys that nothing reads, keys that are missing, and values that cannot be meant.

    Raises:
        ConfigError: naming the key, what it is and what it must be.
    """
    sections = {key.rpartition(".")[0] for key in KEYS if "." in key}
    _check_section(config, "", sections)
    for key in KEYS:
        node: Any = config
        for step in key.split("."):
            if not isinstance(node, Mapping) or step not in node:
                raise ConfigError(f"{key} is missing; {KEYS[key](...)}")
            node = node[step]
    for name, other in (*FILES.items(), *((name, "") for name in METHODS[1:] if config.get(name) is not None)):
        section = config.get(name)
        if not isinstance(section, Mapping) or not {TARGET, other} & section.keys():
            raise ConfigError(f"{name} is {section!r}: choose a file of the group, as in {name}=NAME")
    _check_budget(config["budget"])


def _check_section(section: Mapping[str, Any], prefix: str, sections: set[str]) -> None:
    known = {key.removeprefix(prefix).partition(".")[0] for key in KEYS if key.startswith(prefix)}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if not prefix and name in BUILT:
            continue
        if name not in known:
            raise ConfigError(unknown_key(key, _tree()))
        if key in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} is {value!r}; it has keys of its own, as in {key}.{_first(key)}=...")
            _check_section(value, f"{key}.", sections)
        elif (must := KEYS[key](value)) is not None:
            raise ConfigError(f"{key} is {value!r}; {must}")


def _tree() -> dict[str, Any]:
    """The keys as nested mappings."""
    tree: dict[str, Any] = dict.fromkeys(BUILT)
    for key in KEYS:
        *path, last = key.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[last] = None
    return tree


def _first(key: str) -> str:
    return next(name.removeprefix(f"{key}.") for name in KEYS if name.startswith(f"{key}."))


def _check_budget(budget: Mapping[str, Any]) -> None:
    """Refuse keys of one kind of budget beside another."""
    kind, limit, to = budget["kind"], budget["limit"], budget["to"]
    if limit is not None and kind != "bytes":
        raise ConfigError(f"budget.limit is {limit}, but budget={kind} has none; say budget=bytes budget.limit={limit}")
    if kind == "bytes" and limit is None and not budget["points"]:
        raise ConfigError("budget.limit is missing; budget=bytes needs it, as in budget.limit=8000000")
    if kind == "bytes" and (budget["at"] == "each") != isinstance(limit, list) and not budget["points"]:
        raise ConfigError(
            f"budget.limit is {limit} with budget.at={budget['at']}; a list goes with each, a number with end"
        )
    if budget["exemplars"] is not None and kind in ("none", "bytes"):
        given = budget["exemplars"]
        raise ConfigError(
            f"budget.exemplars is {given}, but budget={kind}; say budget=exemplars budget.exemplars={given}"
        )
    if budget["exemplars"] is None and kind in ("exemplars", "aligned") and not budget["points"]:
        raise ConfigError(f"budget.exemplars is missing; budget={kind} needs it, as in budget.exemplars=200")
    if to is not None and kind != "aligned":
        raise ConfigError(f"budget.to is {to}, but budget={kind}; say budget=aligned budget.to={to}")
    if kind == "aligned" and to is None:
        raise ConfigError(
            "budget.to is missing; budget=aligned needs the strategy whose bytes it gives, as in budget.to=der"
        )
    if budget["at"] == "each" and kind in ("none", "exemplars"):
        raise ConfigError(f"budget.at is each, but budget={kind} has no bytes; budget=bytes or aligned have")
    if budget["at"] == "each" and budget["scope"] != "carried":
        raise ConfigError(f"budget.at=each has a limit for each experience, budget.scope={budget['scope']} needs one")
    if budget["at"] == "each" and budget["reserve"] == "final":
        raise ConfigError("budget.at=each gives early experiences less than the final size; set budget.reserve=now")
