"""MEMO: one shared part, and one specialised last stage for each experience, the older ones frozen."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cil.data import Batch
from cil.memory import Budget, ExemplarMemory
from cil.models import BranchingNet, LinearHead, NetFactory, freeze
from cil.strategies.base import Strategy
from cil.strategies.parts import align_rows, copy_newest_branch, loss_with_newest, store_exemplars
from cil.strategies.ranges import at_least, one_of
from cil.strategies.registry import register
from cil.streams import Experience, Signature

FEW = 20  # classes of a first experience that do not make the shared part general


@register("memo")
class MEMO(Strategy):
    """Repeat the last stage of the backbone for each experience; what the shared part saves buys exemplars.

    Args:
        auxiliary: Weight of the auxiliary loss, alpha_aux; >= 0.
        train_shared: Whether the shared part goes on learning after the first experience; frozen, its batch norm stays
            in evaluation mode too. ``auto``: while the first experience has 20 classes at most, as in the survey's
            scripts (trained on B0 Inc5, Inc10 and Inc20, frozen on B50).
        align: Whether to align the norms of new and old rows after training.
        selection: Rule that chooses exemplars, on the concatenated features.
        codec: How their pixels are kept.

    Source:
        Zhou, Wang, Ye, Zhan. ICLR 2023, arXiv:2205.13218, section 4. As in the reference code: a new last stage starts
        as a copy of the one before, and older ones stay frozen while gradients pass through them to a shared part that
        learns. Nothing holds old features where it does. With nothing shared it is ``der``.
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
        train_shared: bool | Literal["auto"] = "auto",
        align: bool = True,
        selection: str = "herding",
        codec: str = "raw",
    ) -> None:
        super().__init__(make_net, budget)
        at_least(0, "memo", auxiliary=auxiliary)
        one_of(("auto", True, False), "memo", train_shared=train_shared)
        self.auxiliary = auxiliary
        self.train_shared = train_shared
        self.align = align
        self.keep("memory", ExemplarMemory(codec, selection), kind="exemplars")
        self.keep("auxiliary_head", None, kind="temporary")

    def build_net(self) -> BranchingNet:
        return self.make_net.branching(specialised=1)  # section 4: u(x) = [s_1(phi_g(x)), ...]

    def grow_net(self, signature: Signature) -> None:
        if self.train_shared == "auto":  # the first experience decides
            self.train_shared = signature.num_classes <= FEW
        if self.net.branches and not self.train_shared:
            freeze(self.net.shared)
        self.net.add_branch()
        self.net.grow(len(signature.new_slots))

    def prepare(self, experience: Experience) -> None:
        if experience.index:
            copy_newest_branch(self)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return loss_with_newest(self, batch)  # as DER's equation 5, on the newest last stage

    def after_experience(self, experience: Experience) -> None:
        if self.align:
            align_rows(self, self.net.head)
        store_exemplars(self, experience)
