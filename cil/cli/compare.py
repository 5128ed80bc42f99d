"""``cil compare``: strategies, seeds and budgets side by side; then one table and one page."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.compose import Job
from cil.cli.grid import Cell, expand
from cil.cli.names import key_of
from cil.errors import CilError, ConfigError

if TYPE_CHECKING:
    from cil.cli.pool import Outcome
    from cil.engine.adaptation import AdaptationRun
    from cil.engine.run import Run
    from cil.tracking import Record

    Plan = Callable[[Cell, int, Path], Run | AdaptationRun]

HELP = """
usage: cil compare [key=value[,value...] ...] [jobs=auto] [out=DIR]

Runs every combination of the values given, one process a core, then prints one table and writes one page. The same
command again goes on with what is not finished. A run that is over its budget, fails or is killed stops no other.

  cil compare experiment=demo strategy=finetune,replay,icarl,joint seed=0,1
  cil compare strategy=all budget=aligned budget.to=der
  cil compare adapter=source,bn_stats,tent stream=cifar10_corrupted model=resnet20 model.weights=FILE seed=0,1
  cil compare strategy=icarl,wa budget.points=[50,100,200] seed=0,1,2 jobs=2 out=results/points

  strategy=all         every strategy that is known; adapter=all: every adapter
  budget.points=[...]  one comparison for each: exemplars, or bytes with budget=bytes
  jobs=N               runs at a time; auto: one a core (on a GPU one), each with cores / jobs threads
  out=DIR              runs, table.csv, table.md and index.html; auto: runs/compare-NAME for experiment=NAME alone,
                       else runs/compare-NAME-1a2b3c, six digits of what was asked for: the same command finds it
"""
NOT_WHAT = ("jobs", "out", "logger", "progress", "data_root", "device")  # say where and how, not what is compared


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    return grid(arguments, "compare")


def grid(arguments: Sequence[str], command: str) -> int:
    """Run every combination and tell what came out; 1 where a run failed or was killed."""
    overrides, own = split_own(arguments)
    cells = expand(overrides)
    jobs = jobs_of(own["jobs"], cells[0].job, len(cells))
    environment.prepare(overrides, jobs)
    out = Path(own["out"] if own["out"] != "auto" else f"runs/{command}-{folder_of(cells[0].job, overrides)}")
    outcomes = run_cells(cells, jobs, out)
    records = [record for outcome in outcomes if (record := record_of(outcome.task.run_dir)) is not None]
    if records:
        print(written(records, out, f"{command}: {_name(cells[0].job)}"))
    bad = [outcome for outcome in outcomes if outcome.status not in ("finished", "over_budget")]
    for outcome in bad:
        print(f"cil: {outcome.task.label}: {outcome.status}: {outcome.error}", file=sys.stderr)
    return 1 if bad else 0


def run_cells(cells: Sequence[Cell], jobs: int, out: Path, plan: Plan | None = None) -> list[Outcome]:
    """Build all runs, so that whatever is wrong is refused before any is trained; then do them.

    Args:
        plan: Cell, jobs and ``out`` to a run, in place of ``planned``; it is pickled where children are not forked.

    Raises:
        ConfigError: naming the cell that is wrong.
    """
    import torch

    from cil.cli.board import Board
    from cil.cli.pool import Task, run_all
    from cil.cli.run import tell_notes

    plan = plan or planned
    runs: dict[Path, tuple[Cell, Run | AdaptationRun]] = {}
    torch.set_num_threads(1)  # this process forks: it must have started no threads of its own
    for cell in cells:
        try:
            run = plan(cell, jobs, out)
        except CilError as error:
            raise type(error)(f"{cell.label}: {error}" if len(cells) > 1 else str(error)) from error
        runs.setdefault(Path(run.run_dir), (cell, run))
    tell_notes(run for _, run in runs.values())
    fork = sys.platform == "linux" and all(run.runtime.device == "cpu" for _, run in runs.values())
    tasks = [
        Task(cell.label, path, partial(_same, run) if fork else partial(plan, cell, jobs, out))
        for path, (cell, run) in runs.items()
    ]
    jobs = 1 if not fork and jobs > 1 and any(run.runtime.device != "cpu" for _, run in runs.values()) else jobs
    quiet = all(cell.job.config["progress"] is False for cell in cells)
    try:
        return run_all(tasks, jobs, fork=fork, board=Board(len(tasks), quiet))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was computed is in {out}; the same command goes on from there") from None


def planned(cell: Cell, jobs: int, out: Path) -> Run | AdaptationRun:
    """The run of one cell, its folder under ``out``."""
    from cil.cli.build import build

    if cell.job.config.get("run_dir") is not None:
        raise ConfigError("run_dir is of cil run; here every run has a folder of its own, under out=DIR")
    return build(cell.job, jobs=jobs, root=out, group=out.name)


def written(records: Sequence[Record], out: Path, title: str) -> str:
    """Write table and page; the table as text."""
    from cil.report import table, to_csv, to_markdown, to_text, write_html

    whole = table(records)
    write_html(records, out / "index.html", title)
    (out / "table.csv").write_text(to_csv(whole), encoding="utf-8")
    (out / "table.md").write_text(to_markdown(whole), encoding="utf-8")
    text = to_text(whole, shutil.get_terminal_size((120, 24)).columns)
    return f"{text.rstrip()}\n\npage: {out / 'index.html'}"


def _same(run: Run | AdaptationRun) -> Run | AdaptationRun:
    return run


def record_of(run_dir: Path) -> Record | None:
    """What a run left, if anything."""
    from cil.tracking import Record, RecordError

    try:
        return Record.load(run_dir)
    except RecordError:  # it failed before there was one
        return None


def split_own(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split off what is not of the configuration."""
    own = {"jobs": "auto", "out": "auto"}
    rest = []
    for item in arguments:
        key, equals, value = item.partition("=")
        if key in own and equals:
            own[key] = value
        elif item.startswith("-"):
            raise ConfigError(f"no option '{item}' here; write key=value, or use cil run for Hydra's options")
        else:
            rest.append(item)
    if own["jobs"] != "auto" and not (own["jobs"].isdigit() and int(own["jobs"]) > 0):
        raise ConfigError(f"jobs is '{own['jobs']}'; it must be auto, or a whole number of 1 or more")
    return rest, own


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
    """The name, and unless an experiment alone was asked for, digits that tell it from others of this name."""
    what = sorted(item for item in overrides if key_of(item).partition(".")[0] not in NOT_WHAT)
    name = _name(job)
    if what in ([], [f"experiment={name}"], [f"+experiment={name}"]):
        return name
    return f"{name}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:6]}"
