"""Importance of weights, and the quadratic pull towards their old values: EWC, SI, MAS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from cil.data import Batch


def quadratic_penalty(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], importance: Mapping[str, Tensor]
) -> Tensor:
    """sum_j importance_j (theta_j - anchor_j)^2, over the part of each tensor that the anchor has.

    Source: the penalty of EWC (equation 3 of Kirkpatrick et al.), SI (equation 4 of Zenke et al.) and MAS.
    """
    total: Tensor | None = None
    for name, old in anchor.items():
        term = (old_part(importance[name], old) * (old_part(parameters[name], old) - old).square()).sum()
        total = term if total is None else total + term
    return torch.zeros(()) if total is None else total


def learning_parameters(net: nn.Module, head: bool = True) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; those of the head only if ``head``."""
    return {n: p for n, p in net.named_parameters() if p.requires_grad and (head or not n.startswith("head."))}


def snapshot(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the values, without graph."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


def old_part(larger: Tensor, old: Tensor) -> Tensor:
    """View of a grown tensor with the shape of ``old``: the old rows of a head."""
    return larger[tuple(map(slice, old.shape))]


def padded_to(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values held so far, padded with zeros to the shapes of the grown weights."""
    larger = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, old in held.items():
        old_part(larger[name], old).copy_(old)
    return larger


def sum_of_gradients(
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    objective: Callable[[Batch], Tensor],
    function: Callable[[Tensor], Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Sum over batches of a function of each weight's gradient of ``objective``, and the number of batches."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = 0
    for batch in batches:
        gradients = torch.autograd.grad(objective(batch), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            total[name] += function(gradient)
        count += 1
    return total, count
