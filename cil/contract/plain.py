"""How most methods begin: plain cross-entropy in the first experience, one piece of code for all of them.

Whoever trains with ``PlainLoss``, and has no hook of its own between steps, does the same work as another that starts
from the same weights on the same images: the engine may do it once (``cil.engine.shared_phases``). Nothing here is a
claim that is believed: what is declared is what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Batch

Method = TypeVar("Method", bound=Callable[..., Any])


class PlainLoss:
    """Mean cross-entropy over all outputs of a network.

    Args:
        net: Images to an output with logits and features.
        term: Name of the loss in logs; ``loss`` for a single number.
        head: On the network's features, in place of its own.
    """

    __slots__ = ("head", "net", "term")

    def __init__(self, net: nn.Module, term: str = "loss", head: nn.Module | None = None) -> None:
        self.net, self.term, self.head = net, term, head

    def __call__(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        output = self.net(batch.images)
        logits = output.logits if self.head is None else self.head(output.features)  # (N, C)
        loss = F.cross_entropy(logits, batch.slots)
        return loss if self.term == "loss" else {self.term: loss}


def plain_at_first(term: str = "loss") -> Callable[[Method], Method]:
    """For ``loss`` of a strategy: in the first experience it is ``PlainLoss`` of ``self.net``, not the method below.

    A subclass that writes ``loss`` anew trains with its own from the start, unless it says the same.

    Args:
        term: Name of the loss in logs.
    """

    def decorate(method: Method) -> Method:
        return cast(Method, _Later(method, lambda learner: PlainLoss(learner.net, term)))

    return decorate


class _Later:
    """Gives a bound method, or in the first experience what ``first`` makes of the learner."""

    def __init__(self, method: Callable[..., Any], first: Callable[[Any], Callable[..., Any]]) -> None:
        self.method, self.first = method, first
        self.__doc__ = method.__doc__

    def __get__(self, learner: Any, kind: type | None = None) -> Any:
        if learner is None:
            return self
        return self.method.__get__(learner, kind) if learner.old_classes else self.first(learner)

    def __call__(self, learner: Any, *given: Any) -> Any:
        """As of a function of the class: ``Replay.loss(self, batch)``."""
        return self.__get__(learner, type(learner))(*given)


class _LaterHook(_Later):
    """Does nothing in the first experience."""


def not_at_first(method: Method) -> Method:
    """For ``adjust_gradients`` and ``after_step`` of a strategy: they are not called in the first experience."""
    return cast(Method, _LaterHook(method, lambda learner: _nothing))


def is_not_at_first(hook: object) -> bool:
    """True for a hook, as it stands in its class, that ``not_at_first`` made."""
    return type(hook) is _LaterHook


def _nothing(*given: Any) -> None:
    """Take anything, do nothing."""
