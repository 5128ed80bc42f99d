"""Runs that several tests look at are done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from recount import recount
from small_runs import STREAMS, Done

from cil.strategies import Strategy
from cil.testing import toy_run

Learn = Callable[..., Done]


def plain_key(strategy: str | type[Strategy]) -> str:
    """Of the run that many tests look at: without options, on the toy stream."""
    return repr((strategy, "toy", []))


@pytest.fixture(scope="session")
def learn(tmp_path_factory) -> Learn:
    """``learn(strategy, stream="toy", **options)``: a run, executed; the options are those of ``toy_run``."""
    done: dict[str, Done] = {}

    def run(strategy: str | type[Strategy], stream: Any = "toy", **options: Any) -> Done:
        key = repr((strategy, stream if isinstance(stream, str) else id(stream), sorted(options.items())))
        if key not in done or not isinstance(strategy, str) or not isinstance(stream, str):
            made = STREAMS[stream]() if isinstance(stream, str) else stream
            new = toy_run(strategy, made, tmp_path_factory.mktemp("run"), keep="all", **options)
            if key == plain_key(strategy):
                found = recount(new)
                done[key] = Done(new, found.record, found)
            else:
                done[key] = Done(new, new.execute())
        return done[key]

    return run
