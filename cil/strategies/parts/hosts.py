"""Methods around another one, their host, which the configuration names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from cil.errors import ConfigError, nearest
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import Strategy
from cil.strategies.registry import find


class Guest(Strategy):
    """A method around a host: its objects are of a class that is both, so that every hook it does not write is the
    host's. ``super()`` is the host in those that it writes.

    Its ``__init__`` takes ``host`` and ``host_options`` and calls ``super().__init__(make_net, budget,
    **self.options(host, host_options))``. The host of a host is among its ``host_options``.
    """

    host: ClassVar[str]  # by default
    hosts: ClassVar[str]  # some that can be one, for messages

    def __new__(cls, make_net: NetFactory, budget: Budget, **given: Any) -> Self:
        return super().__new__(cls._around(**given))

    @classmethod
    def options(cls, host: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """The host's hyperparameters that differ from its defaults.

        Raises:
            ConfigError: for one that it does not have.
        """
        known = inspect.signature(find(host)).parameters.keys() - {"make_net", "budget"}  # those are the guest's
        for name in dict(given or {}).keys() - known:
            raise ConfigError(f"unknown key strategy.host_options.{name}; {host} has none; {nearest(name, known)}")
        return dict(given or {})

    @classmethod
    def refusals(cls, host: type[Strategy]) -> dict[str, bool]:
        """Why a method cannot be the host, and whether that is so."""
        return {
            "which knows how many experiences come": host.uses_horizon,
            "which is no learner of its own": host.bound or issubclass(host, cls),
            "whose exemplars are not floor(M / C) of each class": host.exemplar_plan is not Strategy.exemplar_plan,
        }

    @classmethod
    def _around(
        cls, host: str | None = None, host_options: Mapping[str, Any] | None = None, **others: Any
    ) -> type[Self]:
        """The class that is both.

        Raises:
            ConfigError: for a host that cannot be one.
        """
        name = cls.host if host is None else host
        kind = find(name, "strategy.host")
        for why, holds in cls.refusals(kind).items():
            if holds:
                named = cls.name  # type: ignore[attr-defined]
                raise ConfigError(f"strategy.host of {named} is '{name}', {why}; take another, as {cls.hosts}")
        if issubclass(kind, Guest):
            kind = kind._around(**(host_options or {}))
        return cls if issubclass(cls, kind) else type(cls.__name__, (cls, kind), {})
