"""Many tensors as one vector, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in order, (P,); gradients pass through."""
    return torch.cat([tensor.flatten() for tensor in tensors])


@torch.no_grad()
def assign(tensors: Sequence[Tensor], values: Tensor) -> None:
    """Give tensors the values of a vector (P,), in place."""
    parts = values.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
