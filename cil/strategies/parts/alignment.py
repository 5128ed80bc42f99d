"""Classifier alignment: a head learns once more, on Gaussian samples of the features of all classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Batch, Samples
from cil.memory import Prototypes, feature_samples, tensor_bytes
from cil.models.base import in_full_precision
from cil.strategies.base import Strategy, check
from cil.strategies.parts.setup_warnings import method_name


def alignment_rows(gaussians: Prototypes, count: int) -> Samples:
    """``count`` samples of each class that has statistics: ``extras["rows"]`` are their rows of ``draw_all``."""
    known = gaussians.counts.nonzero().flatten().cpu()
    rows = known[:, None] * count + torch.arange(count)
    return feature_samples({"rows": rows.flatten()}, known.repeat_interleave(count))


@torch.no_grad()
def draw_all(
    gaussians: Prototypes,
    generator: torch.Generator,
    *,
    count: int,
    scales: Tensor,
    whole: bool = False,
    jitter: float = 0.0,
) -> Tensor:
    """(C count, D) features: ``count`` samples of each class, one class after the other; 0 without statistics.

    Args:
        gaussians: A mean and a covariance for each class.
        generator: On the CPU.
        scales: (C,) factors of the means; (C, count) of the samples themselves where ``whole`` says so.
        jitter: Added to all variances.
    """
    means = gaussians.means
    drawn = means.new_zeros(len(means), count, means.shape[1])
    for slot in gaussians.counts.nonzero().flatten().tolist():
        noise = torch.randn(count, means.shape[1], generator=generator).to(means)
        with in_full_precision(noise):
            noise = noise @ covariance_root(gaussians, slot, jitter).T
        factor = scales[slot].to(means)
        drawn[slot] = factor[:, None] * (means[slot] + noise) if whole else factor * means[slot] + noise
    return drawn.flatten(0, 1)


def covariance_root(gaussians: Prototypes, slot: int, jitter: float) -> Tensor:
    """(D, D) R with R R' the covariance of a class, and ``jitter`` more on its diagonal."""
    matrix = gaussians.covariance(slot).double()
    matrix.diagonal().add_(jitter)
    root, broken = torch.linalg.cholesky_ex(matrix)
    return gaussians.root(slot, jitter) if bool(broken) else root.to(gaussians.means)


class GaussianAlignment(Strategy):
    """Keeps a Gaussian of each class, on whose samples a head learns once more.

    Attributes:
        drawn: Samples of an epoch, (C n, D), there from before the phase on, so that they are billed.
        drawn_in: The epoch of these, -1 at first; kept for training, so that an interruption draws nothing twice.
        align_samples: n.
    """

    same_draws = True  # of an epoch: they are of no rows of the batch
    gaussians: Prototypes
    drawn: Tensor
    drawn_in: int
    align_samples: int

    def keep_gaussians(self, like: Tensor, width: int, covariance: str, rank: int) -> None:
        """Keep them on the device of ``like``, of features of D = ``width``."""
        check.one_of(("full", "low_rank", "diagonal", "tied"), method_name(self), covariance=covariance)
        gaussians = Prototypes(width, covariance, rank if covariance == "low_rank" else 1)
        self.keep("gaussians", gaussians.to(like.device), kind="statistics")
        self.keep("drawn", None, kind="temporary")
        self.keep("drawn_in", -1, lifetime="training")

    def side_bytes(self) -> int:
        """Statistics go by ``covariance``."""
        return sum(map(tensor_bytes, self.gaussians.state_dict().values()))

    def alignment_set(self) -> Samples:
        """Samples of the phase, with room for what is drawn."""
        means = self.gaussians.means
        self.drawn = means.new_zeros(len(means) * self.align_samples, means.shape[1])
        return alignment_rows(self.gaussians, self.align_samples)

    def draw_samples(self, epoch: int) -> Tensor:
        """What ``draw_all`` gives for an epoch."""
        raise NotImplementedError


def epoch_features(learner: GaussianAlignment, batch: Batch) -> Tensor:
    """(N, D) features of a batch of ``alignment_rows``: all are drawn anew with the first batch of an epoch."""
    epoch = learner.progress.epoch
    if learner.drawn_in != epoch:
        with learner.context.flops.counting():
            learner.drawn = learner.draw_samples(epoch)
        learner.drawn_in = epoch
    return learner.drawn[batch.extras["rows"]]


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
