"""Command lines apart: options with a value, flags, and what belongs to the configuration."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cil.errors import ConfigError
from cil.values import folder


def split_options(
    arguments: Sequence[str], options: Mapping[str, str], flags: Sequence[str] = ()
) -> tuple[list[str], dict[str, str], set[str]]:
    """Options with a value (``--out FILE`` or ``--out=FILE``) and flags apart from everything else.

    Args:
        options: Names with their defaults.
        flags: Names without a value.

    Returns:
        Everything else; the value of each option; the flags that were given.

    Raises:
        ConfigError: for any other option, and for one that lacks its value.

    >>> split_options(["seed=1", "--out", "a.png", "--json"], {"--out": ""}, ["--json"])
    (['seed=1'], {'--out': 'a.png'}, {'--json'})
    """
    values, rest, given = dict(options), list[str](), list(arguments)
    while given:
        item = given.pop(0)
        name, equals, value = item.partition("=")
        if name in options:
            if not equals and not given:
                raise ConfigError(f"{name} needs a value")
            values[name] = value if equals else given.pop(0)
        elif item.startswith("-") and item not in flags:
            raise ConfigError(f"no option '{item}'; there is {', '.join((*options, *flags))}")
        else:
            rest.append(item)
    return [item for item in rest if item not in flags], values, set(flags) & set(rest)


def split_jobs_and_out(arguments: Sequence[str]) -> tuple[list[str], str, str]:
    """The overrides of the configuration, and ``jobs=`` and ``out=``, each ``auto`` where it is not given.

    Raises:
        ConfigError: for an option of Hydra, an empty value, and a number of jobs that is none.
    """
    values, rest = {"jobs": "auto", "out": "auto"}, []
    for item in arguments:
        key, equals, value = item.partition("=")
        if key in values and equals:
            if not value:
                raise ConfigError(f"{key} is empty; give it a value, or leave it out, which is {key}=auto")
            values[key] = value
        elif item.startswith("-"):
            raise ConfigError(f"no option '{item}' here; write key=value, or use cil run for Hydra's options")
        elif equals and (meant := difflib.get_close_matches(key, values, cutoff=0.8)):
            raise ConfigError(f"unknown key {key}; did you mean '{meant[0]}'?")
        else:
            rest.append(item)
    jobs = values["jobs"]
    if jobs != "auto" and not (jobs.isdigit() and int(jobs) > 0):
        raise ConfigError(f"jobs is '{jobs}'; it must be auto, or a whole number of 1 or more")
    if must := folder(values["out"]):
        raise ConfigError(f"out is {values['out']!r}; {must}")
    for path in (Path(values["out"]), *Path(values["out"]).parents):
        if path.exists() and not path.is_dir():
            what = "is a file" if str(path) == values["out"] else f"lies below {path}, which is a file"
            raise ConfigError(f"out={values['out']} {what}; give the folder that the runs go into")
    return rest, jobs, values["out"]


def whole_number(option: str, given: str, least: int = 1) -> int | None:
    """The whole number that an option was given, ``least`` or more; None where it was given none."""
    if given and not (given.isdigit() and int(given) >= least):
        raise ConfigError(f"{option} is {given}; it must be a whole number of {least} or more")
    return int(given) if given else None


def split_own_class(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Arguments without ``strategy=module:Class``, and this class as it was named; None where none was."""
    own = [item for item in arguments if item.startswith("strategy=")]
    return [item for item in arguments if item not in own], own[-1].partition("=")[2] if own else None


def config_dirs(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Arguments without ``--config-dir DIR``, and these folders of the user's own.

    Raises:
        ConfigError: for the option without a folder.
    """
    rest, folders, given = [], list[str](), list(arguments)
    while given:
        option, equals, value = given.pop(0).partition("=")
        if option not in ("--config-dir", "-cd"):
            rest.append(f"{option}{equals}{value}")
        elif not equals and not given:
            raise ConfigError("--config-dir needs a folder, with files as DIR/experiment/mine.yaml")
        else:
            folders.append(value if equals else given.pop(0))
    return rest, os.pathsep.join(folders)
