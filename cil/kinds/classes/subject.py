"""A strategy under test: its runs on class streams, and what rules ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cil.engine.driver import Run
from cil.engine.learning import StrategyWork
from cil.engine.lifecycle import all_evaluating, as_structured
from cil.memory import State
from cil.strategies import Strategy, find
from cil.testing.compare import close
from cil.testing.side_effects import hooks_of
from cil.testing.subject import CheckedRun, Subject
from cil.testing.toy import RECIPE, long_stream, toy_run, toy_stream, uneven_stream


class StrategyRun(CheckedRun[Strategy]):
    """A run of a strategy under test."""

    run: Run

    @property
    def work(self) -> StrategyWork:
        return cast(StrategyWork, self.run.work)

    def rebuilt(self, boundary: int, state: State | None = None) -> Strategy:
        return self.work.learners.rebuilt(boundary + 1, self.state(boundary) if state is None else state)

    def reloaded(self, boundary: int, learner: Strategy) -> Strategy:
        """A live learner that is given the state stored at a boundary, as a fresh one is."""
        learners = self.work.learners
        state = as_structured(self.state(boundary), learners.rebuilt(boundary + 1, None))
        with learners.runtime.autocast(), all_evaluating(learner):
            learner.load_state(state)
        return learner

    def images(self) -> Tensor:
        stream = self.work.stream
        return torch.cat([stream.test(index)[:6].pixels for index in range(len(stream))]).float() / 255

    def answers(self, learner: Strategy, images: Tensor) -> Tensor:
        """Scores of all classes seen; where the stream tells the task, the answers for each task side by side."""
        met = [signature for signature in self.work.stream.signatures if signature.num_classes <= learner.num_classes]
        tasks = dict.fromkeys(signature.task for signature in met)
        return torch.cat([self.work.learners.scores(learner, images, task) for task in tasks], dim=1)


class StrategySubject(Subject[Strategy]):
    """A strategy under test."""

    recipe = RECIPE
    hooks = hooks_of(Strategy)
    last_hook = "after_experience"

    find = staticmethod(find)
    toy = staticmethod(toy_stream)
    long = staticmethod(long_stream)
    uneven = staticmethod(uneven_stream)

    def run(self, folder: Path, **options: Any) -> StrategyRun:
        given = {"stream": self.stream, "hyperparameters": self.hyperparameters, "pictures": False}
        given |= {**self.options, **options}
        return StrategyRun(toy_run(self.target, run_dir=folder, **given))

    def finished(self) -> StrategyRun:
        return cast(StrategyRun, super().finished())

    def answering_otherwise(self, run: CheckedRun[Strategy], learners: Sequence[Strategy]) -> list[int]:
        found, images = cast(StrategyRun, run), run.images()

        def alike(boundary: int, learner: Strategy) -> bool:
            both = found.reloaded(boundary, learner), found.rebuilt(boundary)
            return close(*(found.answers(one, images) for one in both))

        after = zip(run.boundaries[-len(learners) :], learners, strict=True)
        return [boundary for boundary, learner in after if not alike(boundary, learner)]

    def sources(self) -> set[type]:
        return {type(store) for store, _ in self.stream[0].train.parts}
