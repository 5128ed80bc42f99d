"""``cil sweep``: any grid of keys. With a launcher of Hydra's it is ``run --multirun``, then aggregated."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cil.cli import environment
from cil.cli.arguments import split_jobs_and_out
from cil.cli.compare import grid, write_report
from cil.cli.grid import number_of_jobs
from cil.cli.run import launch
from cil.errors import CilError, ConfigError

HELP = """
usage: cil sweep key=value[,value...] ... [jobs=auto] [out=DIR]

Runs every combination of the values given, as compare does, and prints a table of them.

  cil sweep optimizer.lr=0.03,0.1,0.3 strategy=wa seed=range(3)
  cil sweep strategy.temperature=1,2,4 jobs=2 out=results/temperature

Without out=DIR it is runs/sweep-NAME-1a2b3c: a folder for each grid, which the same command finds again.

With a launcher of Hydra's (the extra cil[sweep]) it is run --multirun, and the table is of what lies in out:

  cil sweep hydra/launcher=submitit_slurm strategy=wa seed=range(10) out=results/wa
"""


def main(arguments: Sequence[str]) -> int:
    if any(item.startswith("hydra/launcher=") for item in arguments):
        return _launched(arguments)
    return grid(arguments, "sweep")


def _launched(arguments: Sequence[str]) -> int:
    from cil.report.page import refuse_foreign_report

    overrides, _, out = split_jobs_and_out(arguments)
    if out == "auto":
        raise ConfigError(
            "out is missing; with hydra/launcher the runs need a folder of their own, as in out=results/wa"
        )
    refuse_foreign_report(Path(out))
    environment.prepare(overrides, environment.cores())
    print(f"cil: {_many(overrides)}; each says how it went when it ends", file=sys.stderr, flush=True)
    from cil.report import find_runs
    from cil.tracking.files import RECORD

    try:
        code = launch([*overrides, "--multirun"], out)
    except CilError as error:  # of the launcher; the table tells of what there is
        if not any(Path(out).rglob(RECORD)):
            raise
        print(f"cil: {error}", file=sys.stderr)
        code = 1

    print(write_report(find_runs(out), Path(out), f"sweep: {Path(out).name}", shlex.join(["cil", "sweep", *arguments])))
    return code


def _many(overrides: Sequence[str]) -> str:
    """How many runs the launcher is handed, where that is known, and which launcher it is."""
    launcher = next(item for item in overrides if item.startswith("hydra/launcher="))
    try:
        count = f"{number_of_jobs([item for item in overrides if not item.startswith('hydra')])} runs"
    except ConfigError:  # of one of them, which is named when its turn comes
        count = "runs"
    return f"{count} by {launcher}"
