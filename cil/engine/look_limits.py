"""Holds a learner to ``trainer.looks``: how often it may read each new image of an experience."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from cil.contract import Phase
from cil.contract.frozen import exemplar_memories
from cil.contract.reachable import of_library
from cil.data import Batch, Samples
from cil.data.looks import CountedStore, Looks, counted
from cil.engine.held_images import HeldImages
from cil.errors import ContractError
from cil.memory import Allowance
from cil.memory.budget import UNLIMITED
from cil.memory.exemplars import BESIDE, EncodedStore, ExemplarMemory
from cil.memory.features import SHAPE as NO_PIXELS
from cil.memory.features import FeatureMemory
from cil.strategies import Strategy
from cil.streams import Experience


def counted_experience(experience: Experience, allowed: int | str, method: str) -> tuple[Experience, Looks]:
    """The experience as a learner is handed it, with its looks counted; and the count.

    Args:
        allowed: Looks at each image, or ``free``.
    """
    limit = None if isinstance(allowed, str) else allowed
    looks = Looks(len(experience.train), limit, method, experience.index)
    return replace(experience, train=counted(experience.train, looks)), looks


def limit_copies(looks: Looks, learner: Strategy, allowance: Allowance, held: int) -> None:
    """Allow as many copies in memories as the budget lets a learner carry, or as it came with."""
    if looks.limit is not None:
        looks.allow_copies(max(held, allowance.exemplar_slots(learner) * len(learner.memories())))


def refuse_copies(phase: Phase, looks: Looks, shape: tuple[int, int, int]) -> None:
    """Refuse a phase on images that are neither those of the experience nor exemplars: nobody counts looks at them.

    Nor may there be more exemplars than may be carried: a larger memory would be the images of the experience again.

    Args:
        shape: Of an image of the stream. Samples of one pixel stand in for features.

    Raises:
        ContractError: where looks are capped and there are such images.
    """
    if looks.limit is None:
        return
    streams = _streams(phase)
    rehearsed = sum(
        _in_raw_images(store, rows)
        for samples in streams
        for store, rows in samples.parts
        if isinstance(store, EncodedStore) and tuple(store.shape) == shape
    )
    if looks.copies is not None and rehearsed > looks.copies:
        raise ContractError(
            f"phase '{phase.name}' of {looks.method} is trained on {rehearsed:,} exemplars, the budget lets "
            f"{looks.copies:,} be carried, and trainer.looks is {looks.limit}: hand over images of experience.train in "
            f"place of copies, raise the budget, or set trainer.looks=free"
        )
    if own_images(phase, looks):
        raise ContractError(
            f"phase '{phase.name}' of {looks.method} is trained on images that are neither experience.train nor "
            f"exemplars of a memory, and trainer.looks is {looks.limit}: hand over rows of these, or set it to free"
        )


def own_images(phase: Phase, looks: Looks | None) -> int:
    """Images of a phase that are neither those of the experience, which ``looks`` counts, nor exemplars.

    Features in place of images are none.
    """
    return sum(
        len(rows)
        for samples in _streams(phase)
        for store, rows in samples.parts
        if tuple(store.shape) != NO_PIXELS
        and not isinstance(store, EncodedStore)
        and not (isinstance(store, CountedStore) and (looks is None or store.looks is looks))
    )


def _streams(phase: Phase) -> list[Samples]:
    return [phase.data] if isinstance(phase.data, Samples) else list(phase.data.values())


def refuse_hoard(looks: Looks, learner: Strategy, phase: Phase, shape: tuple[int, int, int], batch: Batch) -> None:
    """Refuse images that a learner holds after a step, beyond those that may be carried and the batch in hand.

    Images of the experience that were looked at once could be trained on again from there, also from where the loss of
    the phase closes over them. Features are no images.

    Raises:
        ContractError: where looks are capped and there are more.
    """
    own = vars(learner)
    memories = exemplar_memories(learner)
    rehearsed = sum(map(_exemplars, memories.values()))
    skipped = {"make_net", "context", "_kept", "_made", *memories}
    roots = [own[name] for name in own.keys() - skipped]
    of_classes = [value for kind in type(learner).__mro__ if not of_library(kind) for value in vars(kind).values()]
    of_phase = [phase.loss, phase.train_mode]
    beside = HeldImages(shape, batch.images).count([*roots, *of_classes, *of_phase])
    room = UNLIMITED if looks.copies is None else looks.copies
    if rehearsed + max(0, beside - len(batch)) > room:
        raise ContractError(
            f"{looks.method} holds {rehearsed + beside:,} images in training, the budget lets {room:,} be carried "
            f"beside the batch in hand, and trainer.looks is {looks.limit}: raise the budget, or set trainer.looks=free"
        )


def _exemplars(memory: ExemplarMemory) -> int:
    """How many images a memory holds; those of variable size by their bytes."""
    if isinstance(memory, FeatureMemory):
        return 0
    if memory.codec.fixed:
        return ExemplarMemory.__len__(memory)
    parts = memory.samples().parts
    return sum(_in_raw_images(store, rows) for store, rows in parts if isinstance(store, EncodedStore))


def _in_raw_images(store: EncodedStore, rows: Tensor) -> int:
    """How many exemplars there are; those of variable size by their bytes, in raw images with what is beside them."""
    if store.codec.fixed:
        return len(rows)
    return int(store.sizes[rows].sum()) // (math.prod(store.shape) + BESIDE)
