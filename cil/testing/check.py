"""The checks themselves: every rule of a learner's kind, each in a process of its own."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
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
from cil.tracking.validation import RecordedKind, prepare

Rule = Callable[[Any], None]  # of a subject of the kind that has the rule


class CheckedKind(RecordedKind, Protocol):
    """What the checks ask of a kind of run, whose records they read.

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


def kind_of(learner: Any, stream: Any = None) -> CheckedKind:
    """The kind of run whose rules a learner keeps: that of the stream; without one, the first that runs such learners.

    Raises:
        ConfigError: if there is none, or the stream is of a kind that does not run them.
    """
    names = plugins.names("cil.kinds") if stream is None else [stream.kind]
    kinds: Iterable[CheckedKind] = (plugins.find("cil.kinds", name) for name in names)
    for kind in kinds if isinstance(learner, type) else ():
        if kind.runs(learner):
            return kind
    name, kind_words = getattr(learner, "__name__", learner), "no kind of run"
    if stream is not None:
        kind_words = f"another kind of run than that of stream '{stream.name}', {stream.kind}"
    raise ConfigError(
        f"{name} is a learner of {kind_words}; a strategy subclasses cil.Strategy, an adapter cil.Adapter"
    )


def outcomes(subject: Subject[Any], rules: Sequence[Rule] | None = None) -> Iterator[CheckResult]:
    """Check rules, by default all of the stream's kind, each in a process of its own, so that globals start clean."""
    torch.set_num_threads(1)  # the checks fork
    kind = kind_of(subject.target, subject.stream)
    prepare(kind)
    for rule in kind.rules() if rules is None else rules:
        try:
            in_child(partial(_with_place, rule, subject))
            error = None
        except CilError as broken:
            error = str(broken)
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}"
        yield CheckResult(rule.__name__, (rule.__doc__ or "").strip().splitlines()[0], error)


def _with_place(rule: Rule, subject: Subject[Any]) -> None:
    """Check a rule; an error that comes from the learner's own file says at which line."""
    try:
        rule(subject)
    except Exception as error:
        place = _place(error, inspect.getsourcefile(subject.target) or "")
        if not place:
            raise
        kind, said = (type(error), "") if isinstance(error, CilError) else (ContractError, f"{type(error).__name__}: ")
        raise kind(f"{said}{error}{place}") from error


def _place(error: BaseException | None, file: str) -> str:
    """The innermost line of a file that an error, or what it was raised from, went through; empty where it did not."""
    place = ""
    while error is not None:
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == file:
                place = f" ({Path(file).name}:{frame.lineno}, in {frame.name})"
        error = error.__cause__
    return place


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
        stream: Met in most checks, and its kind of run has the rules; a toy stream by default.
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
    subject = kind_of(found, stream).subject(found, given, stream)
    broken = [f"{result.name}: {result.error}" for result in outcomes(subject, rules) if result.error]
    if broken:
        name = learner if isinstance(learner, str) else learner.__name__
        raise ContractError(f"{name} breaks {len(broken)} rule(s) of the contract: {'; '.join(broken)}")
