"""Reports as files for other programs: lines of numbers as CSV or parquet, figures as SVG and PDF."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.errors import ConfigError
from cil.report.exports import csv_text
from cil.report.plots import styled
from cil.report.table import Table
from cil.tracking import Record, write_bytes_atomic
from cil.tracking.lines import EXTRA, MissingPackage, lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = "cil report"  # in the metadata of what is written here
LINES = (".csv", ".parquet")


def write_lines(records: Sequence[Record], path: Path) -> Path:
    """Write a line for each run, seed and experience, as CSV or as parquet by the suffix.

    Raises:
        ConfigError: for another suffix, or where another file has the name.
        MissingPackage: if parquet is asked for and pyarrow is not installed.
    """
    if path.suffix not in LINES:
        raise ConfigError(f"--lines {path} is neither a .csv nor a .parquet file; give one of these")
    found = [line for record in records for line in lines(record)]
    if path.suffix == ".csv":
        _write(path, csv_text(found).encode(), b"run,kind,stream,")
    else:
        _write(path, _parquet(found), MADE_BY.encode())
    return path


def _parquet(found: Sequence[dict[str, Any]]) -> bytes:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(f"parquet needs pyarrow: {EXTRA}") from error
    columns = dict.fromkeys(name for line in found for name in line)
    made = pyarrow.table({name: [line.get(name) for line in found] for name in columns})
    out = io.BytesIO()
    pyarrow.parquet.write_table(made.replace_schema_metadata({"made_by": MADE_BY}), out)
    return out.getvalue()


def write_figures(content: Table, folder: Path) -> list[Path]:
    """Write each figure as SVG and as PDF, all in one style, the same bytes for the same records.

    Raises:
        ConfigError: where another file has the name of one.
    """
    written = []
    for place, section in enumerate(content.sections, 1):
        for plot in section.plots(place, content.paint):
            title = re.sub(r"[^a-z0-9]+", "-", plot.title.lower()).strip("-")
            if plot.figure is None:  # of a package that draws in its own way
                marked = plot.svg.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" data-by="{MADE_BY}"')
                drawn = [("svg", marked.encode())]
            else:
                drawn = [(suffix, _drawn(plot.figure, suffix)) for suffix in ("svg", "pdf")]
            for suffix, data in drawn:
                path = folder / f"{place}-{title}.{suffix}"
                _write(path, data, MADE_BY.encode())
                written.append(path)
    return written


def _drawn(figure: Figure, suffix: str) -> bytes:
    import matplotlib

    facts = {"Creator": MADE_BY} | ({"Date": None} if suffix == "svg" else {"CreationDate": None, "Producer": None})
    out = io.BytesIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": MADE_BY}):
        figure.savefig(out, format=suffix, metadata=facts)
    return out.getvalue()


def _write(path: Path, data: bytes, sign: bytes) -> None:
    """Write a file; one that was made here before is replaced, any other is left alone.

    Args:
        sign: What stands in every file of this sort that was made here.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file")
    if path.exists() and sign not in path.read_bytes():
        raise ConfigError(f"{path} is there already, and was not made by cil report; remove it, or choose another name")
    write_file(path, data)


def write_file(path: Path, data: bytes) -> Path:
    """Write a file all or nothing, with the folders above it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made ({error.strerror}); choose another place") from error
    write_bytes_atomic(path, data)
    return path
