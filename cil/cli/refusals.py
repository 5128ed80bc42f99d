"""Refusals of Hydra and OmegaConf in one line, with the nearest known names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from cil.cli.names import choices as group_choices
from cil.cli.names import choices_with, key_of
from cil.errors import CilError, ConfigError, nearest
from cil.targets import PARTIAL, TARGET

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MakeConfig = Callable[[Sequence[str]], dict[str, Any]]
GROUPS = (
    *("stream", "strategy", "adapter", "model", "budget", "optimizer", "scheduler", "trainer", "logger"),
    *("recipe", "experiment", "scale", "tune"),
)
OPTIONAL = ("adapter", "experiment", "scale")  # none of them where they are left out
# groups whose files have keys of their own, which are checked when they are built
BUILT = ("stream", "strategy", "adapter", "model", "optimizer", "scheduler", "logger")


@contextmanager
def one_line_errors(overrides: Sequence[str], make_config: MakeConfig) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf into one line.

    Args:
        make_config: Overrides to a configuration, to look for the key that was meant.

    Raises:
        ConfigError: in their place.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        yield
    except CilError:
        raise
    except MissingConfigException as error:
        raise ConfigError(_missing_choice(error)) from error
    except OverrideParseException as error:
        reason = str(error.__cause__ or error).splitlines()
        text = next((line for line in reason if not line.startswith(("Error parsing", "See "))), reason[0])
        raise ConfigError(
            f"'{error.override}' is no override: {text}; write key=value, quote what has spaces"
        ) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or error} has no value; it must be given") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_refused(str(error), overrides, make_config)) from error
    except ValueError as error:
        longest = max(overrides, key=len, default="")  # Python reads no number of thousands of digits
        what = f"'{longest[:40]}...'" if "integer string conversion" in str(error) else "the configuration"
        raise ConfigError(f"{what} cannot be read: {str(error).partition(';')[0]}") from error


def refuse_choices(overrides: Sequence[str]) -> None:
    """Refuse what cannot be a file of a group: several at once, whose last would hide the others, none, or a number."""
    for item in overrides:
        group, equals, value = (part.strip() for part in item.partition("="))
        if not group and equals:
            raise ConfigError(f"'{item}' names no key; write key=value")
        taken = group.removeprefix("~") if group.startswith("~") and not equals else None
        if taken in GROUPS and not any(other.startswith(f"+{taken}.") for other in overrides):
            raise ConfigError(
                f"{item} takes a group away that a run needs; choose another file of it, as {group[1:]}=NAME"
            )
        if group not in GROUPS or not equals:
            continue
        if group != "logger" and value.startswith(("[", "{")):  # loggers may be several
            raise ConfigError(f"{group} is {value}; it must be one name, and for several runs cil compare {group}=a,b")
        none = value.lower() in ("null", "true", "false", "")
        if none or re.fullmatch(r"[+-]?[\d.]+", value) or ".." in value:
            out = ", or left out" if group in OPTIONAL else ""
            raise ConfigError(
                f"{group} is {value or 'empty'}; it must be the name of a file of the group, as {group}=NAME{out}; "
                f"{nearest(value, group_choices(group))}"
            )


def parse_overrides(overrides: Sequence[str], config: dict[str, Any] | None = None) -> list[Override]:
    """Overrides by Hydra's grammar; where one is none, the key that was meant is looked for in ``config``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with one_line_errors(overrides, lambda _: config or {}):
        return OverridesParser.create().parse_overrides(list(overrides))


def _missing_choice(error: Any) -> str:
    """No such file in a group."""
    group, _, name = str(error.missing_cfg_file or "").rpartition("/")
    options = [*(error.options or []), *(group_choices(group) if group in GROUPS else [])]
    if not group:
        return " ".join(str(error).split())
    more = "; an own class is named module:Class" if group in ("strategy", "adapter") else ""
    offered = {item for item in options if not item.startswith("_")}
    return f"no {group} '{name}' (key {group}); {nearest(name, offered)}{more}"


def _refused(message: str, overrides: Sequence[str], make_config: MakeConfig) -> str:
    """An override of a key that is not there, or whatever else Hydra says, in one line."""
    found = re.search(r"Could not override '([^']+)'", message) or re.search(r"full_key: (\S+)", message)
    if lost := re.search(r"(Environment variable '[^']+' not found|Unsupported interpolation type \S+)", message):
        where = f"{found[1]}: " if found is not None else ""
        return f"{where}{lost[1]}; set it, or give the key a value"
    if found is not None and "ambiguous" not in message.lower():
        bad = found[1]
        return unknown_key(bad, _config_without(bad, overrides, make_config))
    if merged := re.match(r"Error merging override ([^=]+)=(.*)", message):
        key, given = merged[1].lstrip("+~"), merged[2]
        return f"{key} is {given}, and what stands there has another form, or keys of its own: see cil run --cfg job"
    if lost := re.match(r"Interpolation key '([^']+)' not found", message):
        by = next((item for item in overrides if f"${{{lost[1]}" in item), f"${{{lost[1]}}}")
        return f"{by} names {lost[1]}, and there is no such key"
    if message.startswith("Ambiguous value"):
        given = message.splitlines()[0].removeprefix("Ambiguous value for argument ").strip("'")
        return f"{given} names several values: cil sweep, cil compare or --multirun run each of them"
    return " ".join(message.split())


def unknown_key(bad: str, config: dict[str, Any]) -> str:
    """The nearest known keys: in the same section, or of that last name anywhere.

    >>> unknown_key("epochs", {"trainer": {"epochs": 1}})
    "unknown key epochs; did you mean 'trainer.epochs'?"
    >>> unknown_key("schedule", {"trainer": {"first": {"schedule": "cosine"}}})
    "unknown key schedule; did you mean 'scheduler' or 'trainer.first.schedule'?"
    >>> unknown_key("stream.augment.flip", {"stream": {"augment": None}})
    'stream.augment is null here: give it as a whole, stream.augment={flip: VALUE}'
    """
    if bad.startswith(("hydra.", "hydra/")):
        return f"unknown key {bad}; cil run --cfg hydra shows those that Hydra has here"
    *path, last = bad.split(".")
    if len(path) == 1 and path[0] in BUILT and (owners := choices_with(path[0], last)):
        return f"{bad} belongs to {path[0]}={' or '.join(owners)}, which was not chosen"
    section: Any = config
    for step in path:
        section = section.get(step, ...) if isinstance(section, dict) else ...
    if path and section in (None, {}):
        whole = ".".join(path)
        return f"{whole} is {'null' if section is None else '{}'} here: give it as a whole, {whole}={{{last}: VALUE}}"
    if path and isinstance(section, dict) and last in section:
        return f"{bad} has keys of its own: give them one by one, as {bad}.NAME=VALUE"
    if path and isinstance(section, dict) and section:
        known = [key for key in section if key not in (TARGET, PARTIAL)]
        return f"unknown key {bad}; {nearest(last, known, prefix=bad.removesuffix(last))}"
    same = get_close_matches(bad, GROUPS, n=1, cutoff=0.8)
    same += [key for key in leaves_of(config) if key.rpartition(".")[2] == last]
    if same:
        return f"unknown key {bad}; did you mean {' or '.join(repr(key) for key in same)}?"
    return f"unknown key {bad}; {nearest(bad.partition('.')[0], {*GROUPS, *config})}"


def leaves_of(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values that have no keys of their own."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= leaves_of(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _config_without(bad: str, overrides: Sequence[str], make_config: MakeConfig) -> dict[str, Any]:
    """The configuration without the override that was refused, and without any, if that is refused too."""
    rest = [item for item in overrides if key_of(item) != bad]
    for tried in (rest, [item for item in rest if item.partition("=")[0] in GROUPS], []):
        try:
            return make_config(tried)
        except Exception:
            continue
    return {}
