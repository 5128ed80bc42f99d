"""Source: the trained network as it is, the baseline of every method."""

from __future__ import annotations

import torch
from torch import Tensor

from cil.adapt.base import Adapter, SourceModel
from cil.adapt.parts.norms import freeze_reversibly
from cil.adapt.registry import register


@register("source")
class SourceOnly(Adapter):
    """No adaptation: evaluation mode, the statistics of the source data.

    Source:
        The baseline of all papers on test-time adaptation.
    """

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        freeze_reversibly(self.net)

    @torch.no_grad()
    def adapt_and_predict(self, images: Tensor) -> Tensor:
        return self.logits(images)
