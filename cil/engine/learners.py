"""Learners, made from what was carried and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cil.contract import Holder
from cil.data import Augment
from cil.engine.dryrun import MakeLearner
from cil.engine.incoming import met
from cil.engine.keys import generator, reseed
from cil.engine.runtime import Runtime
from cil.errors import StateError
from cil.memory import Budget, State
from cil.models import NetFactory, evaluating
from cil.strategies import Desk, Strategy
from cil.streams import Signature, TaskKey

MakeFactory = Callable[..., NetFactory]


@dataclass
class Learners:
    """Makes learners from what was carried, and nothing else."""

    make_learner: MakeLearner
    make_factory: MakeFactory
    budget: Budget
    signatures: tuple[Signature, ...]
    runtime: Runtime
    seed: int
    augment: Augment = field(default_factory=Augment)

    def rebuilt(self, index: int, state: State | None) -> Strategy:
        """A fresh learner, grown to the structure after ``index`` experiences, holding ``state``."""
        self.budget.experience = self.budget.given_up = 0
        reseed(self.seed, "build")
        device = self.runtime.torch_device
        learner = self.make_learner(self.make_factory(seed=self.seed, device=device), self.budget)
        learner.desk = Desk(
            device, partial(generator, self.seed, "strategy", index), self.runtime.backward, self.augment
        )
        learner.to(device)
        for past in range(index):
            self.grow(learner, past)
        if state is not None:
            reseed(self.seed, "load", index)
            with self.runtime.autocast(), all_evaluating(learner):
                learner.load_state(as_structured(state, learner))
            learner.to(device)
        return learner

    def meet(self, learner: Strategy, index: int) -> Signature:
        """Experience ``index`` is next: what the learner takes of it, and what it gives up is the budget's to know."""
        return met(learner, self.signatures[index], self.budget)

    def grow(self, learner: Strategy, index: int) -> None:
        """Structure for the classes of experience ``index``."""
        signature = self.meet(learner, index)  # so that structure is the same whenever it is grown again
        reseed(self.seed, "grow", index)
        learner.grow(signature)
        learner.to(self.runtime.torch_device)

    @torch.inference_mode()
    def scores(self, learner: Strategy, images: Tensor, task: TaskKey | None = None) -> Tensor:
        """What ``predict`` says, in evaluation mode; ``task`` is told where the stream tells it."""
        told: tuple[Any, ...] = () if task is None else (task,)
        with self.runtime.autocast(), all_evaluating(learner):
            return learner.predict(images, *told)


def as_structured(state: State, learner: Holder) -> State:
    """What ``learner`` may be given of a carried state: only what is charged.

    Names, kinds and what the survey charges are not; they are those of a learner that was grown and saw no data.

    Raises:
        StateError: where a tensor has another name, shape or type than the structure gives it.
    """
    own, left = learner.structure(), dict(state.tensors)
    for name, memory in learner.memories().items():  # the one thing whose size depends on the data
        keys = [key for key in memory.tensor_names if f"{name}.{key}" in left]
        copy(memory).load({key: left.pop(f"{name}.{key}") for key in keys}, learner.image_shape)
    ours, theirs = ({key: (t.shape, t.dtype) for key, t in held.items()} for held in (own.tensors, left))
    odd = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if odd or state.references != own.references:
        raise StateError(
            f"{type(learner).__name__}: the state and the structure after grow differ in {', '.join(odd[:3])}"
            f"{'' if odd else 'references to public weights'}; allocate in __init__ or grow, at its final size, all "
            f"that is carried"
        )
    return State(state.tensors, own.kinds, state.meta, own.references, own.survey)


@contextmanager
def all_evaluating(learner: Holder) -> Iterator[None]:
    """Evaluation mode for all modules that are kept; each gets its own mode back."""
    with ExitStack() as stack:
        for module in learner.modules():
            stack.enter_context(evaluating(module))
        yield
