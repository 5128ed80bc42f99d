"""The life of a learner: how it is rebuilt from what was carried, and in which order its hooks are called.

The run, the dry run and the measured step all go this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cil.contract import Holder, RuntimeContext
from cil.data import Augment
from cil.engine.answers_checked import checked_scores
from cil.engine.keys import lent, reseed
from cil.engine.runtime import Runtime
from cil.errors import ContractError, StateError
from cil.memory import Allowance, Budget, NextBoundary, State
from cil.models import NetFactory, evaluating
from cil.strategies import Strategy
from cil.streams import Experience, Signature, TaskKey

MakeLearner = Callable[[NetFactory, Allowance], Strategy]
MakeFactory = Callable[..., NetFactory]  # of keywords ``seed``, ``device``, ``meta``
Around = Callable[[str], AbstractContextManager[object]]  # name of a hook to what is held open while it runs


def admit(learner: Strategy, signature: Signature, budget: Budget, final_bytes: int | None = None) -> Signature:
    """Let an experience be the next one: ask what the learner takes of it, and give it the allowance that follows.

    Returns:
        The signature with the images that are taken.

    Raises:
        ContractError: where it takes more images of a class than there are, or none, or wants more in advance.
    """
    taken = dict(learner.accepts(signature.lent()))
    if taken.keys() != signature.counts.keys() or any(not 0 < taken[k] <= n for k, n in signature.counts.items()):
        raise ContractError(
            f"{type(learner).__name__}.accepts gives {taken} at experience {signature.index}; there are "
            f"{signature.counts}, and of each slot at least one image and at most all must be taken"
        )
    found = signature if taken == dict(signature.counts) else replace(signature, counts=taken)
    learner.budget = allowance(budget, signature, found, final_bytes, in_advance=in_advance(learner, signature))
    return found


def in_advance(learner: Strategy, signature: Signature) -> int:
    """Exemplars that a learner wants for images that later experiences give up: of the first experience alone.

    Raises:
        ContractError: where it wants more than there are images.
    """
    wanted, images = 0 if signature.index else learner.in_advance(signature.lent()), sum(signature.counts.values())
    if not 0 <= wanted <= images:
        raise ContractError(
            f"{type(learner).__name__}.in_advance gives {wanted}; allowed: 0 to the {images} images of the first "
            f"experience"
        )
    return wanted


def allowance(
    budget: Budget,
    signature: Signature,
    taken: Signature,
    final_bytes: int | None = None,
    side_bytes: int | None = None,
    in_advance: int = 0,
) -> Allowance:
    """What may be carried across the boundary after an experience of which ``taken`` is taken."""
    given_up = sum(signature.counts.values()) - sum(taken.counts.values())
    pixels = math.prod(signature.image_shape)
    boundary = NextBoundary(
        signature.index, given_up, pixels, final_bytes, side_bytes, in_advance, signature.num_classes
    )  # fmt: skip
    return Allowance(budget, boundary)


def sample_experience(experience: Experience, taken: Signature, generator: torch.Generator) -> Experience:
    """The experience with so many images of each slot, drawn without replacement; their order stays."""
    if taken == experience.signature:
        return experience
    slots, rows = experience.train.slots, []
    for slot, count in sorted(taken.counts.items()):
        own = (slots == slot).nonzero().flatten()
        rows.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return replace(experience, signature=taken.lent(), train=experience.train[torch.cat(rows).sort().values].sealed())


def enter(
    learner: Strategy, experience: Experience, grow: Callable[[], None], around: Around, check: Callable[[], None]
) -> None:
    """Call the hooks that come before the phases of an experience.

    Args:
        check: Called when room was made for what arrives, and nothing has been grown yet.
    """
    with around("before"):
        learner.before_experience(experience)
    check()
    grow()
    with around("prepare"):
        learner.prepare(experience)
    learner.to(learner.device)


@dataclass
class Learners:
    """Makes learners from what was carried, and nothing else.

    Args:
        final_bytes: Fixed bytes at the end of the stream; needed where the budget reserves them.
    """

    make_learner: MakeLearner
    make_factory: MakeFactory
    budget: Budget
    signatures: tuple[Signature, ...]
    runtime: Runtime
    seed: int
    augment: Augment = field(default_factory=Augment)
    final_bytes: int | None = None

    def fresh(self, index: int) -> Strategy:
        """A learner that has met nothing, with what the engine lends it at experience ``index``."""
        reseed(self.seed, "build")
        device = self.runtime.torch_device
        allowance = Allowance(self.budget, NextBoundary(final_bytes=self.final_bytes))
        learner = self.make_learner(self.make_factory(seed=self.seed, device=device), allowance)
        keyed = lent(self.seed, "strategy", index)
        learner.context = RuntimeContext(device, keyed, self.runtime.lent_backward, copy(self.augment))
        return learner.to(device)

    def rebuilt(self, index: int, state: State | None) -> Strategy:
        """A fresh learner, grown to the structure after ``index`` experiences, holding ``state``."""
        learner = self.fresh(index)
        for past in range(index):
            self.grow(learner, past)
        if state is not None:
            reseed(self.seed, "load", index)
            with self.runtime.autocast(), self.runtime.frozen_features(), all_evaluating(learner):
                learner.load_state(as_structured(state, learner))
            learner.to(learner.device)
        with learner.making():
            return learner

    def admit(self, learner: Strategy, index: int) -> Signature:
        """Let experience ``index`` be the next one; its signature with the images that the learner takes."""
        return admit(learner, self.signatures[index], self.budget, self.final_bytes)

    def grow(self, learner: Strategy, index: int) -> None:
        signature = self.admit(learner, index)  # so that structure is the same whenever it is grown again
        reseed(self.seed, "grow", index)
        learner.grow(signature.lent())
        if learner.device.type != "cpu":  # where else could something new lie
            learner.to(learner.device)

    @contextmanager
    def answering(self, learner: Strategy) -> Iterator[None]:
        """As a learner is evaluated: its modules in evaluation mode, no gradients, the precision of the run."""
        with torch.inference_mode(), self.runtime.autocast(), self.runtime.frozen_features(), all_evaluating(learner):
            yield

    def scores(self, learner: Strategy, images: Tensor, task: TaskKey | None = None) -> Tensor:
        """Scores by ``predict`` in evaluation mode; with the task where the stream tells it."""
        with self.answering(learner):
            scores = learner.predict(images) if task is None else learner.predict(images, task)  # type: ignore[call-arg]
        return checked_scores(scores, f"{type(learner).__name__}.predict")


def as_structured(state: State, learner: Holder) -> State:
    """The part of a carried state that ``learner`` may be given: only what is charged.

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
    return State(state.tensors, own.kinds, state.meta, own.references, own.survey, own.libcontinual)


@contextmanager
def all_evaluating(learner: Holder) -> Iterator[None]:
    """Evaluation mode for all modules that are kept; each gets its own mode back."""
    with ExitStack() as stack:
        for module in learner.modules():
            stack.enter_context(evaluating(module))
        yield
