"""Memories that are filled while training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import (
    ExemplarMemory,
    OnlineMemory,
    reservoir_places,
)
from cil.strategies.base import Strategy
from cil.streams import Experience

NOTHING_SEEN = f"{0:015d}"  # a count of fixed width, so that its bytes are known before training


def same_sized(learner: Strategy, memory: ExemplarMemory) -> int:
    """Exemplars that ``memory`` has room for, where all are of one size.

    Raises:
        ConfigError: where their sizes vary and the budget is in bytes: how many fit is not known while they come in.
    """
    if learner.budget.capacity(learner, memory) is not None:
        raise ConfigError(
            "a memory that is filled item by item knows no sizes ahead, so with a budget in bytes strategy.codec must "
            "be one of fixed size: raw, or downsample:SIDE"
        )
    return learner.budget.exemplar_slots(learner)


def open_reservoir(learner: Strategy, memory: OnlineMemory, experience: Experience) -> int:
    """How many exemplars a reservoir may hold in an experience; call it in ``prepare``. What is over goes, by chance.

    It is what the budget allows at the next boundary, where stored logits may be wider and exemplars fewer, but no more
    than there are images to choose from, so that the bill before training holds however often images are offered.
    """
    capacity = min(same_sized(learner, memory), len(memory) + len(experience.train))
    memory.thin(capacity, learner.generator("thin"))
    return capacity


def offer(
    learner: Strategy, memory: OnlineMemory, seen: str, capacity: int, batch: Batch, extras: Mapping[str, Tensor]
) -> str:
    """Offer the images of a step, before augmentation, to a reservoir; call it in ``after_step``.

    With ``trainer.accumulate`` a step offers its last batch alone.

    Args:
        seen: Items offered so far, as kept by the learner: ``NOTHING_SEEN`` at first, then what this returned last.
        capacity: What ``open_reservoir`` returned.
        extras: Side data of the batch.

    Returns:
        Items offered, these included.
    """
    generator = learner.generator(f"reservoir:{learner.progress.step}")
    held, count = len(memory), len(batch)
    places = reservoir_places(held, int(seen), count, capacity, generator).tolist()
    taken = {place: row for row, place in enumerate(places) if place >= 0}  # of two for one place the later stays
    if taken:
        rows = torch.tensor(sorted(taken.values()), device=batch.slots.device)
        leaving = torch.tensor([place for place in taken if place < held], dtype=torch.int64)
        memory.exchange(leaving, batch.pixels[rows], batch.slots[rows], {k: v[rows] for k, v in extras.items()})
    return f"{int(seen) + count:0{len(NOTHING_SEEN)}d}"


def reservoir_plan(slots: int, counts: Mapping[int, int]) -> dict[int, int]:
    """The exemplars that a reservoir holds after an experience: their number; of which classes they are is chance."""
    plan = {}
    for slot, count in counts.items():
        plan[slot] = min(count, slots)
        slots -= plan[slot]
    return plan
