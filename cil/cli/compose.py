"""From overrides to a composed configuration, by Hydra; and its refusals in one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli.names import choices as group_choices
from cil.cli.names import conf_dir, plugin_conf_dirs, plugin_points
from cil.cli.refusals import explained
from cil.cli.schema import check
from cil.errors import ConfigError, nearest
from cil.targets import PARTIAL, TARGET, check_arguments, resolve

if TYPE_CHECKING:
    from cil.tracking import Record

CONFIG = "config"
OPTIONS = (  # of Hydra
    *("--cfg", "-c", "--package", "-p", "--resolve", "--multirun", "-m", "--run", "-r", "--info", "-i", "--hydra-help"),
    *("--config-dir", "-cd", "--shell-completion", "-sc", "--experimental-rerun"),
)
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--experimental-rerun")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what --info may be followed by


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


def compose(overrides: Sequence[str] = ()) -> Job:
    """Compose the configuration with these overrides.

    Raises:
        ConfigError: for whatever Hydra or the schema refuses, with the nearest known names.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with explained(overrides, composed):
        _offer_plugins(overrides)
        with initialize_config_dir(str(conf_dir()), job_name="cil", **_version_base()):
            whole = hydra_compose(CONFIG, list(overrides), return_hydra_config=True)
            own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
            job = _job(own, whole.hydra, overrides)
    check(job.config)
    return job


def _job(own: Any, hydra: Any, overrides: Sequence[str]) -> Job:
    """A job from what Hydra composed, its own part apart."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    chosen = {key: value for key, value in hydra.runtime.choices.items() if not key.startswith("hydra/")}
    sweep = {key: str(value) for key, value in (hydra.sweeper.get("params") or {}).items()}
    return Job({str(key): value for key, value in config.items()}, chosen, tuple(overrides), sweep)


def run(*overrides: str) -> Record:
    """Run what ``cil run`` would run with these overrides; Ctrl-C and errors are Python's.

    >>> run("stream=split_digits", "trainer.epochs=1").results["last_accuracy"]  # doctest: +SKIP
    61.3
    """
    from cil.cli.build import build

    return build(compose(overrides)).execute()


def application(arguments: Sequence[str], task: Callable[[Job], Any]) -> None:
    """Run Hydra's own command line: ``--cfg``, ``--multirun``, ``--info``, shell completion and the overrides.

    Args:
        arguments: As given to the command.
        task: Called with each job, not checked yet; in a multirun perhaps in another process.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    options, overrides = _parted(arguments)
    here, refused = os.getpid(), list[OmegaConfBaseException]()

    def called(cfg: Any) -> Any:
        try:
            job = _job(cfg, HydraConfig.get(), list(HydraConfig.get().overrides.task))
        except OmegaConfBaseException as error:
            if os.getpid() != here:  # the launcher must be told
                raise
            refused.append(error)  # raised below: here Hydra would print a line of its own
            return None
        return task(job)

    program, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    with explained(overrides, composed):
        _offer_plugins(overrides)
        app = hydra.main(config_path=str(conf_dir()), config_name=CONFIG, **_version_base())(called)
        sys.argv = ["cil", *options, *overrides]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here, to be told in one line
        try:
            app()
        finally:
            sys.argv = program
            os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)
        if refused:
            raise refused[0]


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's options with their values, and the overrides: Hydra wants the options first.

    Raises:
        ConfigError: for an option that Hydra does not have.
    """
    options: list[str] = []
    overrides: list[str] = []
    given = list(arguments)
    while given:
        item = given.pop(0)
        if not item.startswith("-"):
            overrides.append(item)
            continue
        if item.partition("=")[0] not in OPTIONS:
            known = ("--dry-run", *(name for name in OPTIONS if name[1] == "-"))
            raise ConfigError(f"no option '{item}'; {nearest(item, known)}")
        if item in ("--info", "-i"):
            item = f"--info={given.pop(0) if given and given[0] in INFOS else 'all'}"
        options.append(item)
        if item in WITH_VALUE and given:
            options.append(given.pop(0))
    return options, overrides


def _version_base() -> dict[str, str]:
    """Hydra 1.3 warns where it is missing, 1.4 where it is there."""
    major, minor = version("hydra-core").split(".")[:2]
    return {"version_base": "1.3"} if (int(major), int(minor)) < (1, 4) else {}


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration alone, unresolved; Hydra's errors as they are."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_dir()), **_version_base()):
        return OmegaConf.to_container(hydra_compose(CONFIG, list(overrides)), resolve=False)  # type: ignore[return-value]


# what plugins add ---------------------------------------------------------------------------------------------------


def _offer_plugins(overrides: Sequence[str]) -> None:
    """Add the ``conf/`` folders of plugins to the search path, and strategies that have no file."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginFolders(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder, owner in plugin_conf_dirs().items():
                search_path.append(provider=f"plugin {owner}", path=f"file://{folder}")

    if not any(plugin.__name__ == "PluginFolders" for plugin in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(PluginFolders)
    for name in _named(overrides, "strategy"):
        target = _code_of(name)
        if target is not None:
            ConfigStore.instance().store(group="strategy", name=name, node=_node_of(target))


def _named(overrides: Sequence[str], group: str) -> Iterator[str]:
    """Values that a group is given, those of a sweep one by one."""
    for item in overrides:
        key, _, value = item.partition("=")
        if key in (group, f"+{group}"):
            yield from (name.strip(" '\"").replace("\\", "") for name in value.split(","))


def _code_of(name: str) -> str | None:
    """Where the class of a strategy is that has no file of its own: an entry point, or ``module:Class`` itself."""
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # an own idea in the folder one stands in
        return name
    if name in group_choices("strategy"):
        return None
    return next((p.value for p in plugin_points() if p.group == "cil.strategies" and p.name == name), None)


def _node_of(target: str) -> dict[str, Any]:
    """A configuration made of a class: its hyperparameters with their defaults."""
    import inspect

    kind = resolve(target, "strategy")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and (parameter.default is None or isinstance(parameter.default, bool | int | float | str | list | dict))
    }
    check_arguments(kind, defaults, "strategy")
    return {TARGET: target.replace(":", "."), PARTIAL: True, **defaults}
