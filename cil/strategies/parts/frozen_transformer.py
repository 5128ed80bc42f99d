"""Learners beside a vision transformer that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import loaded_reference
from cil.memory import Budget
from cil.models import Head, NetFactory, TimmBackbone, freeze
from cil.models.block_pass import plain_transformer
from cil.models.known import backbone_output
from cil.models.prompts import vision_transformer
from cil.strategies.base import Strategy
from cil.strategies.parts.setup_warnings import method_name, warn_of_random_weights
from cil.streams import Signature

TOY_TRANSFORMER: Mapping[str, Any] = {
    "name": "timm:vit_tiny_patch16_224",
    "options": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}


class FrozenTransformer(Strategy):
    """A learner whose ``net`` is a head alone, on features of a frozen vision transformer and of what is learned in it.

    The transformer is carried as a reference to public weights where it has some (``model.weights``), and as any other
    tensors where they are random.

    Attributes:
        by_block: True for a method that runs the transformer block by block, so not any of them will do.

    Raises:
        ConfigError: for a backbone that is not a timm vision transformer, or not one of plain blocks.
    """

    toy_model = TOY_TRANSFORMER
    by_block: ClassVar[bool] = True
    net: Head
    vit: TimmBackbone
    normalise: nn.Module
    present: list[int]

    def __init__(self, make_net: NetFactory, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.present = []
        if self.by_block:
            plain_transformer(self.vit, f"strategy {method_name(self)}")

    def build_net(self) -> Head:
        whole = self.make_net()
        vit = freeze(vision_transformer(whole.backbone, f"strategy {method_name(self)}"))
        public = self.make_net.pretrained
        warn_of_random_weights(self)
        self.keep("vit", vit, kind="parameters", reference=None if public is None else loaded_reference(vit, public))
        self.keep("normalise", whole.normalise, kind="parameters")
        return whole.head

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.present = sorted(signature.present)

    def plain_features(self, x: Tensor) -> Tensor:
        """(N, D) of normalised images by the transformer alone, without gradient: the query of prompts."""
        with torch.no_grad():
            found: Tensor = backbone_output(self.vit, x)[0]
            return found

    def local_cross_entropy(self, features: Tensor, slots: Tensor) -> Tensor:
        """Cross-entropy of ``net`` over the classes that have data in the experience: the training mask."""
        here = torch.tensor(self.present, device=features.device)
        return F.cross_entropy(self.net(features)[:, here], torch.searchsorted(here, slots))
