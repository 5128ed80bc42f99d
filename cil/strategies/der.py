"""DER: dynamically expandable representation, one backbone for each experience, the older ones frozen."""

from __future__ import annotations

from cil.memory import Budget
from cil.models import BranchingNet, NetFactory
from cil.strategies.base import check
from cil.strategies.parts.branches import BranchForEachExperience
from cil.strategies.registry import register


@register("der")
class DER(BranchForEachExperience):
    """Concatenate the features of one backbone per experience; an auxiliary head makes the newest one discriminate.

    Args:
        auxiliary: Weight of the auxiliary loss.
        align: Whether to align the norms of new and old rows after training.
        selection, codec: See ``ExemplarMemory``; chosen on the concatenated features.

    Source:
        Yan, Xie, He. CVPR 2021, arXiv:2103.16788, section 3 (super-feature, equation 3; auxiliary loss, equation 5).
        Departures, as in the survey's code: neither masks nor pruning, no classifier retraining; weight alignment
        instead; a new backbone starts as a copy of the one before. Not Dark Experience Replay (``derpp``).
    """

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
        check.at_least(0, "der", auxiliary=auxiliary)
        super().__init__(make_net, budget, auxiliary, align, selection, codec)

    def build_net(self) -> BranchingNet:
        return self.make_net.branching()
