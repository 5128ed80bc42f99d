"""A network that adds a backbone, or the last stages of one, for each experience and freezes those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cil.errors import ShapeError
from cil.models.base import Output
from cil.models.frozen import freeze
from cil.models.growing import HeadedNet
from cil.models.heads import LinearHead


class BranchingNet(HeadedNet):
    """b branches side by side, one linear head on their concatenated features; of the branches only the last learns.

    Args:
        make_backbone: Makes a fresh backbone for each ``add_branch``.
        normalise: Applied to the images first, once for all branches.
        specialised: A branch is so many last stages of a backbone (MEMO: 1), on top of the stem and the stages before
            them, which all branches share; None for whole backbones (DER).

    Attributes:
        shared: Stem and stages that all branches share, those of the first backbone; empty for whole backbones. It
            learns until it is frozen.

    Source: Yan et al., DER, CVPR 2021, sections 3.2 and 3.3; Zhou et al., MEMO, ICLR 2023, section 4. The auxiliary
    head is the strategy's.
    """

    head: LinearHead

    def __init__(
        self, make_backbone: Callable[[], nn.Module], normalise: nn.Module | None = None, specialised: int | None = None
    ) -> None:
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.shared = nn.Sequential()
        self.branches: Any = nn.ModuleList()
        self.head = LinearHead(0)
        self._make_backbone = make_backbone
        self._specialised = specialised
        self._shared_parameters = 0

    def add_branch(self) -> None:
        """Append a fresh branch, freeze the others (evaluation mode for good), let the head see its features."""
        for branch in self.branches:
            freeze(branch)
        made: Any = self._make_backbone().to(self.head.weight.device).train(self.training)
        if self._specialised is not None:
            charged = made.survey_parameters
            shared, made = made.cut(self._specialised)
            if not self.branches:
                self.shared = shared
                self._shared_parameters = charged - made.survey_parameters
        self.branches.append(made)
        self.head.grow_inputs(self.branch_dim)

    def copy_branch(self, source: int, target: int) -> None:
        """Give branch ``target`` the parameters and buffers of branch ``source``; negative numbers count from the end.

        Directly after ``add_branch``, ``copy_branch(-2, -1)`` starts the new branch where the last one ended.
        """
        self.branches[target].load_state_dict(self.branches[source].state_dict())

    def forward(self, images: Tensor) -> Output:
        """Float images (N, C, H, W) in [0, 1] to logits, features (N, b d) oldest branch first, and the last stages."""
        if not self.branches:
            raise ShapeError("a branching network without branches cannot see; call add_branch first")
        x = self.normalise(images)
        maps = []
        for part in self.shared:
            x = part(x)
            maps.append(x)
        with torch.set_grad_enabled(x.requires_grad):  # frozen branches pass gradients on to a shared part that learns
            parts = [branch(x)[0] for branch in self.branches[:-1]]
        last, stages = self.branches[-1](x)
        features = torch.cat([*parts, last], dim=1)
        return Output(self.head(features), features, (*maps[1:], *stages))  # maps[0] is the stem's

    @property
    def branch_dim(self) -> int:
        """d of the last branch: ``features[:, -branch_dim:]`` are what an auxiliary head sees."""
        return int(self.branches[-1].feature_dim)

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: those of all branches, and once those of the shared part."""
        return self._shared_parameters + sum(int(branch.survey_parameters) for branch in self.branches)
