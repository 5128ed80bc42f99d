"""Keyed randomness: every draw comes from a generator named by seed, purpose and place; there is no global stream."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import torch


def key(seed: int, *parts: object) -> int:
    """A 63-bit number that depends on all parts, and on nothing else.

    >>> key(0, "order", 1, 2) == key(0, "order", 1, 2) != key(0, "order", 2, 1)
    True
    """
    return _number(_hash_of(seed, *parts))


def _hash_of(*parts: object) -> blake2b:
    return blake2b("/".join(map(str, parts)).encode(), digest_size=8)


def _number(hashed: blake2b) -> int:
    return int.from_bytes(hashed.digest(), "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """A fresh CPU generator for one purpose at one place."""
    return torch.Generator().manual_seed(key(seed, *parts))


def lent(seed: int, *parts: object) -> Callable[[str], torch.Generator]:
    """``generator`` of a purpose at one place, for a learner: which place, and which seed, is not to be read off it."""
    begun = _hash_of(seed, *parts)

    def keyed(purpose: str) -> torch.Generator:
        own = begun.copy()
        own.update(f"/{purpose}".encode())
        return torch.Generator().manual_seed(_number(own))

    return keyed


def reseed(seed: int, *parts: object) -> None:
    """Key the global generators of torch, numpy and random, for code that draws from them (dropout, say)."""
    seed_all(key(seed, *parts))


def seed_all(number: int) -> None:
    torch.default_generator.manual_seed(number)  # torch.manual_seed asks every backend, 80 microseconds a call
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    random.seed(number)
