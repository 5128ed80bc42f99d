"""Keys of the configuration, and the values that they take. What is built by target is checked by its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cil.cli.names import METHODS
from cil.cli.refusals import BUILT, unknown_key
from cil.errors import ConfigError
from cil.targets import TARGET
from cil.values import KEYS, check_value

FILES = {"stream": "builder", "strategy": "", "optimizer": "", "scheduler": "", "model": "name"}  # key beside a target


def check(config: Mapping[str, Any]) -> None:
    """Refuse keys that nothing reads, keys that are missing, and values that cannot be meant."""
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
            raise ConfigError(f"{name} is {str(section)[:60]}...: choose a file of the group, as in {name}=NAME")
    _check_budget(config["budget"])
    images = config["anytime"]["images"]
    if images is not None and config["anytime"]["every"] is None:
        raise ConfigError(
            f"anytime.images is {images}, but anytime.every is null, so nothing is evaluated inside; set it"
        )


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
                first = next(name for name in KEYS if name.startswith(f"{key}."))
                raise ConfigError(f"{key} is {value!r}; it has keys of its own, as in {first}=...")
            _check_section(value, f"{key}.", sections)
        else:
            check_value(key, value)


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = dict.fromkeys(BUILT)
    for key in KEYS:
        *path, last = key.split(".")
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        node[last] = None
    return tree


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
    if budget["per_class"] is not None and kind != "per_class":
        each, other = budget["per_class"], budget["exemplars"]
        beside = "" if other is None else f" with budget.exemplars={other}, and both count exemplars"
        raise ConfigError(
            f"budget.per_class is {each}, but budget={kind}{beside}; say budget=per_class budget.per_class={each}"
        )
    if budget["exemplars"] is not None and kind in ("none", "bytes", "per_class"):
        given = budget["exemplars"]
        raise ConfigError(
            f"budget.exemplars is {given}, but budget={kind}; say budget=exemplars budget.exemplars={given}"
        )
    if budget["exemplars"] is None and kind in ("exemplars", "aligned") and not budget["points"]:
        raise ConfigError(f"budget.exemplars is missing; budget={kind} needs it, as in budget.exemplars=200")
    if budget["per_class"] is None and kind == "per_class" and not budget["points"]:
        raise ConfigError("budget.per_class is missing; budget=per_class needs it, as in budget.per_class=20")
    if to is not None and kind != "aligned":
        raise ConfigError(f"budget.to is {to}, but budget={kind}; say budget=aligned budget.to={to}")
    if kind == "aligned" and to is None:
        raise ConfigError(
            "budget.to is missing; budget=aligned needs the strategy whose bytes it gives, as in budget.to=der"
        )
    if budget["at"] == "each" and kind in ("none", "exemplars", "per_class"):
        raise ConfigError(f"budget.at is each, but budget={kind} has no bytes; budget=bytes or aligned have")
    if budget["at"] == "each" and budget["scope"] != "carried":
        raise ConfigError(f"budget.at=each has a limit for each experience, budget.scope={budget['scope']} needs one")
    if budget["at"] == "each" and budget["reserve"] == "final":
        raise ConfigError("budget.at=each gives early experiences less than the final size; set budget.reserve=now")
