"""``cil report``: tables, plots and the page of runs that were made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cil.errors import CilError, ConfigError

if TYPE_CHECKING:
    from cil.tracking import Record

HELP = """
usage: cil report PATH... [--html FILE] [--csv] [--markdown] [--published]

Every run at or under the paths, in one table: mean and deviation over seeds, forgetting, both bills. A record that
cannot be used is named and left out; the command then ends with 1.

  cil report runs/
  cil report runs/compare-demo --html page.html
  cil report runs/ --csv > runs.csv

  --html FILE   one self-contained page
  --csv         unrounded, one line a row
  --markdown    with both bills
  --published   with published numbers of the same stream, split and budget, which are not ranked
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    given = list(arguments)
    published = "--published" in given
    paths, page, form = _parsed([item for item in given if item != "--published"])
    from cil.report.runs import read_runs

    records, problems = read_runs(paths)
    text, more = _written(records, partial(_text, page=page, form=form, published=published))
    print(text, end="")
    for problem in [*problems, *more]:
        print(f"cil: left out: {problem}", file=sys.stderr)
    return int(bool(problems or more))


def _text(records: Sequence[Record], page: Path | None, form: str, published: bool) -> str:
    """The report in the form that was asked for."""
    from cil.report import table, to_csv, to_markdown, to_text
    from cil.report.page import html, write_page

    whole = table(records)
    if published:
        whole = whole.with_published()
    if page is not None:
        return f"page: {write_page(html(whole, 'Report'), page)}\n"
    if form == "--csv":
        return to_csv(whole)
    if form == "--markdown":
        return f"{to_markdown(whole)}\n"
    return f"{to_text(whole, shutil.get_terminal_size((120, 24)).columns)}\n"


def _written(records: Sequence[Record], write: Callable[[Sequence[Record]], str]) -> tuple[str, list[str]]:
    """The report of all records that can be reported, and a line for each that cannot even alone."""
    try:
        return write(records), []
    except CilError:
        raise
    except Exception:
        odd = {id(record): why for record in records if (why := _failure(record, write))}
        if not odd:  # they do not fail alone: no record is to blame
            raise
        good = [record for record in records if id(record) not in odd]
        if not good:
            raise ConfigError("; ".join(odd.values())) from None
        return write(good), list(odd.values())


def _failure(record: Record, write: Callable[[Sequence[Record]], str]) -> str | None:
    from cil.tracking import RecordError
    from cil.tracking.record import reading

    try:
        with reading(record):
            write([record])
    except RecordError as error:
        return str(error)
    return None


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
            raise ConfigError(f"no option '{item}'; cil report has --html FILE, --csv, --markdown, --published")
        else:
            paths.append(Path(item))
    return paths or [Path("runs")], page, form
