"""The files and values of the configuration, composed by Hydra; in a command each choice of files is merged once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from cil.cli.names import OWN, conf_dir, file_of

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONFIG = "config"
OPEN = ("budget.caps.", "strategy.options.")  # beginnings of keys that other packages name, so without Hydra's +
BLANK = "_blank"  # a strategy without keys, in whose place the file of another is put
BY_STRATEGY = "recipe/by_strategy"


@dataclass(frozen=True)
class Composition:
    """What Hydra makes of overrides.

    Attributes:
        config: All keys but Hydra's, interpolations as they are written.
        choices: Which file of each group it is made of.
        sweep: Parameters that the configuration itself sweeps over (``hydra.sweeper.params``).
        only: True where a job needs nothing of Hydra but this: no folders, logs, callbacks or variables.
    """

    config: Any
    choices: dict[str, str]
    sweep: dict[str, str]
    only: bool

    @classmethod
    def of(cls, config: Any, hydra: Any) -> Composition:
        """Of a configuration without Hydra's own part, and that part."""
        chosen = {key: value for key, value in hydra.runtime.choices.items() if not key.startswith("hydra/")}
        sweep = {key: str(value) for key, value in (hydra.sweeper.get("params") or {}).items()}
        # in all that its command line does beside composing, is that part as in conf/config.yaml?
        asked = (hydra.mode, hydra.callbacks, hydra.verbose, hydra.output_subdir, hydra.job.chdir, hydra.job.env_set)
        logs = [hydra.runtime.choices.get(f"hydra/{kind}_logging") for kind in ("job", "hydra")]
        return cls(config, chosen, sweep, not any(asked) and hydra.run.dir == "." and logs == ["none", "none"])

    def container(self, resolve: bool) -> dict[str, Any]:
        """The configuration as plain mappings and lists.

        Raises:
            OmegaConfBaseException: where it is to be resolved, and names what is not there.
        """
        from omegaconf import OmegaConf

        found = OmegaConf.to_container(self.config, resolve=resolve, throw_on_missing=resolve)
        return cast(dict[str, Any], found)


_merged: dict[tuple[str, ...], Composition] | None = None  # by the choice of files; None outside of a command
_own_data: dict[str, Any] = {}  # streams of a user's own files, by their configuration


@contextmanager
def files_remembered() -> Iterator[None]:
    """Read and merge each choice of files once for as long as the outermost lasts: files are taken not to change."""
    global _merged
    before = _merged
    _merged = {} if before is None else before
    try:
        yield
    finally:
        _merged = before
        if before is None:
            _own_data.clear()


def own_data() -> dict[str, Any]:
    """Streams of files that may change between two commands: remembered for as long as the outermost lasts."""
    return {} if _merged is None else _own_data


def composition(overrides: Sequence[str]) -> Composition:
    """Compose; Hydra's errors as they are."""
    with hydra_ready():
        return _remembered(overrides) or _by_hydra(overrides)


def _by_hydra(overrides: Sequence[str]) -> Composition:
    from hydra import compose
    from omegaconf import OmegaConf

    whole = compose(CONFIG, opened(overrides), return_hydra_config=True)
    own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    return Composition.of(own, whole.hydra)


def alone(overrides: Sequence[str]) -> Composition | None:
    """One job that asks nothing of Hydra's command line; None where Hydra's own must look at it."""
    with hydra_ready():
        found = _remembered(overrides)
    return found if found is not None and found.only else None


def _remembered(overrides: Sequence[str]) -> Composition | None:
    """The same by files merged before; None where that is not known to be the same, or Hydra has an error to tell.

    Hydra merges the files that groups choose, and then sets values in their order. Which files these are depends on no
    value, so values are set here on a copy of what was merged.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if _merged is None:
        return None
    try:
        parsed = OverridesParser.create().parse_overrides(opened(overrides))
        if not all(map(_is_plain, parsed)):
            return None
        loader: Any = GlobalHydra.instance().config_loader()
        files = [one for one in parsed if loader.repository.group_exists(one.key_or_group)]
        base = _of_files(tuple(str(one.input_line) for one in files))
        config = copy.deepcopy(base.config)
        OmegaConf.set_struct(config, True)
        for one in parsed:
            if one not in files:
                OmegaConf.update(config, one.key_or_group, one.value(), merge=True, force_add=one.is_force_add())
    except (HydraException, OmegaConfBaseException):
        return None
    return replace(base, config=config)


def _is_plain(override: Override) -> bool:
    """True for ``key=value`` and ``++key=value`` that are no sweep, and not of Hydra itself."""
    simple = override.type is not None and override.type.name in ("CHANGE", "FORCE_ADD")
    own = override.package is None and not override.key_or_group.startswith("hydra")
    return simple and own and not override.is_sweep_override()


def _of_files(choices: tuple[str, ...]) -> Composition:
    """Files alone, merged before or now."""
    assert _merged is not None
    key = (os.environ.get(OWN, ""), *choices)
    found = _merged.get(key)
    if found is None:
        found = _merged[key] = _strategy_put_in(choices) or _by_hydra(choices)
    return found


def _strategy_put_in(choices: tuple[str, ...]) -> Composition | None:
    """The file of a strategy put into a composition without one; None where other files depend on the strategy."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    named = [item.partition("=")[2] for item in choices if item.startswith("strategy=")]
    path = file_of("strategy", named[0]) if len(named) == 1 and named[0] != BLANK else None
    text = path.read_text(encoding="utf-8") if path is not None else "defaults:"
    if path is None or "defaults:" in text or "@package" in text:
        return None
    ConfigStore.instance().store(group="strategy", name=BLANK, node={})
    base = _of_files(tuple(f"strategy={BLANK}" if item == f"strategy={named[0]}" else item for item in choices))
    chosen = {key: named[0] if value == BLANK else value for key, value in base.choices.items()}
    chosen[BY_STRATEGY] = f"{chosen['recipe']}_{named[0]}"
    if file_of(BY_STRATEGY, chosen[BY_STRATEGY]) or any(BLANK in str(value) for value in chosen.values()):
        return None
    config = copy.deepcopy(base.config)
    config.strategy = OmegaConf.merge(OmegaConf.load(path), config.strategy)  # of files that are merged after it
    return replace(base, config=config, choices=chosen)


def opened(overrides: Sequence[str]) -> list[str]:
    """The same for Hydra, which wants a mark before keys that no file has."""
    return [f"++{item}" if item.startswith(OPEN) else item for item in overrides]


def version_base() -> dict[str, str]:
    """Hydra 1.3 warns where it is missing, 1.4 where it is there."""
    major, minor = version("hydra-core").split(".")[:2]
    return {"version_base": "1.3"} if (int(major), int(minor)) < (1, 4) else {}


@contextmanager
def hydra_ready() -> Iterator[None]:
    """Hydra on the configuration of the package; inside a job of a multirun it is there already."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(str(conf_dir()), job_name="cil", **version_base()):
        yield


def raw_config(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration alone, unresolved; Hydra's errors as they are."""
    return composition(overrides).container(resolve=False)
