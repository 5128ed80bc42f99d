"""GDumb: a class-balanced memory, filled greedily, and a fresh network trained on it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract import Phase
from cil.data import Batch, Samples
from cil.memory import Budget, ExemplarMemory, greedily_balanced
from cil.models import NetFactory
from cil.strategies.base import Strategy, check
from cil.strategies.parts.reservoir_sampling import fixed_capacity
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("gdumb")
class GDumb(Strategy):
    """Greedy sampler and dumb learner: the images of an experience pass once, in random order, before training.

    It trains on the content of the memory alone, from fresh weights, so that ``trainer.first`` holds at every
    experience.

    Args:
        cutmix: Probability that a batch is mixed (the paper's: 0.5).
        codec: See ``ExemplarMemory``.

    Source:
        Prabhu, Torr, Dokania. ECCV 2020. Departures: the paper's recipe (mixing, warm restarts, clipping at 10) is
        ``recipe=survey``, and the default the run's without mixing; a network after every experience, which is carried,
        and paid for, as any other.
    """

    memory: ExemplarMemory

    def __init__(self, make_net: NetFactory, budget: Budget, *, cutmix: float = 0.0, codec: str = "raw") -> None:
        super().__init__(make_net, budget)
        check.between(0, 1, "gdumb", cutmix=cutmix)
        self.cutmix = cutmix
        self.keep("memory", ExemplarMemory(codec, "random"), kind="exemplars")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.arriving = dict(signature.counts)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        fixed_capacity(self, self.memory)  # refuses what could not be filled
        share = -(-slots // max(1, len(counts)))  # a class is taken while it has fewer than M / C
        held = {slot: count - self.arriving.get(slot, 0) for slot, count in counts.items()}
        plan = {slot: max(held[slot], min(share, count)) for slot, count in counts.items()}
        for _ in range(sum(plan.values()) - slots):
            plan[max(plan, key=lambda slot: plan[slot])] -= 1
        return plan

    def prepare(self, experience: Experience) -> None:
        if experience.index:
            fresh = self.make_net()
            fresh.grow(self.num_classes)
            self.net.load_state_dict(fresh.state_dict())
        generator = self.generator("sampler")
        passing = experience.train[torch.randperm(len(experience.train), generator=generator)]
        held, room = self.memory.samples(), fixed_capacity(self, self.memory)
        slots = held.slots.tolist(), passing.slots.tolist()
        rows = greedily_balanced(*slots, room, self.num_classes, generator)
        self.memory.replace([(held + passing)[rows]])

    def training_set(self, experience: Experience) -> Samples:
        return self.memory.samples()

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield Phase("main", self.training_set(experience), self.loss, fresh=True)

    def loss(self, batch: Batch) -> Tensor:
        generator = self.generator(f"cutmix:{self.progress.step}")
        if self.cutmix and torch.rand((), generator=generator) < self.cutmix:
            images, other, share = cutmix_batch(batch.images, generator)
            logits, pasted = self.net(images).logits, batch.slots[other.to(batch.slots.device)]
            return share * F.cross_entropy(logits, batch.slots) + (1 - share) * F.cross_entropy(logits, pasted)
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


def cutmix_batch(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Paste a box of another image of the batch into each; the share that stays is near one drawn uniformly.

    Args:
        images: (N, C, H, W).

    Returns:
        Mixed images, the row (N,) that each box is from, and the share of pixels that are an image's own.

    Source:
        Yun et al., CutMix, ICCV 2019, with alpha = 1.
    """
    height, width = images.shape[2:]
    other = torch.randperm(len(images), generator=generator)
    wanted, y, x = torch.rand(3, generator=generator).tolist()
    half_height, half_width = int(height * (1 - wanted) ** 0.5) // 2, int(width * (1 - wanted) ** 0.5) // 2
    y, x = int(y * height), int(x * width)
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[other.to(images.device), :, top:bottom, left:right]
    return mixed, other, 1 - (bottom - top) * (right - left) / (height * width)
