"""``cil runs``: the runs in a folder listed, thinned out, moved."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli.arguments import split_options
from cil.cli.formats import in_columns
from cil.errors import ConfigError, nearest

if TYPE_CHECKING:
    from cil.tracking import Record

HELP = """
usage: cil runs list [DIR ...] [--json]
       cil runs prune DIR ... [--unfinished] [--checkpoints] [--trials] [--yes]
       cil runs move RUN_DIR_OR_FOLDER TARGET

list   one line for each run at or under the folders (runs, by default): what it is, how far it came, its size
prune  says what can go and how much that frees; --yes removes it. Results of finished runs always stay
move   a run, or a folder of runs, to another place; the same commands go on there with run_dir=

  cil runs list
  cil runs prune runs --unfinished --yes

  --unfinished    runs that failed, were interrupted or stopped: no process can go on with them then
  --checkpoints   carried states of finished runs: tables stay; cil evaluate, audit, predict and export need them
  --trials        runs of tunings, whose choice stands in the records of their results
  --json          the list as JSON, an object for each run

'stopped' is a run whose process is gone without a word: the command that began it goes on with it.
"""


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        raise ConfigError("cil runs needs list, prune or move; cil runs --help says more")
    action, *rest = arguments
    if action not in ACTIONS:
        raise ConfigError(f"no 'cil runs {action}'; {nearest(action, ACTIONS)}")
    return ACTIONS[action](rest)


def _list(arguments: Sequence[str]) -> int:
    from cil.report.runs import read_runs

    paths, _, flags = split_options(arguments, {}, ["--json"])
    records, problems = read_runs(paths or ["runs"], trials=True)
    rows = [_row(record) for record in records]
    if "--json" in flags:
        print(json.dumps(rows, indent=1))
    else:
        cells = [[*map(str, row.values())] for row in rows]
        print("\n".join(in_columns([list(rows[0]), *cells], right={5, 6, 7, 8})))
        print(f"{_counted(rows)}, {sum(row['MB'] for row in rows):,.1f} MB")
    for problem in problems:
        print(f"cil: note: left out: {problem}", file=sys.stderr)
    return 0


def _counted(runs: Sequence[object]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _row(record: Record) -> dict[str, Any]:
    """A run as a line of the list. Accuracies in percent, sizes in units of 10^6 bytes."""
    from cil.report.runs import RunSummary
    from cil.tracking.housekeeping import bytes_below
    from cil.tracking.labels import budget_label

    run = RunSummary(record)
    last = run.result("last_accuracy")
    return {
        "run": str(record.directory),
        "status": run.status,
        "method": run.learner,
        "stream": str(run.stream.get("name")),
        "budget": budget_label(run.budget) if run.budget else "-",
        "seed": run.seed,
        "done": f"{run.done}/{run.steps}",
        "last %": "-" if last is None else round(last, 2),
        "MB": round(bytes_below(record.directory) / 1e6, 1),
        "started": run.started[:16],
    }


def _prune(arguments: Sequence[str]) -> int:
    from cil.report.runs import read_runs
    from cil.tracking.housekeeping import removable, remove

    paths, _, flags = split_options(arguments, {}, ["--unfinished", "--checkpoints", "--trials", "--yes"])
    if not paths:
        raise ConfigError("cil runs prune needs a folder, as in cil runs prune runs --unfinished")
    records, _ = read_runs(paths, trials=True)
    found = removable(
        records,
        unfinished="--unfinished" in flags, checkpoints="--checkpoints" in flags, trials="--trials" in flags,
    )  # fmt: skip
    if not found:
        missing = "" if set(flags) - {"--yes"} else "; --unfinished, --checkpoints and --trials say what may go"
        print(f"nothing to remove{missing}")
        return 0
    print("\n".join(in_columns([(str(one.path), f"{one.bytes / 1e6:,.1f} MB", one.loses) for one in found], {1})))
    total = sum(one.bytes for one in found) / 1e6
    if "--yes" in flags:
        remove(found)
        print(f"removed {total:,.1f} MB")
    else:
        print(f"would free {total:,.1f} MB; --yes removes them")
    return 0


def _move(arguments: Sequence[str]) -> int:
    from cil.report.runs import read_runs
    from cil.tracking.housekeeping import move

    paths, _, _ = split_options(arguments, {})
    if len(paths) != 2:
        raise ConfigError("cil runs move needs a run directory or a folder of runs, and where it goes")
    records, _ = read_runs(paths[0], trials=True)
    print(f"{paths[0]} is now {move(Path(paths[0]), Path(paths[1]), records)}: {_counted(records)}")
    return 0


ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {"list": _list, "prune": _prune, "move": _move}
