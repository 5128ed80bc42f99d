"""From what a learner is lent nothing is to be read that it may not know, and nothing leads to the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from toys import Learner, small_run

from cil.adapt import Adapter
from cil.engine.keys import generator, lent
from cil.engine.runtime import Runtime
from cil.memory import Budget
from cil.testing.shifts import RECIPE, toy_adaptation, toy_shifts


class Reads(Learner):
    """Notes the limits that it can read, and what its backward pass and its draws belong to."""

    seen: ClassVar[list[Any]] = []

    def after_experience(self, experience):
        self.seen.append((self.budget.limits, self.budget.budget.limits))
        for one in (self.context.backward, self.context.generator):
            assert not hasattr(one, "__self__") and not hasattr(one, "args")


def test_limits_of_later_experiences_are_not_lent(tmp_path):
    """As many limits as there are experiences would tell how many come."""
    Reads.seen.clear()
    small_run(Reads, tmp_path, budget=Budget(limits=[9_000, 9_001, 9_002])).execute()
    each = [(9_000,), (9_000, 9_001), (9_000, 9_001, 9_002)]
    assert Reads.seen == [(limits, limits) for limits in each]


def test_lent_draws_are_those_of_their_place_and_do_not_tell_it():
    keyed = lent(3, "adapter", 1, 0)
    for purpose in ("views", "views:rank 1"):
        own, other = (torch.rand(4, generator=one) for one in (keyed(purpose), generator(3, "adapter", 1, 0, purpose)))
        assert torch.equal(own, other)
    assert not hasattr(keyed, "args")


def test_where_losses_are_scaled_they_are_scaled_for_learners_too():
    runtime = Runtime()
    weight = torch.ones(2, requires_grad=True)
    runtime.lent_backward(weight.sum())
    assert torch.equal(weight.grad, torch.ones(2))
    runtime.precision = "fp16"
    assert runtime.lent_backward == runtime.backward


class Honest(Adapter):
    """Answers as its network does."""

    def adapt_and_predict(self, images):
        return self.source_predict(images)


class WhenItIsAsked(Honest):
    """Works when the engine asks what it trains, and what a snapshot holds."""

    images, asked = 12, 0  # each time; how often

    def work(self):
        type(self).asked += 1
        with torch.no_grad():
            self.logits(torch.zeros(self.images, *self.image_shape))

    def trainable(self):
        self.work()
        return super().trainable()

    def full_state(self):
        self.work()
        return super().full_state()


def test_work_that_an_adapter_hides_between_batches_is_billed(tmp_path):
    def spent(kind, steps):
        run = toy_adaptation(kind, toy_shifts(), tmp_path / f"{kind.__name__}-{steps}", recipe=recipe(steps))
        return run.execute().results["flops"]["adapt"][-1]

    def recipe(steps):
        return replace(RECIPE, snapshot_steps=steps)

    each = spent(Honest, None) // 96  # images of four segments, each answered once
    for steps in (None, 1):
        WhenItIsAsked.asked = 0
        assert spent(WhenItIsAsked, steps) == each * (96 + WhenItIsAsked.images * WhenItIsAsked.asked)
        assert WhenItIsAsked.asked >= 12  # batches
