"""Many runs side by side from Python: what ``cil compare`` does, without a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cil.api import MakeStrategy, Model, plan_training
from cil.cli.compare import look_ahead, prepare, records_of, run_queue, write_report
from cil.cli.pool import QueuedRun
from cil.data.samples import itself
from cil.engine.driver import Run
from cil.errors import ConfigError
from cil.memory import Budget
from cil.report import Table, table
from cil.report.page import html, refuse_foreign_report, write_page
from cil.strategies import Strategy
from cil.streams import Stream
from cil.tracking import Record, plain
from cil.tracking.lines import frame


@dataclass(frozen=True)
class Comparison:
    """The outcome of ``compare``. Printed, it is the table.

    Attributes:
        records: Those that the runs left, failed ones too.
        failed: One line for each run that failed or was killed: its cause, and where its log lies.
        text: The table, for a terminal; of a dry run what the runs will take.
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

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all tables, numbers unrounded, None where undefined; keys are the columns of ``table.csv``."""
        return [plain(entry) for section in self.table.sections for entry in section.entries]

    @property
    def areas(self) -> list[dict[str, Any]]:
        """Where there are several budgets in bytes: accuracy at each, ``auc_a`` and ``auc_l`` of each strategy."""
        curves = [section for section in self.table.sections if "limits" in section.content]
        return [
            {"stream": section.title.partition(":")[0], "limits": list(section.content["limits"]), **plain(row)}
            for section in curves
            for row in section.content["rows"]
        ]

    def frame(self) -> Any:
        """The rows as a ``pandas.DataFrame``.

        Raises:
            MissingPackage: if pandas is not installed (the extra ``cil[frames]``).
        """
        return frame(self.rows)

    def write_page(self, path: str | Path, title: str = "Comparison") -> Path:
        """Write the page to another place, under another title."""
        return write_page(html(self.table, title), path)

    def __str__(self) -> str:
        return "\n".join([self.text, *self.failed])


def compare(
    strategies: Sequence[str | type[Strategy] | MakeStrategy],
    stream: Stream | Sequence[Stream],
    model: Model = "resnet20",
    budget: Budget | Sequence[Budget] | None = None,
    *,
    seeds: Sequence[int] = (0,),
    out: str | Path = "runs/compare",
    jobs: int = 1,
    dry_run: bool = False,
    **given: Any,
) -> Comparison:
    """Train strategies side by side; then one table and one page. Called again, it goes on with what is not finished.

    Args:
        strategies: Names, classes or partials, as ``cil.train`` takes them.
        stream: One, or several: every strategy learns each.
        model: As for ``cil.train``.
        budget: One for all, or several: every strategy is trained under each. Several in bytes make a curve:
            ``[Budget(limits=[size]) for size in sizes]``.
        seeds: Every strategy is trained with each.
        out: Folder of the runs, the table and the page.
        jobs: Runs at a time, a process each.
        dry_run: Train nothing; ``text`` says how many runs there are, and what time, disk and memory they will take.
        given: The other arguments of ``cil.train``, the same for all runs. ``reuse``, the folder of first phases that
            runs share, is ``phases`` in ``out`` where it is ``auto``, the default; None: each trains its own.

    Raises:
        ConfigError: for whatever is wrong with a run, before any is trained.
        KeyboardInterrupt: after a Ctrl-C; what was computed is in ``out``.
    """
    if "run_dir" in given:
        raise ConfigError("run_dir is of cil.train; here every run has a folder of its own, under out")
    if isinstance(strategies, str) or callable(strategies):
        raise ConfigError(f"strategies is {strategies!r}; cil.compare takes a list of them")
    quiet, out = not given.pop("progress", True), Path(out)
    refuse_foreign_report(out)
    budgets = [budget] if isinstance(budget, Budget) or budget is None else list(budget)
    streams = [stream] if isinstance(stream, Stream) else list(stream)
    for name, values in {"strategies": strategies, "stream": streams, "budget": budgets, "seeds": seeds}.items():
        if not values:
            raise ConfigError(f"{name} is empty, so there is nothing to compare; name one or more")
    shared = {"threads": 1, "reuse": "auto", **given}
    if shared["reuse"] == "auto":
        shared["reuse"] = out / "phases"
    torch.set_num_threads(1)  # this process forks: it must have started no threads of its own
    runs: dict[Path, tuple[str, Run]] = {}
    for where in streams:
        for strategy in strategies:
            for one in budgets:
                for seed in seeds:
                    run = plan_training(strategy, where, model, one, seed=seed, root=out, **shared)
                    runs.setdefault(Path(run.run_dir), (_label(run), run))
    if dry_run:
        return Comparison((), (), look_ahead(runs, jobs, out)[0], out / "index.html")
    prepare(runs, jobs, out, quiet)
    queued = [QueuedRun(label, path, partial(itself, run)) for path, (label, run) in runs.items()]
    ends = run_queue(queued, [run for _, run in runs.values()], jobs, quiet)
    records = records_of(ends)
    failed = tuple(end.failure for end in ends if end.bad)
    text = write_report(records, out, f"compare: {out.name}") if records else ""
    return Comparison(tuple(records), failed, text, out / "index.html")


def _label(run: Run) -> str:
    budget: Mapping[str, Any] = run.identity["budget"]
    size = (budget.get("limits") or [budget.get("exemplars") or budget.get("per_class") or ""])[-1]
    name = run.identity["stream"]["name"]
    return f"{run.name}, seed={run.options.seed}, {f'{size:,} ' if size else ''}{budget['kind']}, {name}"
