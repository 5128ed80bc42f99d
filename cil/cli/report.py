"""``cil report``: tables, plots and the page of runs that were made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from cil.errors import ConfigError

HELP = """
usage: cil report PATH... [--html FILE] [--csv] [--markdown]

Every run at or under the paths, in one table: mean and deviation over seeds, forgetting, both bills.

  cil report runs/
  cil report runs/compare-demo --html page.html
  cil report runs/ --csv > runs.csv

  --html FILE   one self-contained page
  --csv         unrounded, one line a row
  --markdown    with both bills
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    paths, page, form = _parsed(list(arguments))
    from cil.report import find_runs, table, to_csv, to_markdown, to_text, write_html

    records = find_runs(paths)
    if page is not None:
        print(f"page: {write_html(records, page, 'Report')}")
        return 0
    whole = table(records)
    if form == "--csv":
        print(to_csv(whole), end="")
    elif form == "--markdown":
        print(to_markdown(whole))
    else:
        print(to_text(whole, shutil.get_terminal_size((120, 24)).columns))
    return 0


def _parsed(arguments: list[str]) -> tuple[list[Path], Path | None, str]:
    page, form, paths = None, "", []
    while arguments:
        item = arguments.pop(0)
        if item == "--html" or item.startswith("--html="):
            given = item.partition("=")[2] or (arguments.pop(0) if arguments else "")
            if not given:
                raise ConfigError("--html needs a file, as in --html page.html")
            page = Path(given)
        elif item in ("--csv", "--markdown"):
            form = item
        elif item.startswith("-"):
            raise ConfigError(f"no option '{item}'; cil report has --html FILE, --csv, --markdown")
        else:
            paths.append(Path(item))
    return paths or [Path("runs")], page, form
