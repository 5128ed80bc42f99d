"""Runs that are killed end, once they are started again, where straight runs end. At length: ``kill_runs.py``."""

from __future__ import annotations

import random

import pytest
from kill_runs import at_any_time, kill_and_resume, soon_after_a_line

from cil.strategies import built_in


@pytest.mark.parametrize("strategy", ["icarl", "der", "ewc"])
def test_a_run_that_is_killed_ends_as_the_straight_one(strategy):
    killed = kill_and_resume(strategy, 2, random.Random(strategy), soon_after_a_line)
    assert killed.kills > 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", built_in())
def test_runs_of_every_strategy_that_are_killed_at_any_time(strategy):
    assert kill_and_resume(strategy, 12, random.Random(f"{strategy} at any time"), at_any_time).kills > 0
