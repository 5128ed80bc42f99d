"""Holds a learner to ``trainer.looks``: how often it may read each new image of an experience."""

from __future__ import annotations

from dataclasses import replace

from cil.contract import Phase
from cil.data import Samples
from cil.data.looks import CountedStore, Looks, counted
from cil.errors import ContractError
from cil.memory.exemplars import EncodedStore
from cil.streams import Experience


def counted_experience(experience: Experience, allowed: int | str, method: str) -> tuple[Experience, Looks]:
    """The experience as a learner is handed it, with its looks counted; and the count.

    Args:
        allowed: Looks at each image, or ``free``.
        method: The strategy, for messages.
    """
    limit = None if isinstance(allowed, str) else allowed
    looks = Looks(len(experience.train), limit, method, experience.index)
    return replace(experience, train=counted(experience.train, looks)), looks


def refuse_copies(phase: Phase, looks: Looks, shape: tuple[int, int, int]) -> None:
    """Refuse a phase on images that are neither those of the experience nor exemplars: nobody counts looks at them.

    Args:
        shape: Of an image of the stream; what has another one are features.

    Raises:
        ContractError: where looks are capped and there are such images.
    """
    streams = [phase.data] if isinstance(phase.data, Samples) else list(phase.data.values())
    odd = [
        store
        for samples in streams
        for store, rows in samples.parts
        if len(rows) and tuple(store.shape) == shape and not isinstance(store, CountedStore | EncodedStore)
    ]
    if looks.limit is not None and odd:
        raise ContractError(
            f"phase '{phase.name}' of {looks.method} is trained on images that are neither experience.train nor "
            f"exemplars of a memory, and trainer.looks is {looks.limit}: hand over rows of these, or set it to free"
        )
