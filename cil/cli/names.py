"""Names that can be asked for: read off files and entry points, so that neither torch nor Hydra is imported."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from cil.errors import ConfigError
from cil.plugins import BUILT_IN, owner_of, points
from cil.values import home_path

OWN = "CIL_CONFIG_DIR"  # the environment's name for --config-dir, which processes of a command share
PACKAGE = Path(__file__).parent.parent
KINDS = (
    *("strategies", "adapters", "streams", "datasets", "models", "selections", "codecs", "loggers", "budgets"),
    *("metrics", "kinds", "experiments", "scales", "recipes", "optimizers", "schedulers"),
)
GROUPS = {  # folders of conf/
    "strategies": "strategy",
    "adapters": "adapter",
    "streams": "stream",
    "models": "model",
    "loggers": "logger",
    "budgets": "budget",
    "experiments": "experiment",
    "scales": "scale",
    "recipes": "recipe",
    "optimizers": "optimizer",
    "schedulers": "scheduler",
}
SOURCES = {  # kind: room, decorator that registers a name, tables of further names
    "datasets": ("data", "register_dataset", ("_MNIST_LIKE", "BENCHMARKS")),
    "selections": ("memory", "register_selection", ()),
    "codecs": ("memory", "register_codec", ("_CODECS",)),
}
METHODS = ("strategy", "adapter")  # groups that name what learns: the default one, and those that are chosen beside it
IN_OTHER_WORDS = ("cases", "variants", "split", "point")  # keys that set other keys: those make the run
NOT_THE_RUN = ("run_dir", "data_root", "logger", "progress", "reuse", "tune")  # another place or look: the same run
ENTRY_POINTS = tuple(f"cil.{kind}" for kind in KINDS)


@dataclass(frozen=True)
class Known:
    """Something that can be named: where it is from, and its own first words."""

    name: str
    origin: str
    about: str = ""


def conf_dir() -> Path:
    """The folder of the configuration: in the package where it was installed, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def plugin_points() -> tuple[EntryPoint, ...]:
    """Entry points of other packages, in all groups of the framework."""
    return tuple(point for group in ENTRY_POINTS for point in points(group))


def own_conf_dirs() -> dict[Path, str]:
    """Folders of ``--config-dir``, or of the environment's CIL_CONFIG_DIR, and how they were named."""
    given = filter(None, os.environ.get(OWN, "").split(os.pathsep))
    return {home_path(folder).absolute(): folder for folder in given}


def check_own_conf_dirs() -> None:
    """Refuse folders of the user's own that are missing, have no group, or a file with the name of a built-in one."""
    groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
    for folder, given in own_conf_dirs().items():
        if not any((folder / group).is_dir() for group in groups):
            what = "has no folder of a group" if folder.is_dir() else "is no folder"
            raise ConfigError(f"--config-dir {given} {what}; files go into {', '.join(groups)}")
        for path in sorted(path for group in groups for path in (folder / group).rglob("*.yaml")):
            if (conf_dir() / path.relative_to(folder)).exists():
                raise ConfigError(f"{path} has the name of a file that is built in; give it another name")
            _check_own_file(path)


def _check_own_file(path: Path) -> None:
    """Refuse a file of the user's own that is no text with keys, or whose keys would end up below its group's name."""
    import yaml

    loader: Any = type("Loader", (yaml.SafeLoader,), {})  # as Hydra reads: a key that is there twice is refused
    loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_of_unlike_keys)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, loader)
    except RecursionError:
        raise ConfigError(f"{path} cannot be read as YAML: it is nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if text.startswith("\ufeff"):
        raise ConfigError(f"{path} begins with a byte order mark, which hides its first line; save it as UTF-8 without")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has no keys; write some, as in 'seed: 1'")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise ConfigError(f"{path} has the key {odd[0]!r}, which is no text")
    if not isinstance(content.get("defaults", []), list):
        raise ConfigError(f"{path}: defaults is {content['defaults']!r}; it must be a list of files, as in [_self_]")
    if path.parent.name == "experiment" and "@package _global_" not in text:
        raise ConfigError(f"{path} needs the line '# @package _global_' at its beginning, as files of experiment/ do")


def _mapping_of_unlike_keys(loader: Any, node: Any) -> dict[Any, Any]:
    import yaml

    loader.flatten_mapping(node)
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"the key '{doubled}' is there twice")
    return dict(loader.construct_pairs(node, deep=True))


def plugin_conf_dirs() -> dict[Path, str]:
    """Own folders, and ``conf/`` folders beside the modules of entry points, and whose they are.

    Nothing of a plugin is imported.
    """
    found = own_conf_dirs()
    for point in plugin_points():
        top, *inner = point.module.split(".")
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):  # not installed as it should be: said where it is asked for
            continue
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            folders = [Path(place).joinpath(*inner[:depth]) for depth in range(len(inner) + 1)]
            for folder in folders:
                if (folder / "conf").is_dir():
                    found.setdefault(folder / "conf", owner_of(point))
    return found


def choices(group: str) -> dict[str, Known]:
    """The files of a configuration group, those of plugins too."""
    found: dict[str, Known] = {}
    for path, origin in _files(group):
        found.setdefault(path.stem, Known(path.stem, origin, _first_comment(path)))
    return found


def choices_with(group: str, key: str) -> list[str]:
    """The files of a configuration group that have this key themselves."""
    has = re.compile(rf"^{re.escape(key)}\s*:", re.MULTILINE)
    return list(dict.fromkeys(path.stem for path, _ in _files(group) if has.search(path.read_text(encoding="utf-8"))))


def _files(group: str) -> Iterator[tuple[Path, str]]:
    """The files of a group, each with whose it is."""
    for folder, origin in ({conf_dir(): "built in"} | plugin_conf_dirs()).items():
        for path in sorted((folder / group).glob("[!_]*.yaml")):  # _name.yaml holds what others share
            yield path, origin


def file_of(group: str, name: str) -> Path | None:
    """The file of that name in a configuration group, one that others share too; None where there is none."""
    paths = (folder / group / f"{name}.yaml" for folder in (conf_dir(), *plugin_conf_dirs()))
    return next((path for path in paths if path.is_file()), None)


def known(kind: str) -> dict[str, Known]:
    """All names of a kind, in order of the alphabet."""
    found = choices(GROUPS[kind]) if kind in GROUPS else {}
    if kind in SOURCES:
        found = {item.name: item for item in _in_source(*SOURCES[kind])}
    found = {name: Known(name, "built in") for name in BUILT_IN.get(f"cil.{kind}", {})} | found
    for point in plugin_points():
        if point.group == f"cil.{kind}":
            found.setdefault(point.name, Known(point.name, owner_of(point)))
    return dict(sorted(found.items()))


def target_of(group: str, name: str) -> str | None:
    """The class that a file of a configuration group names as its target, or an entry point; None where none does."""
    for path, _ in _files(group):
        found = re.search(r"^_target_:\s*(\S+)", path.read_text(encoding="utf-8"), re.M) if path.stem == name else None
        if found is not None:
            return found[1]
    return plugin_target(group, name)


def plugin_target(group: str, name: str) -> str | None:
    """The class that an entry point names, ``module:Class``; None where none does."""
    return next((p.value for p in points(entry_group(group)) if p.name == name), None)


def entry_group(group: str) -> str:
    """The group of entry points that goes with a folder of the configuration."""
    return f"cil.{next(kind for kind, folder in GROUPS.items() if folder == group)}"


def _first_comment(path: Path) -> str:
    """The first line of the comment that a file begins with, but for the command that runs it."""
    comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    words = (line.removeprefix("# ") for line in comment if "@package" not in line)
    return next((line for line in words if not line.startswith(("Run:", " "))), "")


def _in_source(room: str, decorator: str, tables: tuple[str, ...]) -> Iterator[Known]:
    """Names that the modules of a room register by decorator, or have in tables: read, not imported."""
    for path in sorted((PACKAGE / room).glob("*.py")):
        abouts: dict[str, str] = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                about = abouts[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
                calls = [call for call in node.decorator_list if isinstance(call, ast.Call) and call.args]
                for call in calls:
                    if isinstance(call.func, ast.Name) and call.func.id == decorator:
                        yield Known(ast.literal_eval(call.args[0]), "built in", about)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in tables:
                assert isinstance(node.value, ast.Dict)
                for key, value in zip(node.value.keys, node.value.values, strict=True):
                    about = abouts.get(value.id, "") if isinstance(value, ast.Name) else ""
                    if isinstance(value, ast.Call) and value.args and isinstance(value.args[0], ast.Constant):
                        about = str(value.args[0].value)
                    yield from [Known(ast.literal_eval(key), "built in", about)] if key is not None else []


def key_of(override: str) -> str:
    """The key of an override.

    >>> key_of("+strategy.codec=raw"), key_of("~adapter")
    ('strategy.codec', 'adapter')
    """
    return override.lstrip("+~").partition("=")[0]
