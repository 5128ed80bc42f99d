"""``cil budget``: the bill before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from cil.cli import environment
from cil.cli.grid import Cell, expand
from cil.cli.job import Job

if TYPE_CHECKING:
    from cil.engine.driver import Run
    from cil.engine.dry_run import Bill
    from cil.engine.learning import StrategyWork

HELP = """
usage: cil budget [key=value ...] [--json]

Who carries how many bytes after each experience, under all conventions, and how many exemplars that leaves; from
structure alone, nothing is trained.

  cil budget strategy=all
  cil budget stream=split_cifar100 model=resnet32 strategy=icarl,der budget=aligned budget.exemplars=2000
  cil budget strategy=all budget=bytes budget.points=[500_000,1_000_000] --json
"""


@dataclass(frozen=True)
class Bills:
    """The bills of one strategy under one budget.

    Attributes:
        bound: True for a strategy that keeps all data, and is not held to the budget.
        over: Why it cannot be trained under this budget; None where it can.
        fitted: What ``budget.fit`` has set, in words; None where it sets nothing.
    """

    label: str
    stream: str
    budget: dict[str, Any]
    bound: bool
    bills: list[Bill]
    over: str | None
    fitted: str | None = None

    @classmethod
    def of(cls, run: Run, label: str | None = None, alone: bool = True) -> Bills:
        """The bills of a run; one of many that cannot work with the model has none and says why."""
        from cil.errors import ConfigError

        work = cast("StrategyWork", run.work)
        head, bound = (label or run.name, work.stream.name, run.identity["budget"]), run.identity["bound"]
        try:
            bills = work.bill
        except ConfigError as error:
            if alone:
                raise
            return cls(*head, False, [], str(error))
        fitted = work.fit.words(head[0]) if work.fit is not None and work.fit.fits else None
        return cls(*head, bound, bills, work.excess(), fitted)


def main(arguments: Sequence[str]) -> int:
    overrides = [item for item in arguments if item != "--json"]
    environment.prepare(overrides)
    jobs: dict[str, Job] = {}  # one for each label: a seed changes no bill
    for cell in expand(overrides):
        varied = {key: value for key, value in cell.varied.items() if key != "seed"}
        jobs.setdefault(Cell(cell.job, varied).label, cell.job)
    found = [_bills(job, label, alone=len(jobs) == 1) for label, job in jobs.items()]
    print(json.dumps([asdict(bills) for bills in found], indent=1) if "--json" in arguments else bills_text(found))
    return 0


def _bills(job: Job, label: str, alone: bool) -> Bills:
    from cil.cli.build import build
    from cil.errors import ConfigError
    from cil.streams.known_shapes import without_images

    if job.learner != "strategy":
        given = f"{job.learner}={job.method}"
        raise ConfigError(f"cil budget is of strategies; cil run {given} ... --dry-run says what it carries")
    return Bills.of(build(job, stream=without_images(job.config["stream"]), progress=False), label, alone)


def bills_text(found: Sequence[Bills]) -> str:
    """Four tables with a column for each experience, and who does not fit."""
    parts = []
    for stream, budget in dict.fromkeys((item.stream, _words(item.budget)) for item in found):
        rows = [item for item in found if (item.stream, _words(item.budget)) == (stream, budget)]
        count = max(len(item.bills) for item in rows)
        parts.append(f"{stream}, {count} experiences; {budget}")
        for title, value in (
            ("exemplars", lambda bill: bill.exemplars),
            ("bytes carried, every byte counted (exact)", lambda bill: bill.total["exact"]),
            ("bytes carried, as the survey counts", lambda bill: bill.total["survey"]),
            ("bytes, as LibContinual counts", lambda bill: bill.total["libcontinual"]),
        ):
            parts.append(_table(f"{title}, after experience", rows, count, value))
        parts += [item.fitted for item in rows if item.fitted]
        parts += [f"{item.label} does not fit: {item.over}" for item in rows if item.over]
        bounds = [item.label for item in rows if item.bound]
        parts += [f"{', '.join(bounds)}: a bound that keeps all data, not held to the budget"] if bounds else []
    return "\n\n".join(parts)


def _words(budget: dict[str, Any]) -> str:
    if budget["kind"] == "none":
        return "no budget"
    if budget["scope"] != "carried":
        return f"{_words({**budget, 'scope': 'carried'})}; as many more as incoming images are given up"
    if budget["kind"] == "exemplars":
        return f"{budget['exemplars']:,} exemplars"
    if budget["kind"] == "per_class":
        return f"{budget['per_class']:,} exemplars a class"
    limits = ", ".join(f"{limit:,}" for limit in budget["limits"])
    origin = ""
    if budget["kind"] == "aligned":
        origin = f", those of {budget['to']} on {budget['to_model']} with {budget['exemplars']:,} exemplars"
    return f"{limits} bytes ({budget['convention']}){origin}"


def _table(title: str, rows: Sequence[Bills], count: int, value: Callable[[Bill], int]) -> str:
    cells = [[f"{value(bill):,}" for bill in item.bills] for item in rows]
    heads = [str(index + 1) for index in range(count)]
    wide = max(len(text) for line in [heads, *cells] for text in line) + 2
    name = max(len(item.label) for item in rows) + 2
    each = max(1, (shutil.get_terminal_size((120, 24)).columns - name) // wide)
    lines = [title]
    for start in range(0, count, each):
        part = slice(start, start + each)
        lines.append(" " * name + "".join(text.rjust(wide) for text in heads[part]))
        lines += [
            item.label.ljust(name) + "".join(t.rjust(wide) for t in line[part])
            for item, line in zip(rows, cells, strict=True)
        ]
    return "\n".join(lines)
