"""DER: dynamically expandable representation, one backbone for each experience, the older ones frozen."""

from __future__ import annotations

from torch import Tensor

from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import BranchingNet, LinearHead, NetFactory
from cil.strategies.base import Strategy
from cil.strategies.parts import align_rows, copy_newest_branch, loss_with_newest, store_exemplars
from cil.strategies.ranges import at_least
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("der")
class DER(Strategy):
    """Concatenate the features of one backbone per experience; an auxiliary head makes the newest one discriminate.

    Args:
        auxiliary: Weight of the auxiliary loss.
        align: Whether to align the norms of new and old rows after training.
        selection: Rule that chooses exemplars, on the concatenated features.
        codec: How their pixels are kept.

    Source:
        Yan, Xie, He. CVPR 2021, arXiv:2103.16788, section 3 (super-feature, equation 3; auxiliary loss, equation 5).
        Departures, as in the survey's code: neither masks nor pruning, no classifier retraining; weight alignment
        instead; a new backbone starts as a copy of the one before. Not Dark Experience Replay (``derpp``).
    """

    net: BranchingNet
    memory: ExemplarMemory
    auxiliary_head: LinearHead | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        auxiliary: float = 1.0,
        align: bool = True,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        at_least(0, "der", auxiliary=auxiliary)
        self.auxiliary = auxiliary
        self.align = align
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("auxiliary_head", None, kind="temporary")

    def build_net(self) -> BranchingNet:
        return self.make_net.branching()

    def grow_net(self, signature: Signature) -> None:
        self.net.add_branch()
        self.net.grow(len(signature.new_slots))

    def prepare(self, experience: Experience) -> None:
        if experience.index:
            copy_newest_branch(self)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return loss_with_newest(self, batch)  # equations 3 and 5

    def after_experience(self, experience: Experience) -> None:
        if self.align:
            align_rows(self, self.net.head)
        store_exemplars(self, experience)
