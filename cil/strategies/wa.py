"""WA: maintaining discrimination and fairness, by aligning the norms of new and old class weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget, ExemplarMemory
from cil.models import GrowingNet, NetFactory, frozen_copy
from cil.strategies.base import Strategy, check
from cil.strategies.parts import distillation, store_exemplars
from cil.strategies.parts.heads import align_rows
from cil.strategies.registry import register
from cil.streams import Experience


@register("wa")
class WA(Strategy):
    """Rehearsal and distillation, then one factor on the new rows of the head.

    Args:
        temperature: Temperature of the distillation; > 0.
        strength: A number: CE + strength * L_KD (the survey's code has 2); ``balanced``: (1 - l) CE + l L_KD with
            l = C_o / C, where a class that comes back counts again (the paper, and PyCIL).
        align: Whether to align weights after training; with strength 0 and no alignment this is Replay.
        selection, codec: See ``ExemplarMemory``.

    Source:
        Zhao, Xiao, Gan, Zhang, Xia. CVPR 2020, arXiv:1911.07053, equations 8 and 9. Departure: weights are not clipped
        to be non-negative, as in the survey's code.
    """

    memory: ExemplarMemory
    teacher: GrowingNet | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        temperature: float = 2.0,
        strength: float | str = 2.0,
        align: bool = True,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        check.above(0, "wa", temperature=temperature)
        if isinstance(strength, str) and strength != "balanced":
            raise ConfigError(f"strategy.strength of wa is '{strength}'; allowed: a number, or balanced")
        if not isinstance(strength, str):
            check.at_least(0, "wa", strength=strength)
        self.temperature, self.strength, self.align = temperature, strength, align
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("teacher", None, kind="teacher")

    def before_experience(self, experience: Experience) -> None:
        if self.num_classes and self.strength:
            self.teacher = frozen_copy(self.net)

    @plain_at_first("classes")
    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        logits = self.net(batch.images).logits
        classes = F.cross_entropy(logits, batch.slots)
        if self.teacher is None:
            return {"classes": classes}
        old = self.teacher(batch.images).logits
        distilled = distillation(logits[:, : old.shape[1]], old, self.temperature)
        if self.strength == "balanced":
            share = self.share_before
            return {"classes": (1 - share) * classes, "distillation": share * distilled}
        return {"classes": classes, "distillation": float(self.strength) * distilled}

    def after_experience(self, experience: Experience) -> None:
        if self.align:
            align_rows(self, self.net.head)  # equations 8 and 9
        store_exemplars(self, experience)
