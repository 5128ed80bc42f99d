"""ER-ACE: rehearsal whose loss on incoming images leaves the outputs of absent classes alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch
from cil.memory import Budget
from cil.models import CosineHead, NetFactory
from cil.strategies.base import check
from cil.strategies.parts import draw_batch
from cil.strategies.parts.reservoir_sampling import ReservoirRehearsal
from cil.strategies.registry import register

MASKED = -1e9


@register("er_ace")
class ERACE(ReservoirRehearsal):
    """Cross-entropy on incoming images among the classes present in the batch; on exemplars over all outputs.

    An image is offered to a reservoir after the step in which it comes first.

    Args:
        cosine: Whether the head is a cosine one of fixed scale; if not, it is the one that the model configures.
        scale: Scale of the cosine head, > 0.
        task_free: Whether the first experience is learned like the others. If not, its loss is the cross-entropy over
            all outputs, without exemplars, as in the reference code.
        replay: Exemplars a step; None for as many as there are new images.
        codec: See ``ReservoirMemory``.

    Source:
        Caccia, Aljundi, Asadi, Tuytelaars, Pineau, Belilovsky. ICLR 2022, arXiv:2104.05025, section 4, Algorithm 1.
        There is no output for a class that was not seen yet, so none is left open. Departures: with several epochs the
        reference code (Mammoth) inserts an image at every step of every epoch, so that copies of it are held; in the
        authors' own the first experience has exemplars and no mask, which is neither value of ``task_free``.
    """

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        cosine: bool = True,
        scale: float = 10.0,
        task_free: bool = False,
        replay: int | None = None,
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.above(0, "er_ace", scale=scale)
        check.at_least(1, "er_ace", replay=replay)
        self.task_free, self.replay = task_free, replay
        self.keep_reservoir(codec)
        if cosine:
            head = CosineHead(self.net.feature_dim).to(self.net.head.weight.device)
            torch.nn.init.constant_(head.scale.requires_grad_(False), scale)
            self.net.head = head

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.net(batch.images).logits  # (N, C)
        if not self.task_free and not self.old_classes:
            return {"incoming": F.cross_entropy(logits, batch.slots)}
        # section 4: L_ace of incoming images
        terms = {"incoming": present_cross_entropy(logits, batch.slots)}
        if (known := draw_batch(self, self.memory, self.replay or len(batch), "known")) is not None:
            # L_ce of the buffer
            terms["exemplars"] = F.cross_entropy(self.net(known.images).logits, known.slots)
        return terms

    def after_step(self, batch: Batch) -> None:
        self.offer(batch, {})


def present_cross_entropy(logits: Tensor, slots: Tensor) -> Tensor:
    """Cross-entropy over the classes present: all other outputs are masked and get exactly no gradient.

    Args:
        logits: (N, C); masked as float32, which holds the mask's value.
        slots: (N,).
    """
    present = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    present[slots] = True
    return F.cross_entropy(logits.float().masked_fill(~present, MASKED), slots)
