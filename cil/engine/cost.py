"""The bill of a phase: FLOPs, bytes kept for backward, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cil.contract import Holder
from cil.memory import Entry, Flops, SavedBytes, tensor_bytes

MEASURED = 2  # optimizer steps of a phase: what the first one puts into a memory is replayed from the second on


@dataclass
class Cost:
    """The bill of a phase: the most that its first two steps took, multiplied by the images seen.

    Measuring computes the same bits; after the first two steps it does nothing.
    """

    flops_per_image: float = 0.0
    flops_per_step: int = 0  # of gradients that the learner takes for itself
    activations: int = 0
    images: int = 0
    steps: int = 0  # of the optimizer
    extra: int = 0  # what the learner counted itself, by ``context.flops``
    entries: list[Entry] = field(default_factory=list)
    part: str = "training"  # of the bill: training, search or validation
    trial: dict[str, Any] = field(default_factory=dict)  # settings and error, where it is one of a search
    cut: bool = False  # whether training ended here because the budget left no further step
    loss: float | None = None  # mean of the last epoch

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Cost:
        """From what ``dataclasses.asdict`` made of a cost."""
        return cls(**{**saved, "entries": [Entry(**entry) for entry in saved["entries"]]})

    @classmethod
    def once(cls, flops: int, part: str) -> Cost:
        """Work that was counted as it was."""
        return cls(extra=flops, part=part)

    @property
    def flops(self) -> int:
        """Operations, two for each multiply-add."""
        return round(self.flops_per_image * self.images) + self.flops_per_step * self.steps + self.extra

    @contextmanager
    def batch(self, learner: Holder, images: int) -> Iterator[AbstractContextManager[Any]]:
        """Around forward and backward of a batch; what it gives goes around the forward pass alone."""
        before = learner.context.flops.count
        if self.steps >= MEASURED:
            yield nullcontext()
            self.extra += learner.context.flops.count - before
            return
        flops, saved = Flops(), SavedBytes(held_tensors(learner))
        with flops.counting():
            yield saved
        extra = learner.context.flops.count - before
        self.extra += extra
        self.flops_per_image = max(self.flops_per_image, (flops.count - extra) / images)
        self.activations = max(self.activations, saved.bytes)

    @contextmanager
    def adjusting(self, learner: Holder) -> Iterator[None]:
        """Around ``adjust_gradients``: its operations, and what its graphs save at a time."""
        if self.steps >= MEASURED:
            yield
            return
        flops = Flops()
        with flops.counting(), SavedBytes(held_tensors(learner)) as saved:
            yield
        self.flops_per_step = max(self.flops_per_step, flops.count)
        self.activations = max(self.activations, saved.peak)

    def bill_step(self, phase: str, parameters: Sequence[Tensor]) -> None:
        """Lines for the gradients of a step and what was kept for them."""
        if self.steps < MEASURED:
            self.entries = []
            self._bill(phase, "gradients", [p.grad for p in parameters if p.grad is not None])
            self._add(phase, "activations", self.activations, 0, "mixed")

    def bill_optimizer(self, phase: str, optimizer: Optimizer) -> None:
        """A line for what the optimizer holds; at the end, as a step left out for an overflow makes no state."""
        held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        self._bill(phase, "optimizer", held)

    def bill_copies(self, phase: str, tensors: Sequence[Tensor]) -> None:
        """A line for copies that are held beside the learner while it is trained."""
        self._bill(phase, "temporary", tensors)

    def _bill(self, phase: str, kind: str, tensors: Sequence[Tensor]) -> None:
        self._add(phase, kind, sum(map(tensor_bytes, tensors)), sum(t.numel() for t in tensors), "float32")

    def _add(self, phase: str, kind: str, size: int, numel: int, dtype: str) -> None:
        self.entries.append(Entry(f"{phase}.{kind}", kind, "training", "tensor", size, numel, dtype))


def held_tensors(learner: Holder) -> list[Tensor]:
    """All tensors that a learner holds."""
    return [tensor for value in learner.held().values() for tensor in _tensors(value)]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value.values() if isinstance(v, Tensor)] if isinstance(value, dict) else []
