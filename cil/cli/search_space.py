"""The search space of ``cil tune``: ranges of keys, checked, and values drawn from them by Optuna."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError, nearest
from cil.report.grouping import HOW

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

RANGES = ("choices", "uniform", "log", "int", "int_log")
TUNABLE = ("strategy", "model", "optimizer", "scheduler", "trainer", "recipe")  # of the learner, not of what it meets
DIGITS = 4  # significant ones of a drawn number, so that what is printed is what is run


@dataclass(frozen=True)
class Range:
    """The values that one key, dotted, or a group of the configuration may take: the choices, or low and high."""

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna says it; choices by their number, as they may be lists."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choices":
            return CategoricalDistribution(range(len(self.values)))
        (low, high), log = self.values, self.kind.endswith("log")
        return IntDistribution(low, high, log) if self.kind.startswith("int") else FloatDistribution(low, high, log)

    def value(self, drawn: Any) -> Any:
        if self.kind == "choices":
            return self.values[drawn]
        if self.kind.startswith("int"):
            return int(drawn)
        return min(max(float(f"{drawn:.{DIGITS}g}"), self.values[0]), self.values[1])

    def override(self, value: Any) -> str:
        group = "." not in self.key
        return f"{self.key}={value if group else json.dumps(value)}"

    def plain(self) -> dict[str, Any]:
        return {self.kind: list(self.values)}


def read_ranges(space: Any) -> list[Range]:
    """Read ``tune.space``, whose keys are dotted or nested, in order of the key.

    Raises:
        ConfigError: where it is empty, or says something that is no range.
    """
    if not space or not isinstance(space, Mapping):
        raise ConfigError(
            f"tune.space is {space!r}; give what is drawn, as in 'tune.space={{optimizer.lr: {{log: [1e-3, 1.0]}}}}', "
            "or a file of the group, as in tune=lr_and_epochs"
        )
    ranges = sorted(_ranges(space, ""), key=lambda each: each.key)
    for each in ranges:
        if each.key.partition(".")[0] not in TUNABLE or each.key == "strategy" or each.key.startswith(HOW):
            raise ConfigError(
                f"tune.space has {each.key}; it may have keys of {', '.join(TUNABLE)}: what a learner does"
            )
    return ranges


def _ranges(node: Mapping[str, Any], prefix: str) -> Iterator[Range]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, list):
            yield _range(key, "choices", value)
        elif isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in RANGES:
            yield _range(key, *next(iter(value.items())))
        elif (
            isinstance(value, Mapping) and value and all(isinstance(below, Mapping | list) for below in value.values())
        ):
            yield from _ranges(value, f"{key}.")
        else:
            known = nearest(next(iter(value)), RANGES) if isinstance(value, Mapping) and value else ", ".join(RANGES)
            raise ConfigError(f"tune.space.{key} is {value!r}; it must be a list of choices, or have one of: {known}")


def _range(key: str, kind: str, values: Any) -> Range:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"tune.space.{key} is {values!r}; it must be a list with values")
    if kind == "choices":
        return Range(key, kind, tuple(values))
    whole = kind.startswith("int")
    numbers = all(isinstance(v, int if whole else int | float) and not isinstance(v, bool) for v in values)
    numbers = numbers and all(map(math.isfinite, values))
    if len(values) != 2 or not numbers or not values[0] < values[1] or (kind.endswith("log") and values[0] <= 0):
        must = f"{'two whole numbers' if whole else 'two numbers'}, low below high"
        raise ConfigError(f"tune.space.{key} is {kind}: {values}; give {must}{', above 0' * kind.endswith('log')}")
    return Range(key, kind, tuple(values) if whole else tuple(map(float, values)))


def space_hash(ranges: Sequence[Range]) -> str:
    """Twelve digits of what is drawn."""
    text = json.dumps({each.key: each.plain() for each in ranges}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# drawing ------------------------------------------------------------------------------------------------------------


def seed_for(*purpose: Any) -> int:
    """A seed for one purpose, whatever else is drawn: 31 bits.

    >>> seed_for(0, "a") == seed_for(0, "a"), seed_for(0, "a") == seed_for(1, "a")
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=4).digest(), "big") >> 1


class Study:
    """Trials by ask and tell.

    Each draw is keyed by seed, key and number of the trial: the same seed gives the same trials, a further key moves no
    other one, and methods that share a key share its draws. With ``tpe`` a trial depends on the results told before.

    Raises:
        ConfigError: where Optuna is not installed.
    """

    def __init__(self, ranges: Sequence[Range], sampler: str, seed: int) -> None:
        try:
            import optuna
        except ModuleNotFoundError:
            raise ConfigError("cil tune needs Optuna: pip install 'cil[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.ranges, self.sampler, self.seed = ranges, sampler, seed
        self._study = optuna.create_study(direction="maximize", sampler=_sampler(sampler, seed, 0))

    def ask(self) -> dict[str, Any]:
        """The next trial: a value for each key."""
        number = len(self._study.trials)
        self._study.sampler = _sampler(self.sampler, self.seed, number)
        trial = self._study.ask({each.key: each.distribution for each in self.ranges})
        return {each.key: each.value(trial.params[each.key]) for each in self.ranges}

    def tell(self, number: int, score: float | None) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, score, state=TrialState.FAIL if score is None else None)


def _sampler(name: str, seed: int, number: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    if name == "tpe":
        return TPESampler(seed=seed_for(seed, "tpe", number))

    class Keyed(RandomSampler):
        """Uniform, each key and trial by a generator of its own."""

        def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
            own = RandomSampler(seed=seed_for(seed, param_name, trial.number))
            return own.sample_independent(study, trial, param_name, param_distribution)

    return Keyed()
