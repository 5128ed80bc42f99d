"""Classifier alignment: a head learns once more, on Gaussian samples of the features of all classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Samples
from cil.memory import Prototypes, feature_samples


def gaussian_samples(
    gaussians: Prototypes,
    generator: torch.Generator,
    *,
    count: int,
    epochs: int,
    scales: Tensor,
    whole: bool = False,
    jitter: float = 0.0,
) -> Samples:
    """``count`` samples a class and epoch: ``extras["features"]`` is (N, epochs, D), one column for each epoch.

    Args:
        gaussians: A mean and a covariance for each class.
        generator: On the CPU.
        scales: (C,) factors of the means; of the samples themselves where ``whole`` says so.
        jitter: See ``Prototypes.draw``.
    """
    known = gaussians.counts.nonzero().flatten()
    slots = known.repeat_interleave(count * epochs)
    drawn = gaussians.draw(slots, generator, jitter)
    factors = scales.to(drawn)[:, None]
    drawn = drawn * factors[slots] if whole else drawn + ((factors - 1) * gaussians.means)[slots]
    return feature_samples({"features": drawn.unflatten(0, (-1, epochs))}, known.repeat_interleave(count))


def mean_logit_norm(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """(N, 1) mean over experiences of the norm of their logits.

    Args:
        logits: (N, C).
        sizes: New classes of each experience, C in all.

    Source: Zhang et al., "SLCA", ICCV 2023, equation 6.

    >>> mean_logit_norm(torch.tensor([[3.0, 4.0, 1.0]]), [2, 0, 1]).item()
    3.0
    """
    parts = [part.norm(dim=1, keepdim=True) + 1e-7 for part in logits.split(list(sizes), dim=1) if part.shape[1]]
    return torch.cat(parts, dim=1).mean(1, keepdim=True)


def reverse_cross_entropy(logits: Tensor, slots: Tensor, floor: float = 1e-4) -> Tensor:
    """Mean of -sum_c p_c log(max(onehot_c, floor)): what the prediction expects of the label.

    Source: Wang et al., "Symmetric cross entropy", ICCV 2019, equation 5.

    >>> reverse_cross_entropy(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0])).item()  # doctest: +ELLIPSIS
    2.76310...
    """
    target = F.one_hot(slots, logits.shape[1]).to(logits).clamp(min=floor)
    return -(logits.softmax(1) * target.log()).sum(1).mean()
