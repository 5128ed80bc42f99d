"""Kinds of steps: what each kind costs, of samples, and how many there were.

Counting the operations of a step slows it down, so not every step is counted. Steps are told apart by what can be seen
for nothing: the sizes of their batch, which networks were called with how many images, how often gradients came back,
the names of the loss's terms, and how often an optimizer that is not the engine's made a step. Steps of one kind that
cost the same are billed exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Self

import torch
from torch import Tensor, nn

from cil.contract import Holder
from cil.memory import Flops, OptimizerSteps

FIRST = 2  # counted steps of each size: what the first one puts into a memory is replayed from the second on
PATIENCE = 64  # steps that are counted in search of a kind that was seen and not counted
MOST, OFTEN = 128, 1 / 64  # counted steps, and a share of all, from which on nothing is sought
SPARSE, LEAST = 1 / 256, 2  # of all steps, a share that is counted whatever they look like, and at least so many


@dataclass
class StepKind:
    """Steps that look alike from outside.

    Attributes:
        counted, flops: Steps that were counted, and their operations.
        drawn, drawn_flops: Those of them that were drawn at random.
        weight: Images that were looked at, by which a kind that was never counted is judged.
        sought: Steps that were counted in search of this kind.
    """

    steps: int = 0
    counted: int = 0
    flops: int = 0
    drawn: int = 0
    drawn_flops: int = 0
    weight: int = 0
    sought: int = 0

    def total(self, rate: float) -> int:
        """Operations of all its steps: those counted as they were, the others as the mean of samples.

        Args:
            rate: Operations for a unit of weight, of other kinds.
        """
        left = self.steps - self.counted
        if self.drawn:  # the first steps may be unlike the others
            return self.flops + round(left * self.drawn_flops / self.drawn)
        return self.flops + round(left * (self.flops / self.counted if self.counted else rate * self.weight))


@dataclass
class StepKinds:
    """The steps of a phase by kind.

    Attributes:
        kinds: By digest of what was seen of a step.
        sizes: Counted steps, by what is known of a step before it.
    """

    kinds: dict[str, StepKind] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    last: str = ""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """From what ``dataclasses.asdict`` made of it."""
        kinds = {key: StepKind(**kind) for key, kind in saved["kinds"].items()}
        return cls(kinds, dict(saved["sizes"]), saved["last"])

    def due(self, size: str) -> bool:
        """Asked once before a step that was not drawn: True if it is to be counted.

        It is where its size is new, the last step was of a new kind, or a kind is sought.
        """
        if self.sizes.get(size, 0) < FIRST:
            return True
        new = self.last in self.kinds and self.kinds[self.last].steps == 1
        sought = [kind for kind in self.kinds.values() if not kind.counted and kind.sought < PATIENCE]
        if not new and not sought:  # nearly always
            return False
        counted, steps = (sum(getattr(kind, name) for kind in self.kinds.values()) for name in ("counted", "steps"))
        if counted > MOST + steps * OFTEN:
            return False
        for kind in () if new else sought:
            kind.sought += 1
        return True

    def add(self, size: str, seen: Seen, flops: int | None, drawn: bool) -> None:
        self.last = _digest(size, seen.calls, seen.updates)
        kind = self.kinds.setdefault(self.last, StepKind(weight=seen.images))
        kind.steps += 1
        if flops is None:
            return
        self.sizes[size] = self.sizes.get(size, 0) + 1
        kind.counted += 1
        kind.flops += flops
        if drawn:
            kind.drawn += 1
            kind.drawn_flops += flops

    @property
    def flops(self) -> int:
        known = [kind for kind in self.kinds.values() if kind.counted]
        weight = sum(kind.weight * kind.counted for kind in known)
        rate = sum(kind.flops for kind in known) / weight if weight else 0.0
        return sum(kind.total(rate) for kind in self.kinds.values())


@dataclass(frozen=True)
class Seen:
    """What is seen of a step for nothing.

    Attributes:
        calls: Name of a network or a part, shape of its input, whether gradients were on; gradients that came back, and
            terms of the loss.
        updates: Steps of optimizers that are not the engine's.
        images: Of the batch and of all calls; those with gradients, which go back too, count three times.
    """

    calls: tuple[tuple[str, tuple[int, ...], bool], ...]
    updates: int
    images: int


@lru_cache(maxsize=64)  # most steps are like those just before
def _digest(size: str, calls: tuple[tuple[str, tuple[int, ...], bool], ...], updates: int) -> str:
    return blake2b(repr((size, calls, updates)).encode(), digest_size=8).hexdigest()


class StepWatch:
    """Looks at the steps of a learner while its context is open: calls of its networks, steps of optimizers.

    Not seen: calls while ``ignored`` counts, as it bills them itself; what does not call a module that is kept.

    Args:
        learner: The modules that it keeps, their parts down to the second level, and the gradients of the first and the
            last parameter that it trains are watched.
    """

    def __init__(self, learner: Holder) -> None:
        self._learner = learner
        self._modules = dict(_watched(learner))
        self._ignored: Flops = learner.context.flops
        self._calls: list[tuple[str, tuple[int, ...], bool]] = []
        self._steps = OptimizerSteps()
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_pre_hook(self._called(name)) for name, module in self._modules.items()]
        trained = [parameter for parameter in self._learner.trainable() if parameter.requires_grad]
        self._hooks += [parameter.register_hook(self._graded) for parameter in (*trained[:1], *trained[1:][-1:])]
        self._steps.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._steps.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _called(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A hook that notes calls; copies of a module share it, as functions are not copied."""

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not self._ignored.open:
                shape = tuple(inputs[0].shape) if inputs and isinstance(inputs[0], Tensor) else ()
                self._calls.append((name, shape, torch.is_grad_enabled()))

        return hook

    def _graded(self, gradient: Tensor) -> None:
        if not self._ignored.open:
            self._calls.append(("gradient", (), True))

    def note(self, terms: Iterable[str]) -> None:
        self._calls += [(name, (), True) for name in terms]

    def take(self, images: int, own: int = 0) -> Seen:
        """What was seen since the last time.

        Args:
            images: Of the batch.
            own: Steps of the engine's optimizer.
        """
        calls, updates = tuple(self._calls), max(0, self._steps.count - own)
        self._calls, self._steps.count = [], 0
        return Seen(
            calls, updates, images + sum(shape[0] * (3 if graded else 1) for _, shape, graded in calls if shape)
        )


def _watched(learner: Holder) -> list[tuple[str, nn.Module]]:
    """Kept modules and their parts to the second level; transformers have a path without hooks that is faster."""
    found: list[tuple[str, nn.Module]] = []
    for name, value in learner.held().items():
        if isinstance(value, nn.Module):
            found += [
                (f"{name}.{path}" if path else name, module)
                for path, module in value.named_modules()
                if path.count(".") < 2 and type(module).__module__ != "torch.nn.modules.transformer"
            ]
    return found


def drawn_steps(total: int, generator: torch.Generator) -> Tensor:
    """(total,) bool: the steps that are counted at random, one in each of equal stretches of all steps."""
    count = min(total, max(LEAST, math.ceil(total * SPARSE)))
    bounds = torch.arange(count + 1) * total // max(1, count)
    places = bounds[:-1] + (torch.rand(count, generator=generator) * bounds.diff()).long()
    drawn = torch.zeros(total, dtype=torch.bool)
    drawn[places] = True
    return drawn
