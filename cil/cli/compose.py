"""Overrides to a composed configuration, by Hydra."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cil.cli.cases import case_overrides
from cil.cli.composition import CONFIG, Composition, alone, composition, hydra_ready, opened, raw_config, version_base
from cil.cli.environment import in_environment
from cil.cli.job import Job
from cil.cli.names import METHODS, conf_dir, entry_group, file_of, key_of, plugin_conf_dirs, plugin_target, target_of
from cil.cli.names import choices as group_choices
from cil.cli.refusals import leaves_of, one_line_errors, refuse_choices
from cil.cli.schema import check
from cil.errors import ConfigError, nearest
from cil.plugins import warn_if_shadowed
from cil.targets import PARTIAL, TARGET, check_arguments, resolve

OPTIONS = (  # of Hydra
    *("--cfg", "-c", "--package", "-p", "--resolve", "--multirun", "-m", "--run", "-r", "--info", "-i", "--hydra-help"),
    *("--shell-completion", "-sc", "--experimental-rerun"),
)
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--experimental-rerun")
INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what --info may be followed by
COMPOSING = ("run", "sweep", "compare", "budget", "show", "evaluate")  # commands whose words Hydra completes
CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:Class
INSTEAD = {  # key on the command line: keys by which a recipe may have set the same
    "optimizer": ("optimizer", "trainer.first.lr", "trainer.first.weight_decay"),
    "scheduler": ("scheduler", "trainer.first.milestones", "trainer.first.schedule"),
    "optimizer.lr": ("trainer.first.lr",),
    "optimizer.weight_decay": ("trainer.first.weight_decay",),
    "scheduler.milestones": ("trainer.first.milestones", "trainer.first.schedule"),
    "trainer.epochs": ("trainer.first.epochs",),
    "trainer.batch_size": ("trainer.first.batch_size",),
}


def compose(overrides: Sequence[str] = ()) -> Job:
    """Compose the configuration with these overrides, which go before what a recipe says.

    Raises:
        ConfigError: for whatever Hydra or the schema refuses, with the nearest known names.
    """
    with one_line_errors(overrides, raw_config):
        _offer_plugins(overrides)
        job = _before_recipe(_job(composition(overrides), overrides))
    check(job.config)
    return job


def _before_recipe(job: Job) -> Job:
    """The same job with what its cases set, what the command line says before a recipe, and a scale for the stream."""
    _refuse_unread(job)
    _refuse_mixed_optimizers(job)
    more = _more_overrides(job)
    return _job(composition([*job.overrides, *more]), job.overrides) if more else job


def _more_overrides(job: Job) -> list[str]:
    return [*_suited_scale(job), *case_overrides(job), *_instead_of_recipe(job.overrides, job.choices)]


def _refuse_unread(job: Job) -> None:
    for key in map(key_of, job.overrides):
        if job.learner == METHODS[0] and key.startswith("adaptation."):
            raise ConfigError(f"{key} is read with an adapter alone; choose one, as adapter=tent, or leave it out")


def _refuse_mixed_optimizers(job: Job) -> None:
    """Refuse the learning rate of an experiment for an optimizer that it does not know, as a recipe chose another."""
    experiment, recipe = job.choices.get("experiment"), job.choices.get("recipe")
    named = {key_of(item) for item in job.overrides}
    if recipe == "default" or experiment in (None, "null") or {"optimizer", "optimizer.lr"} & named:
        return
    usual = target_of("optimizer", job.choices["optimizer"])
    if job.config["optimizer"][TARGET] == usual:
        return
    kept = [item for item in job.overrides if item.partition("=")[0] not in ("experiment", "scale")]
    chosen = {group: job.choices[group] for group in ("strategy", "recipe", "model", "stream") if group not in named}
    alone = raw_config([*kept, *(f"{group}={choice}" for group, choice in chosen.items())])["optimizer"]
    if alone[TARGET] != usual and alone["lr"] != job.config["optimizer"]["lr"]:
        raise ConfigError(
            f"experiment={experiment} sets optimizer.lr={job.config['optimizer']['lr']}, and recipe={recipe} has "
            f"another optimizer, {alone[TARGET]} with {alone['lr']}: say which, as in optimizer.lr={alone['lr']}"
        )


def _suited_scale(job: Job) -> list[str]:
    """The scale's own file for such streams, ``_SCALE_BUILDER.yaml``, where there is one."""
    suited = f"_{job.choices.get('scale')}_{(job.config.get('stream') or {}).get('builder')}"
    return [f"scale={suited}"] if file_of("scale", suited) else []


def _instead_of_recipe(overrides: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """More overrides, that put back what a recipe says by other keys of what the command line says.

    Hydra merges a recipe after the groups: ``scheduler=constant`` would keep its milestones, or do nothing, and
    ``trainer.epochs=20`` would leave the first experience at 200.
    """
    named = [item.lstrip("+").partition("=")[0] for item in overrides]
    keys = dict.fromkeys(key for name in named for key in INSTEAD.get(name, ()))
    if not keys or choices.get("recipe") == "default":
        return []
    groups = {"recipe": "default", **{name: choices[name] for name in ("optimizer", "scheduler")}}
    plain = [item for item, name in zip(overrides, named, strict=True) if name not in groups]
    plain += [f"{name}={choice}" for name, choice in groups.items()]
    asked, held = leaves_of(raw_config(overrides)), leaves_of(raw_config(plain))
    parts = [leaf for leaf in asked if any(leaf == key or leaf.startswith(f"{key}.") for key in keys)]
    return [f"++{leaf}={json.dumps(held.get(leaf))}" for leaf in parts if asked[leaf] != held.get(leaf)]


def files_of(overrides: Sequence[str]) -> dict[str, str]:
    """Dotted keys of the configuration to the file that had the last word on them, as ``conf/optimizer/sgd.yaml``."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    found: dict[str, str] = {}
    with one_line_errors(overrides, raw_config):
        _offer_plugins(overrides)
        with hydra_ready():
            loader: Any = GlobalHydra.instance().config_loader()
            merged = loader.compute_defaults_list(CONFIG, opened(overrides), RunMode.RUN).defaults
            for default in merged:
                if default.config_path is None or default.config_path.startswith("hydra/"):
                    continue
                loaded = loader.repository.load_config(default.config_path)
                if loaded is not None:
                    package = default.package or ""
                    content = OmegaConf.to_container(loaded.config, resolve=False)
                    prefix = "" if package in ("", "_global_") else f"{package}."
                    keys = leaves_of(cast(dict[str, Any], content), prefix)
                    found |= dict.fromkeys(keys, f"conf/{default.config_path.removesuffix('.yaml')}.yaml")
    return found


def _job(found: Composition, overrides: Sequence[str]) -> Job:
    config = found.container(resolve=True)
    budget = config.get("budget")
    if isinstance(budget, dict):
        budget |= {key: _whole(budget[key]) for key in ("limit", "points") if key in budget}
    return Job(config, found.choices, tuple(overrides), found.sweep)


def _whole(value: Any) -> Any:
    """Bytes as a person may write them, 4e6, as whole numbers; all else as it is.

    >>> _whole(4e6), _whole([1e5, 20]), _whole(0.5)
    (4000000, [100000, 20], 0.5)
    """
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def application(arguments: Sequence[str], task: Callable[[Job], Any]) -> None:
    """Run Hydra's own command line: ``--cfg``, ``--multirun``, ``--info``, shell completion and the overrides.

    Args:
        arguments: As given to the command.
        task: Called with each job, not checked yet; in a multirun perhaps in another process.
    """
    options, overrides = split_hydra_options(arguments)
    job = None if options else _plain_job(overrides)
    if job is not None:
        task(job)
    else:
        _by_hydras_own(options, overrides, task)


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


def _plain_job(overrides: Sequence[str]) -> Job | None:
    """The job, where there is one that can be composed without Hydra's command line, which does so twice."""
    from omegaconf.errors import OmegaConfBaseException

    with one_line_errors(overrides, raw_config):
        _offer_plugins(overrides)
        found = alone(overrides)
        try:
            return None if found is None else _before_recipe(_job(found, opened(overrides)))
        except OmegaConfBaseException:  # told as Hydra's own command line tells it
            return None


def _by_hydras_own(options: Sequence[str], overrides: list[str], task: Callable[[Job], Any]) -> None:
    """Compose by Hydra's command line, with whatever it does around a job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf.errors import OmegaConfBaseException

    here, refused = os.getpid(), list[Exception]()

    def called(cfg: Any) -> Any:
        try:
            hydra_part = HydraConfig.get()
            job = _before_recipe(_job(Composition.of(cfg, hydra_part), list(hydra_part.overrides.task)))
        except (OmegaConfBaseException, ConfigError) as error:
            if os.getpid() != here:  # the launcher must be told
                raise
            refused.append(error)  # raised below: here Hydra would print a line of its own
            return None
        return task(job)

    _check_options(options)
    program = sys.argv
    with one_line_errors(overrides, raw_config):
        _offer_plugins(overrides)
        if {"--cfg", "-c"} & {item.partition("=")[0] for item in options}:  # shows what would run
            overrides += _more_overrides(_job(composition(overrides), overrides))
        app = hydra.main(config_path=str(conf_dir()), config_name=CONFIG, **version_base())(called)
        sys.argv = ["cil", *options, *opened(overrides)]
        try:
            with in_environment(HYDRA_FULL_ERROR="1"):  # its errors come here, to be told in one line
                app()
        finally:
            sys.argv = program
        if refused:
            raise refused[0]


def _check_options(options: Sequence[str]) -> None:
    """Refuse values of options that Hydra answers with its whole usage."""
    text = " ".join(options) + " "
    shown = re.search(r"(?:^| )(?:--cfg|-c)[= ](\S*)", text)
    if shown is not None and shown[1] not in ("job", "hydra", "all"):
        raise ConfigError(f"--cfg is '{shown[1]}'; it must be job, hydra or all")
    if "--resolve" in options and shown is None:
        raise ConfigError("--resolve goes with --cfg, as in cil run --cfg job --resolve")


def split_hydra_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into Hydra's options with their values, and the overrides: Hydra wants the options first.

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
            known = ("--dry-run", "--config-dir", *(name for name in OPTIONS if name[1] == "-"))
            raise ConfigError(f"no option '{item}'; {nearest(item, known)}")
        if item in ("--info", "-i"):
            item = f"--info={given.pop(0) if given and given[0] in INFOS else 'all'}"
        options.append(item)
        if item in WITH_VALUE and given:
            options.append(given.pop(0))
    return options, overrides


# what plugins add ---------------------------------------------------------------------------------------------------


def _offer_plugins(overrides: Sequence[str]) -> None:
    """Add the ``conf/`` folders of plugins to the search path, and strategies that have no file."""
    refuse_choices(overrides)
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
    for group in METHODS:
        for name in _named(overrides, group):
            target = _class_without_file(name, group)
            if target is not None:
                ConfigStore.instance().store(group=group, name=name, node=_node_of(target, group))


def _named(overrides: Sequence[str], group: str) -> Iterator[str]:
    """Values that a group is given, those of a sweep one by one."""
    for item in overrides:
        key, _, value = item.partition("=")
        if key in (group, f"+{group}"):
            yield from (name.strip(" '\"").replace("\\", "") for name in value.split(","))


def _class_without_file(name: str, group: str) -> str | None:
    if CLASS.fullmatch(name):
        import_from_here()
        return name
    known = group_choices(group)
    if name in known and known[name].origin == "built in":
        warn_if_shadowed(entry_group(group), name)
    return None if name in known else plugin_target(group, name)


def own_class(name: str | None, key: str) -> Any:
    """The class that ``module:Class`` names on a command line; None for no name."""
    if name is None:
        return None
    if not CLASS.fullmatch(name):
        raise ConfigError(f"{key} is {name}; it must be module:Class, as in {key}=my_idea:MyStrategy")
    import_from_here()
    return resolve(name, key)


def import_from_here() -> None:
    """Let modules in the working directory be imported: an own idea in the folder one stands in."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _node_of(target: str, group: str) -> dict[str, Any]:
    """A configuration made of a class: its hyperparameters with their defaults."""
    import inspect

    kind = resolve(target, group)
    if not isinstance(kind, type):
        raise ConfigError(f"{group}={target} is no class but a {type(kind).__name__}; name the class itself")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and (parameter.default is None or isinstance(parameter.default, bool | int | float | str | list | dict))
    }
    check_arguments(kind, defaults, group)
    return {TARGET: target.replace(":", "."), PARTIAL: True, **defaults}
