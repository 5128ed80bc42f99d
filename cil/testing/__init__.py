"""What a plugin author runs: contract checks for strategies, adapters and streams, and toy streams to try things on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cil.adapt import Adapter
from cil.engine.process import in_child
from cil.errors import CilError, ContractError
from cil.strategies import Strategy
from cil.streams import Stream
from cil.streams.shifts import ShiftStream
from cil.testing.adapters import ADAPTER_CHECKS, AdapterCheck, AdapterSubject
from cil.testing.checks import ALL, Check, Subject
from cil.testing.shifts import toy_adaptation, toy_shifts
from cil.testing.streams import check_stream
from cil.testing.toy import toy_run, toy_stream, toy_tasks, uneven_stream

__all__ = [
    "ADAPTER_CHECKS",
    "ALL",
    "AdapterSubject",
    "Check",
    "Outcome",
    "Subject",
    "check_adapter",
    "check_strategy",
    "check_stream",
    "outcomes",
    "toy_adaptation",
    "toy_run",
    "toy_shifts",
    "toy_stream",
    "toy_tasks",
    "uneven_stream",
]


@dataclass(frozen=True)
class Outcome:
    """What one check said; ``error`` is None where the rule holds."""

    name: str
    rule: str
    error: str | None


def outcomes(subject: Any, checks: Sequence[Callable[[Any], None]] = ALL) -> Iterator[Outcome]:
    """Run the checks one after the other, all of them, each in a process of its own: globals start clean."""
    torch.set_num_threads(1)  # the checks fork
    for check in checks:
        try:
            in_child(partial(check, subject))
            error = None
        except CilError as broken:
            error = str(broken)
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}"
        yield Outcome(check.__name__, (check.__doc__ or "").strip().splitlines()[0], error)


def check_strategy(
    strategy: str | type[Strategy],
    *,
    stream: Stream | None = None,
    checks: Sequence[Check] = ALL,
    **hyperparameters: Any,
) -> None:
    """Demand that a strategy keeps the contract (design, sections 3 to 5): a minute on one core.

    Args:
        strategy: Name or class.
        stream: Met in most checks; a toy stream by default.
        checks: Some of ``ALL``.
        hyperparameters: Of the strategy.

    Raises:
        ContractError: naming every rule that is broken, and how.
    """
    subject = Subject(strategy, hyperparameters) if stream is None else Subject(strategy, hyperparameters, stream)
    broken = [f"{outcome.name}: {outcome.error}" for outcome in outcomes(subject, checks) if outcome.error]
    if broken:
        name = strategy if isinstance(strategy, str) else strategy.__name__
        raise ContractError(f"{name} breaks {len(broken)} rule(s) of the contract: {'; '.join(broken)}")


def check_adapter(
    adapter: str | type[Adapter],
    *,
    stream: ShiftStream | None = None,
    checks: Sequence[AdapterCheck] = ADAPTER_CHECKS,
    **hyperparameters: Any,
) -> None:
    """Demand that an adapter keeps the contract: half a minute on one core.

    Args:
        adapter: Name or class.
        stream: Met in most checks; a toy stream by default.
        checks: Some of ``ADAPTER_CHECKS``.
        hyperparameters: Of the adapter.

    Raises:
        ContractError: naming every rule that is broken, and how.
    """
    subject = AdapterSubject(adapter, hyperparameters)
    subject = subject if stream is None else AdapterSubject(adapter, hyperparameters, stream)
    broken = [f"{outcome.name}: {outcome.error}" for outcome in outcomes(subject, checks) if outcome.error]
    if broken:
        name = adapter if isinstance(adapter, str) else adapter.__name__
        raise ContractError(f"{name} breaks {len(broken)} rule(s) of the contract: {'; '.join(broken)}")
