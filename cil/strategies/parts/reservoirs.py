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
NOT_OFFERED, NOT_HELD = -2, -1  # in place of a row of the memory


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


def open_reservoir(learner: Strategy, memory: OnlineMemory, experience: Experience) -> tuple[int, Tensor]:
    """Before an experience, in ``prepare``: what is over goes, by chance.

    Returns:
        Exemplars that the budget allows at the next boundary, where stored logits may be wider and exemplars fewer; and
        the row in the memory of each image that arrives, (N,), which the learner keeps as ``temporary``.
    """
    capacity = same_sized(learner, memory)
    memory.thin(capacity, learner.generator("thin"))
    return capacity, torch.full((len(experience.train),), NOT_OFFERED)


def offer(
    learner: Strategy,
    memory: OnlineMemory,
    seen: str,
    places: Tensor,
    capacity: int,
    batch: Batch,
    extras: Mapping[str, Tensor],
) -> str:
    """Offer the images of a step, before augmentation, to a reservoir; call it in ``after_step``.

    An image is offered when it is met first in its experience, so that after N images each is held with probability
    M / N, and none twice. Met again, it gets the side data of this step where it is held. With ``trainer.accumulate``
    a step offers its last batch alone.

    Args:
        seen: Images offered so far, as kept by the learner: ``NOTHING_SEEN`` at first, then what this returned last.
        places, capacity: What ``open_reservoir`` returned; ``places`` is changed.
        batch: Of the images that arrive.
        extras: Side data of the batch.

    Returns:
        Images offered, these included.
    """
    assert batch.rows is not None  # batches of a phase have them
    now = places[batch.rows]
    if extras:
        again = now >= 0
        memory.rewrite(now[again].cpu(), {name: values[again] for name, values in extras.items()})
    fresh = (now == NOT_OFFERED).nonzero().flatten()
    held, count = len(memory), len(fresh)
    if not count:
        return seen
    generator = learner.generator(f"reservoir:{learner.progress.step}")
    drawn = reservoir_places(held, int(seen), count, capacity, generator).tolist()
    places[batch.rows[fresh]] = NOT_HELD
    taken = {place: row for row, place in enumerate(drawn) if place >= 0}  # of two for one place the later stays
    if taken:
        rows = fresh[sorted(taken.values())]
        leaving = torch.tensor([place for place in taken if place < held], dtype=torch.int64)
        given = {name: values[rows] for name, values in extras.items()}
        moved = memory.exchange(leaving, batch.pixels[rows], batch.slots[rows], given).to(places.device)
        inside = places >= 0
        places[inside] = moved[places[inside]]
        places[batch.rows[rows]] = moved[held:]
    return f"{int(seen) + count:0{len(NOTHING_SEEN)}d}"


def reservoir_plan(learner: Strategy, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
    """The exemplars that a reservoir holds after an experience: their number; of which classes they are is chance.

    Raises:
        ConfigError: as of ``same_sized``, so that the bill is refused.
    """
    plan = {}
    for memory in learner.memories().values():
        same_sized(learner, memory)
    for slot, count in counts.items():
        plan[slot] = min(count, slots)
        slots -= plan[slot]
    return plan
