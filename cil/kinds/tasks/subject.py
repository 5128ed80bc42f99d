"""A strategy under test on toy streams that tell the task; the rules are those of class streams."""

from __future__ import annotations

from functools import partial

from cil.kinds.classes.subject import StrategySubject
from cil.testing.toy import long_tasks, toy_tasks


class TaskSubject(StrategySubject):
    """A strategy that is told the task, under test."""

    toy = staticmethod(toy_tasks)
    long = staticmethod(long_tasks)
    uneven = staticmethod(partial(toy_tasks, each=3))
