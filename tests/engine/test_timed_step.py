"""How long a step takes, told before training."""

from __future__ import annotations

import types

import pytest
import torch
from toys import plain

from cil.engine import timed_step


@pytest.mark.parametrize(("batch", "sizes", "seconds", "timed"), [
    (32, {4: 2.0}, 16.0, [(4, 1)]),
    (32, {4: 0.5, 32: 3.0}, 3.0, [(4, 1), (32, 3)]),
    (128, {4: 0.5, 32: 3.0}, 12.0, [(4, 1), (32, 3)]),
    (128, {4: 0.1, 32: 0.2, 128: 0.7}, 0.7, [(4, 1), (32, 3), (128, 1)]),
], ids=["large network", "small batch", "large batch", "large batch of a small network"])  # fmt: skip
def test_some_images_stand_for_a_batch_that_takes_long(batch, sizes, seconds, timed, monkeypatch):
    asked = []

    def fastest(learner, phase, recipe, steps):
        asked.append((recipe.batch_size, steps))
        return sizes[recipe.batch_size]

    monkeypatch.setattr(timed_step, "_fastest", fastest)
    assert (
        timed_step._of_batch(types.SimpleNamespace(device=torch.device("cpu")), None, plain(batch_size=batch))
        == seconds
    )
    assert asked == timed
