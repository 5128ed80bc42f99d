"""``cil run``: one run, or with ``--multirun`` one after the other by Hydra's launchers."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cil.cli import environment
from cil.cli.compose import application
from cil.cli.job import Job
from cil.cli.ranks import other_ranks
from cil.cli.schema import check
from cil.engine.launched import place_of
from cil.errors import CilError, RankEnded, in_words
from cil.kinds.command_line import find_commands

if TYPE_CHECKING:
    from cil.engine.driver import Run

HELP = """
usage: cil run [key=value ...] [--dry-run] [--cfg job] [--multirun] [--info ...]

Trains one strategy on one stream under one budget, or lets one adapter meet one, and leaves a record. The same command
finds its run again: it goes on where it stood, or says what came out.

  cil run                                          the defaults: icarl on five times two digits of MNIST
  cil run strategy=wa stream=split_cifar100 model=resnet32 budget.exemplars=2000 seed=1
  cil run experiment=demo trainer.max_steps=5      a prepared setting, cut short
  cil run strategy=my_idea:MyStrategy              an own class in ./my_idea.py
  cil run adapter=tent stream=cifar10_corrupted model=resnet20 model.weights=FILE
                                                   a trained network meets test images that shift
  cil run adapter=tent stream=mnist5k_corrupted source=RUN_DIR
                                                   so does what a finished run of any strategy learned, without labels:
                                                   its classes, in any order; adapter=ecotta wants one network of blocks
  cil run budget=aligned budget.to=der --dry-run   the bill alone

  --dry-run      what would be carried after each experience; trains nothing, and reads no weights
  --cfg job      the whole configuration, composed; with --package trainer a part of it
  --config-dir DIR   own files of the configuration, as DIR/experiment/mine.yaml; of every command that has key=value
  --multirun     one run for each value of a list, as in seed=0,1,2
  --info         how the configuration was composed: defaults, searchpath, plugins
"""


def main(arguments: Sequence[str]) -> int:
    dry, rest = "--dry-run" in arguments, [item for item in arguments if item != "--dry-run"]
    multirun = bool({"-m", "--multirun"} & set(rest)) or "hydra.mode=MULTIRUN" in rest
    environment.prepare(rest, environment.cores() if multirun and _by_joblib(rest) else 1)
    if multirun and not dry:
        return launch(rest)
    jobs: list[Job] = []
    application(rest, jobs.append)
    for job in jobs:
        check(job.config)  # before torch is imported
        if summary := _bill(job) if dry else execute(job, arguments):
            print(summary)
    return 0


def _bill(job: Job) -> str:
    from cil.cli.build import build

    run = build(job, progress=False)
    print_warnings([run])
    return find_commands(run.identity["kind"]).bill(run)


def execute(job: Job, arguments: Sequence[str] = ()) -> str:
    """Run a job to its end; a summary, where this process is the first of those that do it.

    Args:
        arguments: The command's, for processes that share the run.
    """
    from cil.cli.build import build
    from cil.tracking.record import reading

    run = build(job)
    if run.runtime.all_devices > 1 and place_of().rank:
        try:  # the part of another rank, which says nothing but what went wrong here
            run.execute()
        except RankEnded:
            raise SystemExit(1) from None  # whoever ended first says why
        return ""
    print_warnings([run])
    note = "  (was finished before, nothing was run)" if run.finished() else ""
    alone = bool(note) or run.runtime.all_devices == 1
    try:
        with nullcontext() if alone else other_ranks(run.runtime, arguments):
            record = run.execute()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was computed is in {run.run_dir}; the same command goes on from there") from None
    with reading(record):
        return find_commands(record.kind).summary(record, note)


def launch(arguments: Sequence[str], root: str = "runs") -> int:
    """Let Hydra's launcher do the jobs; 1 where one failed. Each that did is named.

    Raises:
        KeyboardInterrupt: after a Ctrl-C, with how to go on.
    """
    Path(root).mkdir(parents=True, exist_ok=True)
    failures = Path(tempfile.mkdtemp(prefix=".failures-", dir=root)).resolve()  # which jobs elsewhere reach too
    stop = failures / "stop" if _by_joblib(arguments) else None
    try:
        if not any(item.startswith("hydra.sweep.dir=") for item in arguments):  # for files of Hydra and of launchers
            arguments = [*arguments, "hydra.sweep.dir='{}'".format(root.replace("'", "\\'"))]
        with nullcontext() if stop is None else _saved_first(stop):
            application(arguments, partial(_one_of_many, root, failures, stop, os.getpid()))
    except KeyboardInterrupt:
        others = "" if stop else " (jobs that were handed to a cluster go on by themselves)"
        raise KeyboardInterrupt(
            f"what was computed is in {root}; the same command goes on from there{others}"
        ) from None
    finally:
        failed = [path.read_text(encoding="utf-8") for path in sorted(failures.iterdir()) if path != stop]
        shutil.rmtree(failures, ignore_errors=True)
        for words in filter(None, failed):
            print(f"cil: {words}", file=sys.stderr)
    return 1 if failed else 0


def _by_joblib(arguments: Sequence[str]) -> bool:
    return any(item.startswith("hydra/launcher=joblib") for item in arguments)


@contextmanager
def _saved_first(stop: Path) -> Iterator[None]:
    """At a Ctrl-C, which all processes of a terminal get, wait for the jobs: joblib would kill those that still save.

    Args:
        stop: A file for the jobs to see: no more of them begins.

    Raises:
        KeyboardInterrupt: when the jobs have ended; at once after a second Ctrl-C.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop.touch()
        os.write(2, b"cil: the jobs that run save what they computed; Ctrl-C once more ends them at once\n")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.exists():
        raise KeyboardInterrupt


def _one_of_many(root: str, failures: Path, stop: Path | None, here: int, job: Job) -> None:
    """A job of a multirun, perhaps in another process. Its error is told at once, or left in a file to be told.

    It is not raised: a launcher that is told of an error may stop waiting for the others (submitit does).
    """
    from cil.cli.build import build

    elsewhere = os.getpid() != here
    if stop is not None and elsewhere:  # only a run that trains hears Ctrl-C; all else looks for the file
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if stop is not None and stop.exists():
        return
    try:
        check(job.config)
        run = build(job, root=root, progress=False)
        print_warnings([run])
        if stop is not None and stop.exists():
            return
        record = run.execute()
        print(find_commands(record.kind).summary(record), flush=True)
    except KeyboardInterrupt:
        if stop is None or not elsewhere:
            raise
        stop.touch()
    except Exception as error:
        words = f"{shlex.join(job.overrides)}: {in_words(error)}"
        if not elsewhere:
            print(f"cil: {words}", file=sys.stderr, flush=True)
            words = ""
        with os.fdopen(tempfile.mkstemp(dir=failures)[0], "w", encoding="utf-8") as file:
            file.write(words)


def print_warnings(runs: Iterable[Run]) -> None:
    """Print each once what should be heard before these runs; of those that have finished, nothing."""
    found: dict[str, None] = {}
    for run in runs:
        with suppress(CilError):  # what is refused is told where the run is executed
            if not run.finished():
                found |= dict.fromkeys(run.work.warnings())
    for warning in found:
        print(f"cil: note: {warning}", file=sys.stderr, flush=True)
