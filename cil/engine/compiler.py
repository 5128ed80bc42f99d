"""Torch's compiler, imported when it is used: its import takes as long as that of torch.

Optimizers ask for it from the first one on, only to say that it is to leave them alone; process groups, so that it
forgets what it knows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


class Rules(ModuleType):
    """Stands for the compiler's rules of tracing, which are asked to forget where nothing was traced."""

    @staticmethod
    def clear_lru_cache() -> None:
        """Nothing to forget."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(import_module(self.__name__), name)


class PutOff(ModuleType):
    """Stands for the compiler until it is asked for anything but to leave code alone, or to forget it."""

    trace_rules = Rules(f"{NAME}.trace_rules")

    @staticmethod
    def disable(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """The function as it is: nothing compiles it."""
        return function

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        """Nothing to break."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # asked of every module, by whoever looks for source
            raise AttributeError(name)
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return getattr(import_module(NAME), name)


def put_off() -> None:
    """Let the compiler wait, unless it was imported already."""
    sys.modules.setdefault(NAME, PutOff(NAME))
