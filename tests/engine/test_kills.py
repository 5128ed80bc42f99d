"""Runs that are killed end, once they are started again, where straight runs end. At length: ``kill_runs.py``."""

from __future__ import annotations

import random

import pytest
from kill_runs import kill_and_resume, soon_after_a_line


@pytest.mark.parametrize("strategy", ["icarl", "der", "ewc"])
def test_a_run_that_is_killed_ends_as_the_straight_one(strategy):
    killed = kill_and_resume(strategy, 2, random.Random(strategy), soon_after_a_line)
    assert killed.kills > 0
