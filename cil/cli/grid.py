"""Many runs from one command line: sweeps of Hydra's grammar, ``strategy=all``, several budgets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

from cil.cli import environment
from cil.cli.cases import EVERY, points_of
from cil.cli.compose import compose
from cil.cli.job import Job
from cil.cli.names import METHODS, key_of, known, target_of
from cil.cli.refusals import parse_overrides
from cil.errors import ConfigError
from cil.plugins import BUILT_IN

_say = logging.getLogger("cil.cli")
POINTS = {
    "exemplars": "budget.exemplars",
    "per_class": "budget.per_class",
    "bytes": "budget.limit",
    "aligned": "budget.exemplars",
}


@dataclass(frozen=True)
class Cell:
    """One job of a grid, and the keys that set it apart from the others."""

    job: Job
    varied: dict[str, str]

    @property
    def label(self) -> str:
        return ", ".join([self.job.method, *self.settings])

    @property
    def settings(self) -> list[str]:
        """The keys that were varied beside the method, as ``key=value``."""
        return [f"{key}={value}" for key, value in self.varied.items() if key not in METHODS]


def expand(overrides: Sequence[str]) -> list[Cell]:
    """All jobs that the overrides name, each composed.

    ``strategy=all`` is every strategy that suits the stream, ``adapter=all`` every adapter; ``budget.points=[a, b]`` is
    one job for each, and ``point=all`` one for each budget of the experiment; what an experiment sweeps over
    (``hydra.sweeper.params``) holds unless the command line says otherwise, and its
    ``variants`` are further jobs unless the command line names a method.

    Raises:
        ConfigError: for whatever cannot be composed.
    """
    cells, variants = _without_variants(overrides)
    named = [item for item in overrides if key_of(item) in METHODS]
    if named and variants:
        _say.warning("%s leaves out the variants of the experiment: %s", " ".join(named), "; ".join(variants))
        return cells
    for variant in variants:
        keys = dict(item.split("=", 1) for item in variant.split())
        found, _ = _without_variants([*overrides, *variant.split()])
        cells += [replace(cell, varied=keys | cell.varied) for cell in found]
    return cells


def _without_variants(overrides: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """The jobs that the overrides name themselves; and the variants of their experiment."""
    fixed, swept, first = _swept(overrides)
    cells = []
    try:
        for combination in product(*swept.values()):
            varied = {
                key: item.partition("=")[2].replace("\\", "") for key, item in zip(swept, combination, strict=True)
            }
            for cell in _at_every_point(Cell(compose([*fixed, *combination]), varied)):
                cells += _at_points(cell)
    except ConfigError as error:
        raise ConfigError(_shared_by_some([*fixed, *swept], swept) or str(error)) from error
    return cells, first.config["variants"]


def number_of_jobs(overrides: Sequence[str]) -> int:
    """How many jobs a launcher of Hydra's makes of the overrides."""
    return prod(map(len, _swept(overrides)[1].values()))


def _swept(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]], Job]:
    """Fixed overrides, for each key that is swept one override a value, and one of the jobs.

    What an experiment sweeps over is among them, unless the overrides say otherwise.
    """
    task_aware = "strategy=all" in overrides and _tells_task([item for item in overrides if item != "strategy=all"])
    fixed, swept = _split([_all(item, task_aware) for item in overrides])
    # without keys of a method: what an experiment sweeps over may be the methods that have them
    general = [item for item in fixed if not _of_method(item)]
    first = compose([*general, *(values[0] for key, values in swept.items() if not _of_method(key))])
    given = {key_of(item) for item in overrides}
    given |= set(POINTS.values()) if "budget.points" in given else set()
    given |= {"split"} if given & {"stream.base", "stream.increment"} else set()
    for key, value in first.sweep.items():
        if key not in given:
            more, also = _split([_all(f"{key}={value}", _tells_task(general))])
            fixed, swept = [*fixed, *more], swept | also
    return fixed, swept, first


def _of_method(override: str) -> bool:
    group, dot, _ = key_of(override).partition(".")
    return bool(dot) and group in METHODS


def _shared_by_some(overrides: Sequence[str], swept: Mapping[str, Sequence[str]]) -> str | None:
    """A message that names a key which only some of the methods of a grid have, and those; None where there is none."""
    for key in dict.fromkeys(key_of(item) for item in overrides if _of_method(item)):
        group, _, rest = key.partition(".")
        has: dict[bool, list[str]] = {True: [], False: []}
        for choice in swept.get(group, ()):
            section = compose([choice]).config[group]
            has[rest.partition(".")[0] in section].append(choice.partition("=")[2])
        if has[True] and has[False]:
            with_it, without = (", ".join(has[one]) for one in (True, False))
            return (
                f"{key} is a key of {with_it} and not of {without}; leave it out, or choose "
                f"{group}={','.join(has[True])} alone (cil report shows runs of several commands in one table)"
            )
    return None


def _all(override: str, task_aware: bool) -> str:
    """``strategy=all`` and ``adapter=all`` spelled out; of strategies those that are given the task, or the others."""
    if override == "adapter=all":
        return f"adapter={','.join(known('adapters'))}"
    if override != "strategy=all":
        return override
    names = [name for name in known("strategies") if name not in BUILT_IN["cil.strategies"]]
    return f"strategy={','.join(name for name in names if _takes_task(name) == task_aware)}"


def _takes_task(strategy: str) -> bool:
    environment.limit_spinning()
    from cil.targets import resolve

    target = target_of("strategy", strategy)
    return bool(target and getattr(resolve(target, f"strategy={strategy}"), "takes_task", False))


def _tells_task(overrides: Sequence[str]) -> bool:
    """True if the stream that these overrides choose tells the task at test time."""
    fixed, swept = _split(overrides)
    stream = compose([*fixed, *(values[0] for values in swept.values())]).config.get("stream") or {}
    return bool(stream.get("heads") == "per_task")


def _split(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Fixed overrides, and for each key that is swept one override a value."""
    from hydra.errors import HydraException

    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    for override in parse_overrides(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            try:
                swept[key.lstrip("+")] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            except HydraException as error:
                raise ConfigError(f"{override.input_line} is not known here; list the values, as {key}=a,b") from error
        else:
            fixed.append(override.input_line or "")
    return fixed, swept


def _at_every_point(cell: Cell) -> list[Cell]:
    """``point=all`` spelled out: the budgets that the experiment has for this stream."""
    if cell.job.config["point"] != EVERY:
        return [cell]
    kept = [item for item in cell.job.overrides if key_of(item) != "point"]
    return [Cell(compose([*kept, f"point={point}"]), {**cell.varied, "point": point}) for point in points_of(cell.job)]


def _at_points(cell: Cell) -> list[Cell]:
    budget: Mapping[str, Any] = cell.job.config.get("budget") or {}
    points = budget.get("points")
    if not points:
        return [cell]
    key = POINTS.get(budget.get("kind", ""))
    if key is None or not isinstance(points, list):
        raise ConfigError(
            f"budget.points is {points!r} with budget={budget.get('kind')}; give a list, and a budget with a size"
        )
    if key in map(key_of, cell.job.overrides):
        raise ConfigError(f"budget.points gives {key} its values; leave one of them out")
    return [
        Cell(compose([*cell.job.overrides, f"{key}={point}", "budget.points=null"]), {**cell.varied, key: str(point)})
        for point in points
    ]
