"""Counts while an adapter meets a segment of the stream: answers, seconds, FLOPs, bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cil.adapt import Adapter
from cil.engine.cost import held_tensors
from cil.engine.step_kinds import StepKinds, StepWatch
from cil.memory import Entry, Flops, SavedBytes, tensor_bytes


@dataclass
class SegmentCounts:
    """Predictions batch by batch, and what batches cost.

    Attributes:
        wrong, count: Wrong answers and images, batch by batch.
        seconds: Seconds of each batch that was not measured (measuring takes time).
        kinds: Batches by kind, with what those that were counted cost: of this segment and all before.
        before: FLOPs of earlier segments.
        extra: FLOPs that were counted as they were.
        activations, gradients: Most bytes kept for backward at a time, and bytes of the gradients.
    """

    wrong: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    kinds: StepKinds = field(default_factory=StepKinds)
    before: int = 0
    extra: int = 0
    activations: int = 0
    gradients: int = 0

    def __post_init__(self) -> None:
        self._predicted: list[Tensor] = []

    @classmethod
    def of(cls, saved: Mapping[str, Any], predicted: Tensor) -> SegmentCounts:
        made = cls(**{**saved, "kinds": StepKinds.of(saved["kinds"])})
        made._predicted = [predicted]
        return made

    @classmethod
    def after(cls, metered: Mapping[str, Any] | None) -> SegmentCounts:
        """Of a segment, given what ``metered`` said at the end of the one before it, if there is one."""
        if metered is None:
            return cls()
        kinds = StepKinds.of(metered["kinds"])
        return cls(**{**metered, "kinds": kinds, "before": kinds.flops})

    def metered(self) -> dict[str, Any]:
        """What the next segment begins with, as JSON."""
        return {"kinds": asdict(self.kinds), "activations": self.activations, "gradients": self.gradients}

    @property
    def flops(self) -> int:
        return self.kinds.flops - self.before + self.extra

    def saved(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, predicted: Tensor, truth: Tensor, seconds: float | None) -> None:
        self.wrong.append(int((predicted != truth).sum()))
        self.count.append(len(predicted))
        self._predicted.append(predicted.cpu())
        if seconds is not None:
            self.seconds.append(seconds)

    def predictions(self) -> Tensor:
        return torch.cat(self._predicted)

    def error(self, batches: int) -> float:
        return 100 * sum(self.wrong[-batches:]) / sum(self.count[-batches:])

    @contextmanager
    def hook(self) -> Iterator[None]:
        """Around what is asked of the adapter between batches."""
        flops = Flops()
        with flops.counting():
            yield
        self.extra += flops.count

    @contextmanager
    def looking(self, watch: StepWatch) -> Iterator[None]:
        """Inside, ``watch`` is open; what the adapter does when it is asked what is to be watched is billed."""
        with ExitStack() as stack:
            with self.hook():
                stack.enter_context(watch)
            watch.take(0)  # was billed just now
            yield

    @contextmanager
    def metering(self, adapter: Adapter, watch: StepWatch, images: int, drawn: bool) -> Iterator[bool]:
        """Around a batch; gives whether it is counted (``drawn``, or due), which takes time and changes no bit."""
        size, before = str(images), adapter.context.flops.count
        if drawn or self.kinds.due(size):
            flops = Flops()
            with self.hook():
                trained = adapter.trainable()
            watch.take(0)
            with self._counting(adapter, trained, flops):
                yield True
            count = flops.count
        else:
            yield False
            count = None
        extra = max(0, adapter.context.flops.count - before)
        self.extra += extra
        self.kinds.add(size, watch.take(images), None if count is None else count - extra, drawn)

    @contextmanager
    def _counting(self, adapter: Adapter, trained: Iterable[Tensor], flops: Flops) -> Iterator[None]:
        """Count operations, bytes kept for backward and gradients of what runs inside."""
        sizes = dict[int, int]()
        with ExitStack() as hooks:
            for number, parameter in enumerate(trained):
                hooks.enter_context(parameter.register_hook(partial(_note, sizes, number)))
            with flops.counting(), SavedBytes(held_tensors(adapter)) as saved:
                yield
        self.activations = max(self.activations, saved.peak)
        self.gradients = max(self.gradients, sum(sizes.values()))

    def entries(self) -> list[Entry]:
        """Lines of the ledger for what an update needs besides what is held."""
        sizes = {"gradients": self.gradients, "activations": self.activations}
        held = {kind: size for kind, size in sizes.items() if size}
        return [Entry(f"update.{kind}", kind, "training", "tensor", size, 0, "mixed") for kind, size in held.items()]


def _note(sizes: dict[int, int], number: int, gradient: Tensor) -> None:
    sizes[number] = tensor_bytes(gradient)
