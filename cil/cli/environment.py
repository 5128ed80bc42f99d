"""What must be set before torch is imported: threads, how long they spin, and when memory is given back."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Sequence

LARGE = 1 << 30  # bytes; a block below it is kept for the next step instead of going back to the system


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int = 1) -> int:
    """CPU threads of each of ``jobs`` parallel runs, unless ``trainer.threads`` says otherwise."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given) if given.isdigit() else cores() // jobs)


def prepare(overrides: Sequence[str] = (), jobs: int = 1) -> None:
    """Set up this process. What the caller's environment says already goes before.

    A barrier of OpenMP spins, which makes two threads four to seven times slower than one as soon as anything else
    runs; a short spin costs little when nothing does. Blocks of memory that are given back and asked for again at each
    step cost a tenth of the time of small networks in fp32.
    """
    threads = next((found[1] for item in overrides if (found := re.fullmatch(r"trainer\.threads=(\d+)", item))), None)
    os.environ.setdefault("OMP_NUM_THREADS", threads or str(threads_of(jobs)))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # the C library has read its environment already
        if mallopt is not None:
            mallopt(-3, LARGE)  # M_MMAP_THRESHOLD
            mallopt(-1, LARGE)  # M_TRIM_THRESHOLD
