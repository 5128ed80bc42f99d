"""Many runs from one command line: sweeps of Hydra's grammar, ``strategy=all``, several budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from cil.cli.compose import CODE, Job, compose
from cil.cli.names import key_of, known, takes_task
from cil.cli.refusals import explained
from cil.errors import ConfigError

POINTS = {"exemplars": "budget.exemplars", "bytes": "budget.limit", "aligned": "budget.exemplars"}


@dataclass(frozen=True)
class Cell:
    """One job of a grid, and what sets it apart from the others."""

    job: Job
    varied: dict[str, str]

    @property
    def label(self) -> str:
        """``wa, seed=1``."""
        named = self.job.choices.get("adapter") or self.job.choices["strategy"]
        more = [f"{key}={value}" for key, value in self.varied.items() if key not in ("strategy", "adapter")]
        return ", ".join([named, *more])


def expand(overrides: Sequence[str]) -> list[Cell]:
    """All jobs that the overrides name, each composed.

    ``strategy=all`` is every strategy that suits the stream, ``adapter=all`` every adapter; ``budget.points=[a, b]`` is
    one job for each; what an experiment sweeps over (``hydra.sweeper.params``) holds unless the command line says
    otherwise.

    Raises:
        ConfigError: for whatever cannot be composed.
    """
    told = "strategy=all" in overrides and _told([item for item in overrides if item != "strategy=all"])
    fixed, swept = _split([_all(item, told) for item in overrides])
    general = [item for item in fixed if not _of_code(item)]  # what an experiment sweeps over may be what has such keys
    first = compose([*general, *(values[0] for key, values in swept.items() if not _of_code(key))])
    given = {key_of(item) for item in overrides}
    for key, value in first.sweep.items():
        if key not in given:
            more, also = _split([_all(f"{key}={value}", _told(general))])
            fixed, swept = [*fixed, *more], swept | also
    cells = []
    try:
        for combination in product(*swept.values()):
            varied = {
                key: item.partition("=")[2].replace("\\", "") for key, item in zip(swept, combination, strict=True)
            }
            cells += _at_points(Cell(compose([*fixed, *combination]), varied))
    except ConfigError as error:
        raise ConfigError(_lacking([*fixed, *swept], swept) or str(error)) from error
    return cells


def _of_code(override: str) -> bool:
    """Whether it is a key of a strategy or an adapter."""
    group, dot, _ = key_of(override).partition(".")
    return bool(dot) and group in CODE


def _lacking(overrides: Sequence[str], swept: Mapping[str, Sequence[str]]) -> str | None:
    """Which of the strategies (or adapters) of a grid have a key that not all of them have."""
    for key in dict.fromkeys(key_of(item) for item in overrides if _of_code(item)):
        group, _, rest = key.partition(".")
        has: dict[bool, list[str]] = {True: [], False: []}
        for choice in swept.get(group, ()):
            section = compose([choice]).config[group]
            has[rest.partition(".")[0] in section].append(choice.partition("=")[2])
        if has[True] and has[False]:
            with_it, without = (", ".join(has[one]) for one in (True, False))
            return (
                f"{key} is a key of {with_it} and not of {without}; leave it out, or choose "
                f"{group}={','.join(has[True])} alone"
            )
    return None


def _all(override: str, told: bool) -> str:
    """``strategy=all`` and ``adapter=all`` spelled out; of strategies those that are told the task, or those not."""
    kinds = {"strategy=all": "strategies", "adapter=all": "adapters"}
    if override not in kinds:
        return override
    names = [name for name in known(kinds[override]) if override != "strategy=all" or takes_task(name) == told]
    return f"{override.removesuffix('all')}{','.join(names)}"


def _told(overrides: Sequence[str]) -> bool:
    """Whether the stream that these overrides choose tells the task at test time."""
    fixed, swept = _split(overrides)
    stream = compose([*fixed, *(values[0] for values in swept.values())]).config.get("stream") or {}
    return stream.get("heads") == "per_task"


def _split(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is fixed, and the values of each sweep, as overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    with explained(overrides, lambda _: {}):
        for parsed in OverridesParser.create().parse_overrides(list(overrides)):
            if parsed.is_sweep_override():
                key = parsed.get_key_element()
                swept[key.lstrip("+")] = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
            else:
                fixed.append(parsed.input_line or "")
    return fixed, swept


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
    return [
        Cell(compose([*cell.job.overrides, f"{key}={point}", "budget.points=null"]), {**cell.varied, key: str(point)})
        for point in points
    ]
