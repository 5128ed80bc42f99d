"""``cil dashboard``: a workspace or a report of wandb for a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cil.cli.arguments import split_options
from cil.errors import ConfigError

HELP = """
usage: cil dashboard DIR ... [--project NAME] [--entity NAME] [--report] [--out FILE] [--online]
       cil dashboard --project NAME ...

A workspace of wandb for the runs at or under the folders that were made with logger=wandb, or for all runs of a
project: results, memory, tables, training; a line for each stream, budget and method, its seeds as a band. It is
written to a file and sent nowhere, but with --online. Needs the extra cil[dashboards].

  cil dashboard runs/compare-demo
  cil dashboard runs/compare-demo --report --entity my-team --online

  --project NAME  of the runs at wandb: their logger.project (cil)
  --entity NAME   user or team at wandb; --online needs it
  --report        a report, which has a part for each stream, in place of a workspace
  --out FILE      the JSON that wandb gets (dashboard.json)
  --online        save it at wandb too; needs an API key
"""
OPTIONS = {"--project": "", "--entity": "", "--out": "dashboard.json"}


def main(arguments: Sequence[str]) -> int:
    paths, values, flags = split_options(arguments, OPTIONS, ["--report", "--online"])
    project, entity, out = (values[name] for name in OPTIONS)
    if not paths and not project:
        raise ConfigError("cil dashboard needs a folder of runs, or --project NAME")
    online = "--online" in flags
    if online:
        _check_online(entity)
    from cil.report.dashboard import Sweep, as_json, report, saved, sweep_of, workspace
    from cil.report.runs import find_runs
    from cil.tracking import write_json_atomic

    sweep = sweep_of(find_runs(paths)) if paths else Sweep()
    make = report if "--report" in flags else workspace
    title = f"cil: {', '.join(Path(path).resolve().name for path in paths) or project}"
    built = make(sweep, project or "cil", entity, title)
    _refuse_foreign(Path(out))
    write_json_atomic(out, as_json(built))
    print(f"{make.__name__} of {len(sweep.ids) or 'all'} runs: {out}")
    if online:
        print(saved(built))
    return 0


def _check_online(entity: str) -> None:
    """Refuse what a server would refuse, or would never answer."""
    from cil.tracking.wandb_server import has_key, reachable

    if not entity:
        raise ConfigError("cil dashboard --online needs --entity NAME, the user or team at wandb")
    if not has_key():
        raise ConfigError("cil dashboard --online needs an API key: run 'wandb login', or set WANDB_API_KEY")
    if not reachable():
        raise ConfigError("wandb cannot be reached; leave --online out, and the dashboard is written to a file")


def _refuse_foreign(path: Path) -> None:
    """Refuse to replace a file that is no view of wandb's."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"project", "spec"} <= found.keys():
            return
    if path.exists():
        raise ConfigError(f"{path} is there already, and no dashboard; remove it, or choose another name")
