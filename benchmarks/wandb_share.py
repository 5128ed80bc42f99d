"""What wandb takes of a run: CPU seconds of its calls, of its threads and of its own process, offline.

    python benchmarks/wandb_share.py --seconds 300

Trains for so many seconds, with a line of the log at each step, so that lines reach wandb as often as its logger lets
them pass, and ends the run as Ctrl-C does. CPU seconds are counted where they are spent, not as the difference of two
runs, whose own spread is larger: those of the main thread inside the logger, those of all other threads of the process
(without wandb there are none that work), and those of wandb's own process. Their sum is divided by the seconds of the
run.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import cil
from cil.engine.recipe import Recipe
from cil.tracking.wandb_sink import WandbLogger

METHODS = ("start", "log", "table", "show", "finish")


def timed(spent: dict[str, float], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with its CPU seconds on this thread added up."""

    def call(*given: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*given, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + time.thread_time() - began

    return call


class Clock:
    """A logger that ends the run when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.end, self.lines = time.monotonic() + seconds, 0

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None: ...

    def log(self, kind: str, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        self.lines += 1
        if time.monotonic() > self.end:
            self.end = float("inf")
            raise KeyboardInterrupt

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...

    def finish(self, status: str) -> None: ...


def of_children() -> float:
    """CPU seconds of the processes that this one has started, those that run."""
    spent = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == os.getpid():
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def main() -> None:
    """Train with wandb offline, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument(
        "--epochs", type=int, default=20, help="of an experience; five experiences, unless time is over"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    stream = cil.class_incremental("mnist5k", increment=2)
    spent: dict[str, float] = {}
    logger = WandbLogger()
    for name in METHODS:
        setattr(logger, name, timed(spent, name, getattr(logger, name)))
    began, clock = time.monotonic(), Clock(given.seconds)
    process, thread = time.process_time(), time.thread_time()
    options: dict[str, Any] = {"recipe": Recipe(log_every=1), "epochs": given.epochs, "batch_size": 32, "threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        options |= {"run_dir": folder, "loggers": [logger, clock]}
        with suppress(KeyboardInterrupt):
            cil.train("replay", stream, "smallconv", cil.Budget(exemplars=200), **options)
    seconds = time.monotonic() - began
    in_process, in_thread = time.process_time() - process, time.thread_time() - thread
    taken = {**spent, "its threads": in_process - in_thread, "its process": of_children()}
    total = sum(taken.values())
    print(json.dumps({"seconds": round(seconds, 1), "lines": clock.lines, "cpu_s": round(in_process, 1),
                      **{name: round(value, 3) for name, value in taken.items()}}))  # fmt: skip
    print(f"wandb: {total:.2f} CPU s in a run of {seconds:.0f} s, {100 * total / seconds:.2f} %")


if __name__ == "__main__":
    main()
