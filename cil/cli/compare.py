"""``cil compare``: strategies, seeds and budgets side by side; then one table and one page."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.arguments import split_jobs_and_out
from cil.cli.grid import Cell, expand
from cil.cli.job import Job
from cil.cli.names import key_of
from cil.errors import CilError, ConfigError

if TYPE_CHECKING:
    from cil.cli.pool import QueuedRun, RunEnd
    from cil.engine.driver import Run
    from cil.tracking import Record

    Plan = Callable[[Cell, int, Path], Run]

HELP = """
usage: cil compare [key=value[,value...] ...] [jobs=auto] [out=DIR] [--dry-run]

Runs every combination of the values given, one process a core, then prints one table and writes one page. The same
command again goes on with what is not finished. A run that is over its budget, fails or is killed stops no other. Runs
that have finished in another folder (under runs/, or beside out) are taken over, not trained again.

  cil compare experiment=demo strategy=finetune,replay,icarl,joint seed=0,1
  cil compare strategy=all budget=aligned budget.to=der
  cil compare adapter=source,bn_stats,tent stream=cifar10_corrupted model=resnet20 model.weights=FILE seed=0,1
  cil compare strategy=icarl,wa budget.points=[50,100,200] seed=0,1,2 jobs=2 out=results/points

  cil compare experiment=survey_aligned scale=small --dry-run

  strategy=all         every strategy that is known; adapter=all: every adapter
  budget.points=[...]  one comparison for each: exemplars, or bytes with budget=bytes
  split=b0_inc5,...    base and increment of a stream of classes
  --dry-run            how many runs, which exist, about what time, disk and memory they take; nothing is trained
  jobs=N               runs at a time; auto: one a core (on a GPU one), each with cores / jobs threads
  out=DIR              runs, table.csv, table.md and index.html; auto: runs/compare-NAME for experiment=NAME alone,
                       else runs/compare-NAME-1a2b3c, six digits of what was asked for: the same command finds it
"""
# say where and how, not what is compared
NOT_COMPARED = ("jobs", "out", "logger", "progress", "data_root", "device", "reuse")


def main(arguments: Sequence[str]) -> int:
    return grid(arguments, "compare")


def grid(arguments: Sequence[str], command: str) -> int:
    """Run every combination and tell what came out; 1 where a run failed or was killed. A dry run looks ahead alone."""
    from cil.report.page import refuse_foreign_report

    dry = "--dry-run" in arguments
    overrides, asked_jobs, asked_out = split_jobs_and_out([item for item in arguments if item != "--dry-run"])
    cells = expand(overrides)
    jobs = jobs_of(asked_jobs, cells[0].job, len(cells))
    environment.prepare(overrides, jobs)
    out = Path(asked_out if asked_out != "auto" else f"runs/{command}-{folder_of(cells[0].job, overrides)}")
    if dry:
        runs = plan_runs(cells, jobs, out)
        print(look_ahead({path: (cell.label, run) for path, (cell, run) in runs.items()}, jobs, out)[0])
        return 0
    refuse_foreign_report(out)
    ends = run_cells(cells, jobs, out)
    if records := records_of(ends):
        again = shlex.join(["cil", command, *arguments])
        first = cells[0].job
        title = f"{command}: {_name(first)}{f', scale={first.scale}' if first.scale else ''}"
        print(write_report(records, out, title, again))
        if others := _others(records, out):
            print(f"also in {out}: {others} of other commands; cil report {out} has all in one table")
    return print_errors(ends)


def _others(records: Sequence[Record], out: Path) -> str:
    """How many runs lie in the folder beside those of the table; empty where there are none."""
    from cil.report.runs import run_directories

    shown = {record.directory.resolve() for record in records}
    count = sum(path.resolve() not in shown for path in run_directories(out))
    return f"{count} run{'s' * (count > 1)}" if count else ""


def run_cells(cells: Sequence[Cell], jobs: int, out: Path, plan: Plan | None = None) -> list[RunEnd]:
    """Build all runs, so that whatever is wrong is refused before any is trained; then do them.

    Args:
        plan: Cell, jobs and ``out`` to a run, in place of ``plan_cell``; it is pickled where children are not forked.
            Without one it is said what they will take, and what has finished elsewhere is taken over.
    """
    from cil.cli.pool import QueuedRun
    from cil.cli.run import print_warnings
    from cil.data.samples import itself
    from cil.tracking import identity_hash

    make = plan or plan_cell
    runs = plan_runs(cells, jobs, out, make)
    quiet = all(cell.job.config["progress"] is False for cell in cells)
    if plan is None:
        prepare({path: (cell.label, run) for path, (cell, run) in runs.items()}, jobs, out, quiet)
    print_warnings(run for _, run in runs.values())
    queued = [
        QueuedRun(
            cell.label,
            path,
            partial(itself, run) if may_fork(run) else partial(make, cell, jobs, out),
            identity_hash(run.identity),
        )
        for path, (cell, run) in runs.items()
    ]
    try:
        return run_queue(queued, [run for _, run in runs.values()], jobs, quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was computed is in {out}; the same command goes on from there") from None


def plan_runs(cells: Sequence[Cell], jobs: int, out: Path, make: Plan | None = None) -> dict[Path, tuple[Cell, Run]]:
    """The runs of all cells, each once, by their folders; an error names its cell."""
    import torch

    make = make or plan_cell
    runs: dict[Path, tuple[Cell, Run]] = {}
    torch.set_num_threads(1)  # this process forks: it must have started no threads of its own
    for cell in cells:
        try:
            run = make(cell, jobs, out)
        except CilError as error:
            raise type(error)(f"{cell.label}: {error}" if len(cells) > 1 else str(error)) from error
        runs.setdefault(Path(run.run_dir), (cell, run))
    return runs


def prepare(runs: Mapping[Path, tuple[str, Run]], jobs: int, out: Path, quiet: bool) -> None:
    """Say what the runs will take, unless all is quiet, and take over what has finished in other folders."""
    from cil.cli.reuse import find_finished, take_over

    identities = {path: run.identity for path, (_, run) in runs.items()}
    if quiet:
        found = find_finished(identities, out)
    else:
        words, found = look_ahead(runs, jobs, out)
        print(words, file=sys.stderr, flush=True)
    take_over(identities, found, out)


def look_ahead(runs: Mapping[Path, tuple[str, Run]], jobs: int, out: Path) -> tuple[str, dict[Path, Path]]:
    """What the runs will take, in words; and those that have finished in other folders."""
    from cil.cli.forecast import forecast
    from cil.cli.reuse import find_finished

    found = find_finished({path: run.identity for path, (_, run) in runs.items()}, out)
    together = jobs if all(may_fork(run) for _, run in runs.values()) else 1
    return "\n".join(forecast(runs, found, out, together).lines()), found


def may_fork(run: Run) -> bool:
    """True for a run on the CPU, which a forked process may do."""
    return sys.platform == "linux" and run.runtime.device == "cpu"


def run_queue(queued: Sequence[QueuedRun], runs: Sequence[Run], jobs: int, quiet: bool) -> list[RunEnd]:
    """Do the runs, several at a time where all are on the CPU."""
    from cil.cli.pool import run_all
    from cil.cli.progress_screen import ProgressScreen

    on_cpu = all(run.runtime.device == "cpu" for run in runs)
    fork = all(map(may_fork, runs))
    return run_all(queued, jobs if on_cpu else 1, fork=fork, screen=ProgressScreen(len(queued), quiet))


def records_of(ends: Sequence[RunEnd]) -> list[Record]:
    """The records that were left, in order."""
    from cil.cli.pool import record_of

    return [record for end in ends if (record := record_of(end.run.run_dir)) is not None]


def print_errors(ends: Sequence[RunEnd]) -> int:
    """Print a line for each run that failed or was killed, with where its log lies; 1 where there is one, else 0."""
    bad = [end for end in ends if end.bad]
    for end in bad:
        print(f"cil: {end.failure}", file=sys.stderr)
    if bad and len(ends) > 1:
        print(f"cil: {len(bad)} of {len(ends)} runs failed; the table is of the others", file=sys.stderr)
    return int(bool(bad))


def plan_cell(cell: Cell, jobs: int, out: Path) -> Run:
    """The run of one cell, its folder under ``out``."""
    from cil.cli.build import build

    if cell.job.config.get("run_dir") is not None:
        raise ConfigError("run_dir is of cil run; here every run has a folder of its own, under out=DIR")
    asked = cell.job.config["reuse"]
    shared = out / "phases" if asked == "auto" else asked
    run = build(cell.job, jobs=jobs, root=out, group=out.name, reuse=shared)
    if run.runtime.all_devices > 1:
        raise ConfigError("runs side by side have one device each; leave out trainer.devices and trainer.nodes")
    return run


def write_report(records: Sequence[Record], out: Path, title: str, command: str | None = None) -> str:
    """Write table and page, which names the command that makes it again; the table as text.

    A page that was made of the same records by the same code is not drawn again.
    """
    from cil.cli.reuse import remarks
    from cil.cli.signed_page import is_current, key_of_page, signed
    from cil.report import table, to_csv, to_markdown, to_text
    from cil.report.page import html, refuse_foreign_report, write_page
    from cil.tracking.storage import IDLE, remove_partial, write_bytes_atomic

    whole = table(records)
    whole = replace(whole, footnotes=(*whole.footnotes, *remarks(out)))
    refuse_foreign_report(out)
    remove_partial(out, IDLE)
    page = out / "index.html"
    key = key_of_page(records, title, command or "", *whole.footnotes)
    if not is_current(page, key):
        write_page(signed(html(whole, title, command), key), page)
    write_bytes_atomic(out / "table.csv", to_csv(whole).encode())
    write_bytes_atomic(out / "table.md", to_markdown(whole).encode())
    text = to_text(whole, shutil.get_terminal_size((120, 24)).columns)
    return f"{text.rstrip()}\n\npage: {page}"


def jobs_of(given: str, job: Job, most: int) -> int:
    """Runs at a time, ``most`` in all: what was given, else as many as there are cores for their threads."""
    if given != "auto":
        return int(given)
    trainer: Mapping[str, Any] = job.config.get("trainer") or {}
    threads = trainer.get("threads")
    each = threads if isinstance(threads, int) and threads > 0 else 1
    return max(1, min(environment.cores() // each, most))


def _name(job: Job) -> str:
    return job.choices.get("experiment") or job.choices["stream"]


def folder_of(job: Job, overrides: Sequence[str]) -> str:
    """Name and scale, and unless an experiment alone was asked for, digits that tell it from others of this name."""
    asked = sorted(item for item in overrides if key_of(item).partition(".")[0] not in NOT_COMPARED)
    name = f"{_name(job)}-{job.scale}" if job.scale else _name(job)
    plain = (f"experiment={_name(job)}", f"scale={job.choices.get('scale')}")
    if all(item.removeprefix("+") in plain for item in asked):
        return name
    return f"{name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:6]}"
