"""Entropy and cross-entropy in nats, their mean over chosen images, and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def entropy(logits: Tensor) -> Tensor:
    """H(p) of each row, p = softmax: (N, K) to (N,), in [0, ln K].

    >>> [round(value, 4) for value in entropy(torch.tensor([[0.0, 0.0], [50.0, 0.0]])).tolist()]
    [0.6931, 0.0]
    """
    return cross_entropy(logits, logits)


def cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """-sum_k softmax(target)_k log softmax(logits)_k of each row: (N, K) twice to (N,)."""
    return -(target.float().softmax(1) * logits.float().log_softmax(1)).sum(1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values (..., N) where the (N,) ``mask`` is true, over N; not a number where it is never true.

    >>> mean_where(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]))
    tensor(3.5000)
    """
    return (values * mask).sum(-1) / mask.sum()


def any_true(mask: Tensor) -> bool:
    """True if a mask is true anywhere; also on ``meta``, where there are no values."""
    return mask.is_meta or bool(mask.any())


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of a loss for parameters, zeros where it does not depend on one; no ``grad`` is filled."""
    return list(torch.autograd.grad(loss, list(parameters), materialize_grads=True))
