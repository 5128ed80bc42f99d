"""Source: the trained network as it is, which every method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from cil.adapt.base import Adapter, Source
from cil.adapt.parts import frozen
from cil.adapt.registry import register


@register("source")
class SourceOnly(Adapter):
    """No adaptation: evaluation mode, the statistics of the source data.

    Source:
        The baseline of all papers on test-time adaptation.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        frozen(self.net)

    @torch.no_grad()
    def adapt_and_predict(self, images: Tensor) -> Tensor:
        return self.logits(images)
