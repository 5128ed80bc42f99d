"""DER++: Dark Experience Replay, rehearsing what the network answered when an exemplar was stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch, Samples
from cil.memory import Budget, OnlineMemory
from cil.models import NetFactory
from cil.strategies.base import Strategy
from cil.strategies.parts import NOTHING_SEEN, draw, offer, open_reservoir, reservoir_plan
from cil.strategies.ranges import at_least
from cil.strategies.registry import register
from cil.streams import Experience, Signature

ABSENT = -torch.inf  # the stored logit of a class that there was no output for


@register("derpp")
class DERpp(Strategy):
    """Cross-entropy on new images, and two batches of a reservoir: one matches stored logits, one has labels.

    An image is offered to the reservoir after the step in which it is met first, with the logits that the step's loss
    was computed from; while its experience lasts they are replaced by later ones. It replays within the first
    experience too.

    Args:
        alpha: Weight of the squared distance from the stored logits, >= 0.
        beta: Weight of the cross-entropy on exemplars, >= 0; 0 is DER.
        replay: Exemplars in each of the two batches; None for as many as there are new images.
        codec: How their pixels are kept.

    Source:
        Buzzega, Boschini, Porrello, Abati, Calderara. NeurIPS 2020, arXiv:2004.07211, equations 5 and 6, Algorithm 2.
        Departures: there the head has its final width from the start. Here it has outputs for the classes seen, and the
        logits of later classes are not matched: the mean is over the outputs that there were. They are stored at the
        width of the head, missing ones as minus infinity, and charged so. With several epochs the reference code
        inserts an image at every step of every epoch, so that copies of it are held. Not the expandable DER (``der``).
    """

    memory: OnlineMemory
    seen: str
    places: Tensor
    outputs: Tensor | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        alpha: float = 0.3,
        beta: float = 0.5,
        replay: int | None = None,
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        at_least(0, "derpp", alpha=alpha, beta=beta)
        at_least(1, "derpp", replay=replay)
        self.alpha = alpha
        self.beta = beta
        self.replay = replay
        self.keep("memory", OnlineMemory(codec, {"logits": "replay_logits"}), kind="exemplars")
        self.keep("seen", NOTHING_SEEN)
        self.keep("places", None, kind="temporary")  # of the images that arrive, in the memory
        self.keep("outputs", None, kind="temporary")  # of the step, until they are stored

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.memory.extra_bytes = 4 * self.num_classes
        self.memory.pad("logits", self.num_classes, ABSENT)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return reservoir_plan(self, slots, counts)

    def prepare(self, experience: Experience) -> None:
        self.capacity, self.places = open_reservoir(self, self.memory, experience)

    def training_set(self, experience: Experience) -> Samples:
        return experience.train  # exemplars are drawn in the loss

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.net(batch.images).logits  # (N, C)
        self.outputs = logits.detach().float()
        terms = {"classes": F.cross_entropy(logits, batch.slots)}
        count = self.replay or len(batch)
        if self.alpha and (dark := draw(self, self.memory, count, "dark")) is not None:  # equation 5
            terms["dark"] = self.alpha * stored_distance(self.net(dark.images).logits, dark.extras["logits"])
        if self.beta and (known := draw(self, self.memory, count, "known")) is not None:  # equation 6
            terms["exemplars"] = self.beta * F.cross_entropy(self.net(known.images).logits, known.slots)
        return terms

    def after_step(self, batch: Batch) -> None:
        assert self.outputs is not None
        self.seen = offer(self, self.memory, self.seen, self.places, self.capacity, batch, {"logits": self.outputs})
        self.outputs = None


def stored_distance(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared distance over the outputs that there were when an exemplar was stored.

    Args:
        logits: (N, C).
        stored: (N, C), minus infinity where there was no output.

    >>> stored_distance(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[3.0, 1.0, -torch.inf]])).item()
    2.5
    """
    there = stored != ABSENT
    return torch.where(there, logits.float() - stored, 0).square().sum() / there.sum()
