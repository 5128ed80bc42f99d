"""How long a step takes, told before training."""

from __future__ import annotations

import pytest
from toys import plain

from cil.engine import timed_step


@pytest.mark.parametrize(("first", "seconds", "timed"), [(2.0, 16.0, [(4, 1)]), (0.5, 3.0, [(4, 1), (32, 3)])])
def test_a_few_images_stand_for_a_batch_of_a_large_network_alone(first, seconds, timed, monkeypatch):
    asked = []

    def fastest(learner, phase, recipe, steps):
        asked.append((recipe.batch_size, steps))
        return first if recipe.batch_size == 4 else 3.0

    monkeypatch.setattr(timed_step, "_fastest", fastest)
    assert timed_step._of_batch(None, None, plain(batch_size=32)) == seconds
    assert asked == timed
