"""The checks themselves: every rule of a learner's kind, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from cil import adapt, plugins, strategies
from cil.adapt import Adapter
from cil.contract import Holder
from cil.engine.process import in_child
from cil.errors import CilError, ConfigError, ContractError
from cil.strategies import Strategy
from cil.streams import Stream
from cil.streams.shifts import ShiftStream
from cil.testing.subject import Subject

Rule = Callable[[Any], None]  # of a subject of the kind that has the rule


class CheckedKind(Protocol):
    """What the checks ask of a kind of run.

    Attributes:
        learner: Key of the configuration that names the learner: ``strategy`` or ``adapter``.
    """

    learner: str

    def runs(self, learner: type) -> bool:
        """True for the learners whose rules these are."""

    def rules(self) -> tuple[Rule, ...]:
        """All rules, in the order in which they are checked."""

    def subject(self, target: Any, hyperparameters: Mapping[str, Any], stream: Any = None) -> Subject[Any]:
        """A learner under test, by default on the toy stream of the kind."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: Of the rule.
        rule: One line that says what it demands.
        error: How it is broken; None where it holds.
    """

    name: str
    rule: str
    error: str | None


def kind_of(learner: type) -> CheckedKind:
    """The kind of run that runs such learners.

    Raises:
        ConfigError: if there is none.
    """
    kinds: Iterator[CheckedKind] = (plugins.find("cil.kinds", name) for name in plugins.names("cil.kinds"))
    for kind in kinds:
        if kind.runs(learner):
            return kind
    raise ConfigError(f"{learner.__name__} is a learner of no kind of run; a strategy subclasses cil.Strategy")


def outcomes(subject: Subject[Any], rules: Sequence[Rule] | None = None) -> Iterator[CheckResult]:
    """Check rules, by default all of the kind, each in a process of its own, so that globals start clean."""
    torch.set_num_threads(1)  # the checks fork
    for rule in kind_of(subject.target).rules() if rules is None else rules:
        try:
            in_child(partial(rule, subject))
            error = None
        except CilError as broken:
            error = str(broken)
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}"
        yield CheckResult(rule.__name__, (rule.__doc__ or "").strip().splitlines()[0], error)


def check_strategy(
    strategy: str | type[Strategy],
    *,
    stream: Stream | None = None,
    rules: Sequence[Rule] | None = None,
    **hyperparameters: Any,
) -> None:
    """Demand that a strategy keeps the contract: a quarter of a minute on one core.

    Args:
        strategy: Name or class.
        stream: Met in most checks; a toy stream by default.
        rules: Some of those of the kind; by default all.
        hyperparameters: Of the strategy.

    Raises:
        ContractError: naming every rule that is broken, and how.
    """
    found = strategies.find(strategy) if isinstance(strategy, str) else strategy
    _check(strategy, found, stream, rules, hyperparameters)


def check_adapter(
    adapter: str | type[Adapter],
    *,
    stream: ShiftStream | None = None,
    rules: Sequence[Rule] | None = None,
    **hyperparameters: Any,
) -> None:
    """Demand that an adapter keeps the contract; as ``check_strategy``."""
    found = adapt.find(adapter) if isinstance(adapter, str) else adapter
    _check(adapter, found, stream, rules, hyperparameters)


def _check(
    learner: str | type[Holder],
    found: type[Holder],
    stream: Any,
    rules: Sequence[Rule] | None,
    given: Mapping[str, Any],
) -> None:
    subject = kind_of(found).subject(found, given, stream)
    broken = [f"{result.name}: {result.error}" for result in outcomes(subject, rules) if result.error]
    if broken:
        name = learner if isinstance(learner, str) else learner.__name__
        raise ContractError(f"{name} breaks {len(broken)} rule(s) of the contract: {'; '.join(broken)}")
