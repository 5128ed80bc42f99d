"""Tensors bit by bit: their bytes, whether two are the same, their SHA-256.

Bits tell -0.0 from 0.0, and find a NaN equal to itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's values, whatever its layout and device: (B,) uint8 on the CPU."""
    return _raw(tensor).cpu()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """True for tensors of the same shape, type and bits."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_raw(one), _raw(other).to(one.device))


def _raw(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes in order of name; of a meta tensor, which has no values, over its name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        if not tensor.is_meta:
            digest.update(bits(tensor).numpy().data)
    return digest.hexdigest()
