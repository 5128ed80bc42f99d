"""``cil run``: one run, or with ``--multirun`` one after the other by Hydra's launchers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.compose import Job, application
from cil.cli.schema import check
from cil.errors import CilError

if TYPE_CHECKING:
    from cil.engine.adaptation import AdaptationRun
    from cil.engine.run import Run
    from cil.tracking import Record

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

  --dry-run      what would be carried after each experience; trains nothing
  --cfg job      the whole configuration, composed; with --package trainer a part of it
  --multirun     one run for each value of a list, as in seed=0,1,2
  --info         how the configuration was composed: defaults, searchpath, plugins
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    dry, rest = "--dry-run" in arguments, [item for item in arguments if item != "--dry-run"]
    multirun = bool({"-m", "--multirun"} & set(rest)) or "hydra.mode=MULTIRUN" in rest
    parallel = multirun and any(item.startswith("hydra/launcher=joblib") for item in rest)
    environment.prepare(rest, environment.cores() if parallel else 1)
    if multirun and not dry:
        return launched(rest)
    jobs: list[Job] = []
    application(rest, jobs.append)
    for job in jobs:
        check(job.config)  # before torch is imported
        print(_bill(job) if dry else executed(job))
    return 0


def executed(job: Job) -> str:
    """Run a job to its end; a summary."""
    from cil.cli.build import build

    run = build(job)
    tell_notes([run])
    before = _status(run)
    try:
        record = run.execute()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was computed is in {run.run_dir}; the same command goes on from there") from None
    return summary(record, "  (was finished before, nothing was run)" if before == "finished" else "")


def launched(arguments: Sequence[str], root: str = "runs") -> int:
    """Let Hydra's launcher do the jobs; 1 where one failed."""
    failed: list[str] = []
    application(arguments, partial(_one_of_many, root, failed, os.getpid()))
    return 1 if failed else 0


def _one_of_many(root: str, failed: list[str], here: int, job: Job) -> None:
    """A job of a multirun, perhaps in another process. Its error is told at once, and the others go on."""
    from cil.cli.build import build

    try:
        check(job.config)
        run = build(job, root=root, progress=False)
        tell_notes([run])
        record = run.execute()
        print(summary(record), flush=True)
    except CilError as error:
        print(f"cil: {' '.join(job.overrides)}: {error}", file=sys.stderr, flush=True)
        failed.append(str(error))
        if os.getpid() != here:  # the launcher must be told
            raise


def tell_notes(runs: Iterable[Run | AdaptationRun]) -> None:
    """Say, each once, what should be heard before these runs; of those that have finished, nothing."""
    from cil.engine.run import Run

    said: dict[str, None] = {}
    for run in runs:
        with suppress(CilError):  # what is refused is told where the run is executed
            if isinstance(run, Run) and _status(run) != "finished":
                said |= dict.fromkeys(run.notes())
    for note in said:
        print(f"cil: note: {note}", file=sys.stderr, flush=True)


def _status(run: Run | AdaptationRun) -> str | None:
    from cil.tracking import Record, RecordError

    try:
        return Record.load(run.run_dir).status
    except RecordError:
        return None


def _bill(job: Job) -> str:
    if job.config.get("adapter"):
        from cil.cli.adaptation import bill, build_adaptation

        return bill(build_adaptation(job, progress=False))
    from cil.cli.budget import Bills, text

    return text([Bills.of(job)])


def summary(record: Record, note: str = "") -> str:
    """What came out, in a few lines."""
    identity, results = record.identity, record.results
    if identity.get("kind") == "adaptation":
        from cil.cli.adaptation import summary as of_adaptation

        return of_adaptation(record, note)
    if "events" in results:
        return "\n".join(_task_summary(record, note))
    stream, totals = identity["stream"], results["ledger"][-1]["totals"]
    curve = "  ".join("-" if value is None else f"{value:.1f}" for value in results["accuracy_curve"])
    numbers = (
        ("last", "last_accuracy"),
        ("average incremental", "average_incremental_accuracy"),
        ("forgetting", "forgetting"),
    )
    said = "   ".join(f"{name} {_percent(results[key])}" for name, key in numbers)
    return "\n".join(
        [
            f"{identity['strategy']} on {stream['name']}, seed {identity['seed']}: {record.status}{note}",
            f"  accuracy on all classes seen, after each of {stream['experiences']} experiences (%): {curve}",
            f"  {said}",
            f"  carries {totals['exact']['total']:,} bytes, {totals['survey']['total']:,} as the survey counts;"
            f" {results['exemplars'][-1]:,} exemplars; {results['seconds']['total']:.0f} s",
            f"  record: {record.directory}",
        ]
    )


def _task_summary(record: Record, note: str) -> Iterator[str]:
    """Of a stream that tells the task."""
    identity, results = record.identity, record.results
    stream, flops, totals = identity["stream"], results["flops"], results["ledger"][-1]["totals"]["exact"]
    yield f"{identity['strategy']} on {stream['name']}, seed {identity['seed']}: {record.status}{note}"
    for split, errors in results["errors"].items():
        each = "  ".join("-" if value is None else f"{value:.1f}" for value in errors)
        yield f"  error right after each of {len(errors)} events, {split} (%): {each}"
        yield f"  mean error {_percent(results['mean_error'][split])}"
    spent = {name: values[-1] for name, values in flops.items() if name != "total" and values[-1]}
    judged = spent.pop("evaluation", 0)
    parts = ", ".join(f"{name} {count:.2e}" for name, count in spent.items())
    yield f"  operations: {sum(spent.values()):.2e} ({parts}); evaluation on test data {judged:.2e} besides"
    yield (
        f"  {results['peak_parameters']:,} parameters at most; carries {totals['total']:,} bytes;"
        f" {results['exemplars'][-1]:,} exemplars; {results['seconds']['total']:.0f} s"
    )
    yield f"  record: {record.directory}"


def _percent(value: Any) -> str:
    return "-" if value is None else f"{value:.2f} %"
