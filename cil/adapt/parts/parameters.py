"""Parameters as one vector, and a teacher that follows its student slowly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in order, (P,); gradients pass through."""
    return torch.cat([tensor.flatten() for tensor in tensors])


@torch.no_grad()
def assign(tensors: Sequence[Tensor], values: Tensor) -> None:
    """Give tensors the values of a vector (P,), in place."""
    parts = values.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


@torch.no_grad()
def move_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, all parameters, in place; buffers stay."""
    for own, new in zip(teacher.parameters(), student.parameters(), strict=True):
        own.lerp_(new, 1 - momentum)
