"""``cil report``: tables, plots and the page of runs that were made."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cil.cli.arguments import split_options
from cil.errors import CilError, ConfigError

if TYPE_CHECKING:
    from cil.report import Table
    from cil.tracking import Record

HELP = """
usage: cil report PATH... [--html FILE] [--lines FILE] [--figures DIR] [--csv | --json | --markdown | --latex]
                          [--published] [--no-pictures] [--watch | --serve [PORT]]

Every run at or under the paths, in one table: mean and deviation over seeds, forgetting, all bills. A record that
cannot be used is named and left out; the command then ends with 1.

  cil report runs/
  cil report runs/compare-demo --html page.html --figures figures --lines lines.parquet
  cil report runs/ --latex > table.tex
  cil report runs/ --serve

  --html FILE    one self-contained page
  --lines FILE   a line for each run, seed and experience; .csv, or .parquet (the extra cil[frames])
  --figures DIR  the figures of the page, each as SVG and as PDF
  --csv          unrounded, one line a row
  --json         the same with bills, settings and remarks, section by section
  --markdown     with all bills
  --published    with published numbers of the same stream, split and budget, which are not ranked
  --no-pictures  a page without images of the data set: no test images with answers, no exemplars
  --latex        tables for a paper (booktabs), with the set-up as a comment
  --watch        with --html: write the page anew whenever a record changes, until Ctrl-C
  --serve PORT   the same on http://127.0.0.1:PORT (8000), which no other machine reaches

A file is replaced only where it was made by cil report.
"""
PRINTED = ("--csv", "--json", "--markdown", "--latex")
PORT = 8000


@dataclass
class Request:
    paths: list[Path]
    page: Path | None = None
    lines: Path | None = None
    figures: Path | None = None
    form: str = ""
    watch: bool = False
    published: bool = False
    pictures: bool = True
    port: int | None = None

    @property
    def command(self) -> str:
        paths = [_shown(path) for path in self.paths]
        more = ["--published"] * self.published + ["--no-pictures"] * (not self.pictures)
        return shlex.join(["cil", "report", *paths, *more, "--html", _shown(self.page or Path("page.html"))])


def _shown(path: Path) -> str:
    """A path as one types it here."""
    here, home = Path.cwd(), Path.home()
    if not path.is_absolute():
        return str(path)
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def main(arguments: Sequence[str]) -> int:
    request = _parsed(list(arguments))
    if request.port is not None:
        return _serve(request, request.port)
    if request.watch:
        return _watch(request)
    return _once(request)


def _once(request: Request) -> int:
    from cil.report.runs import read_runs

    records, problems = read_runs(request.paths)
    text, more = _written(records, partial(_text, request=request))
    print(text, end="", flush=True)
    for problem in [*problems, *more]:
        print(f"cil: left out: {problem}", file=sys.stderr)
    return int(bool(problems or more))


def _watch(request: Request) -> int:
    from cil.report.watch import follow

    def make() -> None:
        try:
            _once(request)
        except CilError as error:  # the record may be half there
            print(f"cil: {error}", file=sys.stderr)

    with suppress(KeyboardInterrupt):
        follow(request.paths, make)
    return 0


def _serve(request: Request, port: int) -> int:
    """Serve the page on this machine, made anew whenever a record has changed."""
    from cil.report.page import html
    from cil.report.runs import read_runs
    from cil.report.watch import follow, served, waiting_page

    shown = waiting_page(ConfigError("the page is being made"))

    def make() -> None:
        nonlocal shown
        try:
            records, _ = read_runs(request.paths)
            page, _ = _written(records, lambda good: html(_content(good, request), "Report", request.command))
            shown = page.encode()
        except CilError as error:
            shown = waiting_page(error)

    with served(lambda: shown, port) as address:
        print(f"page: {address}   (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            follow(request.paths, make)
    return 0


def _content(records: Sequence[Record], request: Request) -> Table:
    """The table of the records, with and without what was asked for."""
    from cil.report import table

    whole = table(records)
    if request.published:
        whole = whole.with_published()
    return whole if request.pictures else whole.without_pictures()


def _text(records: Sequence[Record], request: Request) -> str:
    """Write the files that were asked for and name them; else the report in the form that was asked for."""
    from cil.report import to_csv, to_json, to_latex, to_markdown, to_text, write_figures, write_lines
    from cil.report.page import html, write_page

    said, whole = [], _content(records, request)
    if request.page is not None:
        said.append(f"page: {write_page(html(whole, 'Report', request.command), request.page)}\n")
    if request.lines is not None:
        said.append(f"lines: {write_lines(records, request.lines)}\n")
    if request.figures is not None:
        said.append(f"figures: {len(write_figures(whole, request.figures))} files in {request.figures}\n")
    if request.form:
        writers: dict[str, Callable[[Table], str]] = {
            "--csv": to_csv, "--json": to_json, "--latex": to_latex, "--markdown": to_markdown,
        }  # fmt: skip
        text = writers[request.form](whole)
        return text if text.endswith("\n") else f"{text}\n"
    return "".join(said) or f"{to_text(whole, shutil.get_terminal_size((120, 24)).columns)}\n"


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


def _parsed(arguments: list[str]) -> Request:
    rest, port = _without_port(arguments)
    flags = (*PRINTED, "--watch", "--published", "--no-pictures")
    paths, values, given_flags = split_options(rest, {"--html": "", "--lines": "", "--figures": ""}, flags)
    forms = [flag for flag in PRINTED if flag in given_flags]
    if len(forms) > 1:
        raise ConfigError(f"{' and '.join(forms)} are printed both; choose one")
    page, lines, figures = (Path(value) if value else None for value in values.values())
    request = Request(
        [Path(path) for path in paths] or [Path("runs")], page, lines, figures, form=next(iter(forms), ""),
        watch="--watch" in given_flags, published="--published" in given_flags,
        pictures="--no-pictures" not in given_flags, port=port,
    )  # fmt: skip
    if request.watch and request.page is None and port is None:
        raise ConfigError("--watch writes a page anew: add --html FILE")
    return request


def _without_port(arguments: Sequence[str]) -> tuple[list[str], int | None]:
    """Arguments without ``--serve``, and its port: the number behind it, else the usual one; None without it."""
    rest, port, given = [], None, list(arguments)
    while given:
        item = given.pop(0)
        name, equals, value = item.partition("=")
        if name != "--serve":
            rest.append(item)
            continue
        if not equals:
            value = given.pop(0) if given and given[0].isdigit() else str(PORT)
        if not value.isdigit():
            raise ConfigError(f"--serve {value} is no port; give a whole number, or leave it out")
        port = int(value)
    return rest, port
