"""Many runs side by side from Python: what ``cil compare`` does, without a command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cil.api import MakeStrategy, Model, plan_training
from cil.cli.compare import records_of, write_report
from cil.cli.pool import QueuedRun, RunEnd, run_all
from cil.cli.progress_screen import ProgressScreen
from cil.cli.reuse import take_over
from cil.engine.driver import Run
from cil.errors import ConfigError
from cil.memory import Budget
from cil.report import Table, table
from cil.report.page import refuse_foreign_report
from cil.strategies import Strategy
from cil.streams import Stream
from cil.tracking import Record


@dataclass(frozen=True)
class Comparison:
    """The outcome of ``compare``. Printed, it is the table.

    Attributes:
        records: Those that the runs left, failed ones too.
        failed: One line for each run that failed or was killed.
        text: The table, for a terminal.
        page: The page; beside it lie ``table.csv`` and ``table.md``.
    """

    records: tuple[Record, ...]
    failed: tuple[str, ...]
    text: str
    page: Path

    @property
    def table(self) -> Table:
        """The table as an object."""
        return table(self.records)

    def __str__(self) -> str:
        return "\n".join([self.text, *self.failed])


def compare(
    strategies: Sequence[str | type[Strategy] | MakeStrategy],
    stream: Stream,
    model: Model = "resnet20",
    budget: Budget | Sequence[Budget] | None = None,
    *,
    seeds: Sequence[int] = (0,),
    out: str | Path = "runs/compare",
    jobs: int = 1,
    **given: Any,
) -> Comparison:
    """Train strategies side by side; then one table and one page. Called again, it goes on with what is not finished.

    Args:
        strategies: Names, classes or partials, as ``cil.train`` takes them.
        stream, model: As for ``cil.train``.
        budget: One for all, or several: every strategy is trained under each.
        seeds: Every strategy is trained with each.
        out: Folder of the runs, the table and the page.
        jobs: Runs at a time, a process each.
        given: The other arguments of ``cil.train``, the same for all runs.

    Raises:
        ConfigError: for whatever is wrong with a run, before any is trained.
        KeyboardInterrupt: after a Ctrl-C; what was computed is in ``out``.
    """
    if "run_dir" in given:
        raise ConfigError("run_dir is of cil.train; here every run has a folder of its own, under out")
    refuse_foreign_report(Path(out))
    quiet = not given.pop("progress", True)
    budgets = [budget] if isinstance(budget, Budget) or budget is None else list(budget)
    runs: dict[Path, Run] = {}
    for strategy in strategies:
        for one in budgets:
            for seed in seeds:
                run = plan_training(strategy, stream, model, one, seed=seed, root=out, **{"threads": 1, **given})
                runs.setdefault(Path(run.run_dir), run)
    take_over({path: run.identity for path, run in runs.items()}, Path(out))
    queued = [QueuedRun(_label(run), path, partial(_itself, run)) for path, run in runs.items()]
    torch.set_num_threads(1)  # this process forks: it must have started no threads of its own
    fork = sys.platform == "linux" and all(run.runtime.device == "cpu" for run in runs.values())
    ends = run_all(queued, jobs if fork else 1, fork=fork, screen=ProgressScreen(len(queued), quiet))
    return _comparison(ends, Path(out))


def _comparison(ends: Sequence[RunEnd], out: Path) -> Comparison:
    records = records_of(ends)
    failed = tuple(f"{end.run.label}: {end.status}: {end.error}" for end in ends if end.bad)
    text = write_report(records, out, f"compare: {out.name}") if records else ""
    return Comparison(tuple(records), failed, text, out / "index.html")


def _label(run: Run) -> str:
    budget: Mapping[str, Any] = run.identity["budget"]
    return f"{run.name}, seed={run.options.seed}, {budget['kind']}"


def _itself(run: Run) -> Run:
    return run
