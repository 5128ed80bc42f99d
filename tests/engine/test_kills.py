"""Runs that are killed end, once they are started again, where straight runs end. At length: ``kill_runs.py``."""

from __future__ import annotations

import random

import pytest
from kill_runs import kill_and_resume, prepare


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What is imported late is imported, so that the time of a straight run tells that of the others."""
    prepare("finetune", tmp_path_factory.mktemp("warm")).execute()


@pytest.mark.parametrize("strategy", ["icarl", "der", "ewc"])
def test_a_run_that_is_killed_ends_as_the_straight_one(strategy):
    killed = kill_and_resume(strategy, 2, random.Random(strategy))
    assert killed.kills == len(killed.places) <= 2
