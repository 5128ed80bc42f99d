"""MEMO: one shared part, and one specialised last stage for each experience, the older ones frozen."""

from __future__ import annotations

from typing import Literal

from cil.memory import Budget
from cil.models import BranchingNet, NetFactory, freeze
from cil.strategies.base import check
from cil.strategies.parts.branches import BranchForEachExperience
from cil.strategies.registry import register
from cil.streams import Signature

FEW = 20  # classes of a first experience that do not make the shared part general


@register("memo")
class MEMO(BranchForEachExperience):
    """Repeat the last stage of the backbone for each experience; the bytes of the shared part buy exemplars.

    Args:
        auxiliary: Weight of the auxiliary loss, alpha_aux; >= 0. As DER's equation 5, on the newest last stage.
        train_shared: Whether the shared part goes on learning after the first experience; frozen, its batch norm stays
            in evaluation mode too. ``auto``: while the first experience has 20 classes at most, as in the survey's
            scripts (trained on B0 Inc5, Inc10 and Inc20, frozen on B50).
        align: Whether to align the norms of new and old rows after training.
        selection, codec: See ``ExemplarMemory``; chosen on the concatenated features.

    Source:
        Zhou, Wang, Ye, Zhan. ICLR 2023, arXiv:2205.13218, section 4. As in the reference code: a new last stage starts
        as a copy of the one before, and older ones stay frozen while gradients pass through them to a shared part that
        learns. Nothing holds old features where it does. With nothing shared it is ``der``.
    """

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
        check.at_least(0, "memo", auxiliary=auxiliary)
        check.one_of(("auto", True, False), "memo", train_shared=train_shared)
        super().__init__(make_net, budget, auxiliary, align, selection, codec)
        self.train_shared = train_shared

    def build_net(self) -> BranchingNet:
        return self.make_net.branching(specialised=1)  # section 4: u(x) = [s_1(phi_g(x)), ...]

    def grow_net(self, signature: Signature) -> None:
        if self.train_shared == "auto":  # the first experience decides
            self.train_shared = signature.num_classes <= FEW
        if self.net.branches and not self.train_shared:
            freeze(self.net.shared)
        super().grow_net(signature)
