"""An adapter under test: its runs, and what rules ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cil.adapt import Adapter, find
from cil.engine.driver import Run
from cil.kinds.adaptation.work import AdaptationWork
from cil.memory import State
from cil.testing.shifts import RECIPE, toy_adaptation, toy_shifts
from cil.testing.subject import CheckedRun, Subject


class AdapterRun(CheckedRun[Adapter]):
    """A run of an adapter under test."""

    run: Run

    @property
    def work(self) -> AdaptationWork:
        """The work of the run."""
        return cast(AdaptationWork, self.run.work)

    def rebuilt(self, boundary: int, state: State | None = None) -> Adapter:
        return self.work.rebuilt(self.state(boundary) if state is None else state)

    def images(self) -> Tensor:
        return self.work.stream.segments[0].samples().images[: self.work.batch_size]

    @torch.enable_grad()
    def answers(self, learner: Adapter, images: Tensor) -> Tensor:
        """Scores of images to which the adapter adapts."""
        return learner.adapt_and_predict(images.clone())


class AdapterSubject(Subject[Adapter]):
    """An adapter under test; the last segment of its stream is one before which it is put back."""

    recipe = RECIPE
    experience, step, place = "segment", "batch", "at boundary {}"
    hooks = ("deploy", "adapt_and_predict", "adjust_gradients", "after_step", "state", "load_state")

    find = staticmethod(find)
    toy = staticmethod(toy_shifts)

    def run(self, folder: Path, **options: Any) -> AdapterRun:
        given = {"stream": self.stream, "hyperparameters": self.hyperparameters, **self.options, **options}
        return AdapterRun(toy_adaptation(self.target, run_dir=folder, **given))
