"""The time that training will take, from a few steps on images of noise before the first real one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from cil.contract import Holder, Phase, Search
from cil.data.samples import batch_bounds
from cil.engine.cost import Unbilled
from cil.engine.dry_run import Bill
from cil.engine.measured_step import first_steps
from cil.engine.recipe import Recipe
from cil.engine.step_kinds import StepWatch
from cil.engine.strategy_steps import StrategySteps
from cil.strategies import Strategy
from cil.streams import Signature

STEPS = 3  # of which the fastest counts: the first one also allocates
FEW, LONG = 4, 1.0  # images of a first step; seconds from which on it stands for larger ones
MANY = 32  # images of a step that stands for larger ones: each takes about as long in those


class SecondsPerImage(NamedTuple):
    """Seconds of training for each image that an experience trains on, exemplars too: in the first, and in the last."""

    first: float
    last: float


class Stopwatch(Unbilled):
    """Takes the time of steps, in place of what a run bills."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    @contextmanager
    def step(
        self, learner: Holder, watch: StepWatch, phase: Phase, sizes: Sequence[int], update: bool, drawn: bool
    ) -> Iterator[AbstractContextManager[Any]]:
        began = time.perf_counter()
        yield nullcontext()
        if learner.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)


def seconds_per_image(steps: StrategySteps) -> SecondsPerImage:
    """Time a few steps of each phase of the first and of the last experience, and multiply by how many there will be.

    Not in it: augmentation, what hooks do, evaluation. The weights are random, the images noise.
    """
    with steps.work.runtime.autocast():
        return SecondsPerImage(_of_experience(steps, 0), _of_experience(steps, len(steps.signatures) - 1))


def _of_experience(steps: StrategySteps, index: int) -> float:
    device = steps.work.runtime.torch_device
    learner, experience = steps.reach_phases(index, device)
    images = sum(steps.signatures[index].counts.values())
    missing, seconds = images - len(experience.train), 0.0  # of the images, of which a few batches of noise stand
    for found in learner.phases(experience):
        learner.to(device)
        trials = found.trials if isinstance(found, Search) else 1
        phase = found.trial(found.middle) if isinstance(found, Search) else found
        recipe = steps.work.recipe.of(phase, index)
        batches = len(batch_bounds(len(phase.samples) + missing, recipe.batch_size)) * recipe.epochs
        most = batches if recipe.max_steps is None else recipe.max_steps * recipe.accumulate
        seconds += trials * min(batches, most) * _of_batch(learner, phase, recipe)
    return seconds / (images + (steps.work.bill[index - 1].exemplars if index else 0))


def _of_batch(learner: Strategy, phase: Phase, recipe: Recipe) -> float:
    """Seconds of a step; on the CPU, of a large network or batch, those of some images for each of the batch."""
    size, few = recipe.batch_size, min(FEW, recipe.batch_size)
    first = _fastest(learner, phase, replace(recipe, batch_size=few), 1)
    if first > LONG:
        return first * size / few
    if size <= MANY or learner.device.type != "cpu":
        return _fastest(learner, phase, recipe, STEPS)
    seconds = _fastest(learner, phase, replace(recipe, batch_size=MANY), STEPS) * size / MANY
    if seconds < LONG:  # a whole one too, for the memory that it takes
        seconds = min(seconds, _fastest(learner, phase, recipe, 1))
    return seconds


def _fastest(learner: Strategy, phase: Phase, recipe: Recipe, steps: int) -> float:
    watch = Stopwatch()
    first_steps(learner, phase, recipe, watch, lambda cost: len(watch.seconds) >= steps)
    return min(watch.seconds, default=math.nan)


def seconds_of_training(signatures: Sequence[Signature], bills: Sequence[Bill], rates: SecondsPerImage) -> float:
    """Seconds of a whole stream, each experience after the first taken for as slow as the last one.

    >>> one = Signature(0, (0,), (0,), {0: 10}, (1, 8, 8), 1)
    >>> bill = Bill(0, {}, 4, {}, {})
    >>> seconds_of_training([one, one, one], [bill, bill, bill], SecondsPerImage(1.0, 2.0))  # 10 + 2 (14 + 14)
    66.0
    """
    images = [sum(signature.counts.values()) for signature in signatures]
    later = sum(count + bill.exemplars for count, bill in zip(images[1:], bills, strict=False))
    return rates.first * images[0] + rates.last * later
