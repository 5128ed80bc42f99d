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


class Wrapper(Strategy):
    """A method around a host: a mixin on the host's class, so that ``super()`` is the host in every hook.

    ``AANets(make_net, budget, host="lucir")`` is an object of a class with the bases ``AANets`` and ``LUCIR``. A
    wrapper's ``__init__`` takes ``host`` and ``host_options`` and calls ``super().__init__(make_net, budget,
    **self.options(host, host_options))``. A host may be a wrapper too: its own host is among its ``host_options``.
    """

    host: ClassVar[str]  # default
    hosts: ClassVar[str]  # examples, for messages

    def __new__(cls, make_net: NetFactory, budget: Budget, **given: Any) -> Self:
        return super().__new__(cls.on_host(given))

    @classmethod
    def on_host(cls, given: Mapping[str, Any]) -> type[Self]:
        """The class with this wrapper and the host of the given hyperparameters as bases.

        Raises:
            ConfigError: for a host that is not possible.
        """
        name = cls.host if given.get("host") is None else given["host"]
        host = find(name, "strategy.host")
        for reason, holds in cls.refusals(host).items():
            if holds:
                own = getattr(cls, "name", cls.__name__)
                raise ConfigError(f"strategy.host of {own} is '{name}', {reason}; take another, as {cls.hosts}")
        if issubclass(host, Wrapper):
            host = host.on_host(given.get("host_options") or {})
        return cls if issubclass(cls, host) else type(cls.__name__, (cls, host), {})

    @classmethod
    def options(cls, host: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """The host's hyperparameters that differ from its defaults.

        Raises:
            ConfigError: for one that it does not have.
        """
        known = inspect.signature(find(host)).parameters.keys() - {"make_net", "budget"}
        for name in dict(given or {}).keys() - known:
            raise ConfigError(f"unknown key strategy.host_options.{name}; {host} has none; {nearest(name, known)}")
        return dict(given or {})

    @classmethod
    def refusals(cls, host: type[Strategy]) -> dict[str, bool]:
        """Reasons against a host, each with whether it holds."""
        return {
            "which knows how many experiences come": host.uses_horizon,
            "which is no learner of its own": host.bound or issubclass(host, cls),
            "whose exemplars are not floor(M / C) of each class": host.exemplar_plan is not Strategy.exemplar_plan,
        }
