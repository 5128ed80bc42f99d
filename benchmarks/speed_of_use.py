"""CPU seconds of what a person waits for, each in a process of its own.

    python benchmarks/speed_of_use.py

Children are counted too. The comparison is made once before it is timed, so that nothing is left to train.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
COMPARISON = ("compare", "strategy=finetune,replay", "stream=split_digits", "trainer.max_steps=3", "out=out", "jobs=1")
FIRST_STEP = """
from contextlib import suppress

import cil
from cil.testing.subject import Interruption

with suppress(KeyboardInterrupt):
    stream = cil.class_incremental("digits", increment=2)
    cil.train("finetune", stream, "smallconv", cil.Budget(exemplars=0), recipe=cil.Recipe(log_every=1),
              run_dir="first", loggers=[Interruption(0)])
"""


def seconds(*command: str, folder: str) -> float:
    """User and system seconds of a command and all that it starts.

    Raises:
        RuntimeError: with what it said, where it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table of what was measured beside its limit."""
    cil = ("-m", "cil.cli.main")
    with tempfile.TemporaryDirectory() as folder:
        seconds(*cil, *COMPARISON, folder=folder)
        rows = [
            ("import torch", ("-c", "import torch"), None),
            ("import to the first step", ("-c", FIRST_STEP), 4),
            ("`cil compare`, nothing left to train", (*cil, *COMPARISON), 3),
            ("`cil budget strategy=all`", (*cil, "budget", "strategy=all"), 10),
            ("`cil check finetune`", (*cil, "check", "finetune"), 15),
            ("`cil check icarl`", (*cil, "check", "icarl"), 15),
        ]
        print("| what | CPU seconds | at most |\n| --- | --- | --- |")
        for name, command, limit in rows:
            print(f"| {name} | {seconds(*command, folder=folder):.1f} | {limit or ''} |", flush=True)


if __name__ == "__main__":
    main()
