"""Keyed randomness: a place in the run says what is drawn there, and nothing else does."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as some

from cil.engine.keys import generator, key, reseed

PARTS = some.lists(some.one_of(some.integers(0, 10_000), some.text("abcdefgh", min_size=1)), min_size=1, max_size=5)


@given(seed=some.integers(0, 2**31), parts=PARTS)
def test_a_key_is_a_number_that_every_generator_takes(seed, parts):
    number = key(seed, *parts)
    assert 0 <= number < 2**63
    assert number == key(seed, *parts)


def test_a_key_is_the_same_on_every_machine():
    # by hand: the first eight bytes of BLAKE2b of "7/order/0", big-endian, halved
    assert key(7, "order", 0) == 3760711855866516816


@given(seed=some.integers(0, 1000), parts=PARTS, place=some.integers(0, 4))
def test_every_part_counts(seed, parts, place):
    other = [*parts]
    other[place % len(parts)] = f"{other[place % len(parts)]}x"
    assert len({key(seed, *parts), key(seed + 1, *parts), key(seed, *other), key(seed, *parts, 0)}) == 4


def test_keys_of_neighbouring_places_do_not_meet():
    places = {key(seed, "step", a, b, c) for seed in range(3) for a in range(10) for b in range(10) for c in range(10)}
    assert len(places) == 3000


def test_a_generator_draws_the_same_whatever_was_drawn_elsewhere():
    first = torch.rand(5, generator=generator(0, "order", 1))
    torch.rand(100)
    torch.rand(3, generator=generator(0, "order", 0))
    assert torch.equal(torch.rand(5, generator=generator(0, "order", 1)), first)
    assert not torch.equal(torch.rand(5, generator=generator(0, "order", 2)), first)


def test_a_generator_leaves_the_global_ones_alone():
    reseed(1, "here")
    expected = torch.rand(3)
    reseed(1, "here")
    torch.rand(4, generator=generator(0, "elsewhere"))
    assert torch.equal(torch.rand(3), expected)


def test_reseeding_keys_every_global_generator():
    def draws():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

    reseed(1, "step", 3)
    first = draws()
    draws()
    reseed(1, "step", 3)
    assert draws() == first
    reseed(1, "step", 4)
    others = draws()
    assert all(one != other for one, other in zip(first, others, strict=True))
