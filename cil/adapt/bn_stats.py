"""BN statistics: batch norm uses the mean and variance of the test batch; nothing is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from cil.adapt.base import Adapter, SourceModel, check
from cil.adapt.parts.norms import MixedNorm2d, freeze_reversibly, replace_batch_norms, use_batch_statistics
from cil.adapt.registry import register


@register("bn_stats")
class BatchStatistics(Adapter):
    """Batch norm with the statistics of the test batch, or with a mixture of them and those of the source.

    Nothing passes from one batch to the next. A network without ``BatchNorm2d`` answers as the source does.

    Args:
        alpha: Share of the test batch, in [0, 1], in mean and in variance: (1 - alpha) source + alpha batch. 1 uses the
            batch alone, and the statistics of the source are not even carried; 0.1 suits batches of one image; 0 is
            ``source``.

    Source:
        Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020,
        arXiv:2006.16971, section 3; Nado et al. 2020, arXiv:2006.10963. Departure: the share is given, not computed
        from the size of the batch (N / (n + N) there).
    """

    def __init__(self, source: SourceModel, *, alpha: float = 1.0) -> None:
        super().__init__(source)
        check.between(0, 1, "bn_stats", alpha=alpha)
        freeze_reversibly(self.net)
        if alpha == 1:
            use_batch_statistics(self.net)
        else:
            replace_batch_norms(self.net, lambda norm: MixedNorm2d(norm, alpha))

    @torch.no_grad()
    def adapt_and_predict(self, images: Tensor) -> Tensor:
        return self.logits(images)
