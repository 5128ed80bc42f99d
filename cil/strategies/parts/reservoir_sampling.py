"""Rehearsal from a memory that is filled while training goes on: reservoir sampling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cil.data import Batch, Samples
from cil.errors import ConfigError
from cil.memory import ExemplarMemory, ReservoirMemory, reservoir_places
from cil.strategies.base import Strategy
from cil.streams import Experience

NOTHING_SEEN = f"{0:015d}"  # a count of fixed width, so that its bytes are known before training
NOT_OFFERED, NOT_HELD = -2, -1  # in place of a row of the memory


class ReservoirRehearsal(Strategy):
    """A learner that offers each image once to a reservoir: after N images each is held with probability M / N.

    Where M grows in the course of the stream, new places are filled first, so that later images are held more often.

    ``loss`` draws exemplars (``draw_batch``); ``after_step`` calls ``offer``.
    """

    offers_again = False  # whether an image is offered whenever it comes; it is then held as often as it is drawn
    memory: ReservoirMemory
    seen: str  # images offered so far
    places: Tensor  # (N,) row of the memory of each image that arrives

    def keep_reservoir(self, codec: str, extras: Mapping[str, str] | None = None) -> None:
        """Keep the memory; call it in ``__init__``. Arguments of ``ReservoirMemory``."""
        self.keep("memory", ReservoirMemory(codec, extras), kind="exemplars")
        self.keep("seen", NOTHING_SEEN)
        self.keep("places", None, kind="temporary")

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        """The number of exemplars; their classes are random.

        Raises:
            ConfigError: for a codec of variable size under a budget in bytes.
        """
        fixed_capacity(self, self.memory)
        plan = {}
        for slot, count in counts.items():
            plan[slot] = min(count, slots)
            slots -= plan[slot]
        return plan

    def prepare(self, experience: Experience) -> None:
        """Drop exemplars at random down to the next boundary's number: stored logits may be wider there."""
        self.capacity = fixed_capacity(self, self.memory)
        self.memory.thin(self.capacity, self.generator("thin"))
        if self.offers_again:  # no more than there are images, so that the bill is known before training
            self.capacity = min(self.capacity, len(self.memory) + len(experience.train))
        self.places = torch.full((len(experience.train),), NOT_OFFERED)

    def training_set(self, experience: Experience) -> Samples:
        return experience.train

    def offer(self, batch: Batch, extras: Mapping[str, Tensor]) -> None:
        """Offer the images of a step, before augmentation.

        An image that is held and comes again gets the side data of this step, or is offered again. With
        ``trainer.accumulate`` a step offers its last batch alone.
        """
        assert batch.rows is not None  # batches of a phase have them
        now = self.places[batch.rows]
        if self.offers_again:
            now = torch.full_like(now, NOT_OFFERED)
        elif extras:
            again = now >= 0
            self.memory.rewrite(now[again].cpu(), {name: values[again] for name, values in extras.items()})
        fresh = (now == NOT_OFFERED).nonzero().flatten()
        held, count = len(self.memory), len(fresh)
        if not count:
            return
        generator = self.generator(f"reservoir:{self.progress.step}")
        places = reservoir_places(held, int(self.seen), count, self.capacity, generator).tolist()
        self.places[batch.rows[fresh]] = NOT_HELD
        taken = {place: row for row, place in enumerate(places) if place >= 0}  # the later of two for one place stays
        if taken:
            rows = fresh[sorted(taken.values())]
            leaving = torch.tensor([place for place in taken if place < held], dtype=torch.int64)
            side = {name: values[rows] for name, values in extras.items()}
            moved = self.memory.exchange(leaving, batch.pixels[rows], batch.slots[rows], side).to(self.places.device)
            inside = self.places >= 0
            self.places[inside] = moved[self.places[inside]]
            self.places[batch.rows[rows]] = moved[held:]
        self.seen = f"{int(self.seen) + count:0{len(NOTHING_SEEN)}d}"


def fixed_capacity(learner: Strategy, memory: ExemplarMemory) -> int:
    """Exemplars that ``memory`` has room for, all of one size.

    Raises:
        ConfigError: where sizes vary and the budget is in bytes: how many fit is not known while they come in.
    """
    if learner.budget.capacity(learner, memory) is not None:
        raise ConfigError(
            "a memory that is filled item by item knows no sizes ahead, so with a budget in bytes strategy.codec must "
            "be one of fixed size: raw, or downsample:SIDE"
        )
    return learner.budget.exemplar_slots(learner)
