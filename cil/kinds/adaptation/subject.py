"""An adapter under test: its runs, and what rules ask of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cil.adapt import Adapter, find
from cil.engine.driver import Run
from cil.engine.keys import generator, reseed
from cil.kinds.adaptation.work import AdaptationWork
from cil.memory import State
from cil.streams.shifts import ShiftStream
from cil.testing.shifts import RECIPE, cut_every, long_shifts, toy_adaptation, toy_shifts
from cil.testing.side_effects import hooks_of
from cil.testing.subject import CheckedRun, Subject


class AdapterRun(CheckedRun[Adapter]):
    """A run of an adapter under test."""

    run: Run

    @property
    def work(self) -> AdaptationWork:
        return cast(AdaptationWork, self.run.work)

    def rebuilt(self, boundary: int, state: State | None = None) -> Adapter:
        return self.work.rebuilt(self.state(boundary) if state is None else state)

    def images(self) -> Tensor:
        return self.work.stream.segments[0].samples().images[: self.work.batch_size]

    @torch.enable_grad()
    def answers(self, learner: Adapter, images: Tensor) -> Tensor:
        return learner.adapt_and_predict(images.clone())


class AdapterSubject(Subject[Adapter]):
    """An adapter under test; the last segment of its stream is one before which it is put back."""

    recipe = RECIPE
    experience, step, place = "segment", "batch", "at boundary {}"
    hooks = hooks_of(Adapter)
    last_hook = "adapt_and_predict"

    find = staticmethod(find)
    toy = staticmethod(toy_shifts)
    long = staticmethod(long_shifts)
    small_batch = 6  # of 168 images: 28 batches

    def run(self, folder: Path, **options: Any) -> AdapterRun:
        given = {"stream": self.stream, "hyperparameters": self.hyperparameters, **self.options, **options}
        return AdapterRun(toy_adaptation(self.target, run_dir=folder, **given))

    def on_large(self) -> AdapterSubject:
        """The same adapter where all images of the long toy stream come in one batch."""
        return self._on("large", self._undivided, batch_size=1000)

    def on_undivided(self) -> AdapterSubject:
        """The same adapter where the long toy stream is one segment of small batches.

        Draws are keyed by the number of the batch in the run, so that they do not depend on where segments begin.
        """
        return self._on("undivided", self._undivided, batch_size=self.small_batch, wrap=_keyed_by_batch)

    def _undivided(self) -> ShiftStream:
        stream = self.long()
        return cut_every(stream, sum(segment.count for segment in stream.segments))

    def sources(self) -> set[type]:
        source = self.stream.source
        return set() if source is None else {type(store) for store, _ in source().parts}


def _keyed_by_batch(make: Callable[..., Adapter]) -> Callable[..., Adapter]:
    """``make``, with all random draws of a batch keyed by its number in the run."""
    numbers = count()

    def made(*args: object) -> Adapter:
        adapter = make(*args)
        adapt = adapter.adapt_and_predict

        def adapt_and_predict(images: Tensor) -> Tensor:
            number = next(numbers)
            adapter.context.generator = partial(generator, 0, "batch", number)
            reseed(0, "batch", number)
            return adapt(images)

        object.__setattr__(adapter, "adapt_and_predict", adapt_and_predict)
        return adapter

    return made
