"""Threads of this process, and how long they spin: to be set before torch is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int = 1) -> int:
    """CPU threads of each of ``jobs`` parallel runs, unless ``trainer.threads`` says otherwise."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given) if given.isdigit() else cores() // jobs)


@contextmanager
def in_environment(**values: str) -> Iterator[None]:
    """Variables of the environment for a while: processes that are started see them too."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def prepare(overrides: Sequence[str] = (), jobs: int = 1) -> None:
    """Set up this process. What the caller's environment says already goes before."""
    threads = next((found[1] for item in overrides if (found := re.fullmatch(r"trainer\.threads=(\d+)", item))), None)
    os.environ.setdefault("OMP_NUM_THREADS", threads or str(threads_of(jobs)))
    limit_spinning()


def limit_spinning() -> None:
    """Let threads that wait spin shortly.

    A barrier of OpenMP spins, which makes two threads four to seven times slower than one as soon as anything else
    runs; a short spin costs little when nothing does.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
