"""A branch of the network for each experience, the older ones frozen: what DER and MEMO share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.contract.plain import plain_at_first
from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import BranchingNet, LinearHead, NetFactory
from cil.strategies.base import Strategy
from cil.strategies.parts.heads import align_rows
from cil.strategies.parts.rehearsal import store_exemplars
from cil.streams import Experience, Signature


class BranchForEachExperience(Strategy):
    """Rehearsal on concatenated features; an auxiliary head makes the newest branch tell classes apart.

    Arguments and source: see ``cil.strategies.der``.
    """

    net: BranchingNet
    memory: ExemplarMemory
    auxiliary_head: LinearHead | None

    def __init__(
        self, make_net: NetFactory, budget: Budget, auxiliary: float, align: bool, selection: str, codec: str
    ) -> None:
        super().__init__(make_net, budget)
        self.auxiliary, self.align = auxiliary, align
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("auxiliary_head", None, kind="temporary")

    def grow_net(self, signature: Signature) -> None:
        self.net.add_branch()
        self.net.grow(len(signature.new_slots))

    def prepare(self, experience: Experience) -> None:
        if experience.index:
            self.net.copy_branch(-2, -1)
            head = LinearHead(self.net.branch_dim).to(self.device)
            head.grow(self.num_classes - self.old_classes + 1)  # output 0 for all old classes
            self.auxiliary_head = head

    @plain_at_first("classes")
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        output = self.net(batch.images)
        terms = {"classes": F.cross_entropy(output.logits, batch.slots)}  # equation 3
        if self.auxiliary_head is not None:  # equation 5
            logits = self.auxiliary_head(output.features[:, -self.net.branch_dim :])
            target = torch.clamp(batch.slots - self.old_classes + 1, min=0)
            terms["auxiliary"] = self.auxiliary * F.cross_entropy(logits, target)
        return terms

    def after_experience(self, experience: Experience) -> None:
        if self.align:
            align_rows(self, self.net.head)
        store_exemplars(self, experience)
