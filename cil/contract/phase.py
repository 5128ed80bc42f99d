"""Phases of training, progress, and the runtime context that the engine lends a learner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from cil.data import Augment, Batch, Samples
from cil.errors import ContractError
from cil.memory import Flops

Loss = Callable[[Batch], "Tensor | Mapping[str, Tensor]"]
BILLED = ("training", "search", "validation", "consolidation", "evaluation", "total")  # parts of a bill of the engine's


@dataclass(frozen=True)
class Phase:
    """One stretch of training that the engine runs: data, loss, and what differs from the configured recipe.

    Attributes:
        name: For logs and snapshots.
        data: Samples to draw from. A mapping gives several streams; the first one sets the number of steps, and the
            others are reachable by name in the batch (``batch.memory``).
        loss: Batch to a scalar, or to named terms that are summed and logged.
        parameters: Parameters or groups to optimise; all that require a gradient where left out.
        main: True if ``trainer.epochs`` sets its length; a second stage says its own ``epochs``.
        fresh: True if it trains from fresh weights, so that ``trainer.first`` applies; None: in the first
            experience.
        epochs, batch_size: In place of the recipe's; epochs below 1 are a share of the recipe's.
        lr, weight_decay: In place of the optimizer's.
        milestones: In place of the schedule's: the learning rate is divided by ten at these epochs (below 1: shares).
        gamma: At milestones, in place of one tenth.
        schedule: In place of the configured one: ``constant`` or ``cosine``.
        train_mode: Puts modules into training mode at the start of the phase; ``Strategy.train_mode`` if left out.
        steps: Optimizer steps, in place of any number of epochs; they are as many as that takes. The schedule then
            counts steps: cosine goes down with each, milestones from 1 on are steps.
        augment: In place of the stream's, where the data are of several experiences.
    """

    name: str
    data: Samples | Mapping[str, Samples]
    loss: Loss
    parameters: Sequence[Any] | None = None
    main: bool = True
    fresh: bool | None = None
    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    milestones: Sequence[float] | None = None
    gamma: float | None = None
    schedule: Literal["constant", "cosine"] | None = None
    train_mode: Callable[[], None] | None = None
    steps: int | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs > 1 and self.epochs != int(self.epochs):
            raise ContractError(
                f"phase '{self.name}' has {self.epochs} epochs; allowed: a whole number, or a share below 1"
            )

    @property
    def samples(self) -> Samples:
        """The samples that set the number of steps."""
        return self.data if isinstance(self.data, Samples) else next(iter(self.data.values()))


@dataclass
class Progress:
    """Where training stands, for losses that need it."""

    epoch: int = 0
    epochs: int = 1
    step: int = 0
    steps: int = 1

    @property
    def share(self) -> float:
        """Share of the phase that is done, in [0, 1]."""
        return self.step / max(1, self.steps)


@dataclass
class RuntimeContext:
    """Device, keyed generators, backward pass and augmentation, lent to a learner by the engine. Not carried.

    Attributes:
        flops: Counts, by ``with context.flops.counting()``, work inside a step that is not the same at every step, as a
            pass over all images now and then: it is billed once as it is, not as a share of each image.
        parts: Operations outside phases that the bill shall name, by ``with context.part(name)``.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    generator: Callable[[str], torch.Generator] = lambda purpose: torch.Generator().manual_seed(0)
    backward: Callable[[Tensor], None] = lambda loss: loss.backward()
    augment: Augment = field(default_factory=Augment)
    flops: Flops = field(default_factory=Flops)
    parts: dict[str, Flops] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Around work of a hook that is billed under a name of its own.

        Raises:
            ContractError: for the name of a part that the engine bills.
        """
        if name in BILLED:
            raise ContractError(f"context.part('{name}'): the engine bills this part itself; choose another name")
        with self.parts.setdefault(name, Flops()).counting():
            yield
