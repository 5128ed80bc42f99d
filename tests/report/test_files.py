"""LaTeX, lines of every experience, figures, and pages that follow what is running."""

from __future__ import annotations

import csv
import io
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from cil.cli import report as command
from cil.comparison import Comparison
from cil.errors import ConfigError
from cil.report import table, to_latex, write_figures, write_lines
from cil.report.watch import follow, served
from cil.tracking import Record
from cil.tracking.lines import MissingPackage, lines


def test_a_line_for_each_run_seed_and_experience(run, tmp_path):
    records = [run(seed=seed) for seed in (0, 1)]
    found = list(csv.DictReader(io.StringIO(write_lines(records, tmp_path / "lines.csv").read_text())))
    assert [(line["seed"], line["experience"]) for line in found] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    last = found[1]  # after (80) and (60, 70): 65; 1,000,000 + 100 * 193 bytes; two thousand million operations so far
    assert (last["accuracy_curve"], last["accuracy_matrix.0"], last["accuracy_matrix.1"]) == ("65.0", "60.0", "70.0")
    assert (last["ledger.totals.exact.total"], last["flops.training"]) == ("1019300", "2000000000")
    assert found[0]["accuracy_matrix.1"] == "" and last["method"] == "icarl" and last["budget_exemplars"] == "200"


def test_a_run_that_was_interrupted_has_the_lines_that_it_came_to(run):
    assert len(lines(run(status="interrupted", matrix=((80.0, None),)))) == 1
    assert lines(run(status="failed", results={"accuracy_curve": []})) == []


def test_parquet_and_data_frames_hold_the_same_lines(run, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    record = run()
    read = pyarrow.read_table(write_lines([record], tmp_path / "lines.parquet")).to_pylist()
    assert read == lines(record)
    frame = record.frame()
    assert list(frame["accuracy_curve"]) == [80.0, 65.0] and list(frame.columns) == list(read[0])


def test_a_package_that_is_missing_is_named_with_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackage, match=r"pip install 'cil\[frames\]'"):
        run().frame()
    with pytest.raises(MissingPackage, match=r"pip install 'cil\[frames\]'"):
        write_lines([run()], tmp_path / "lines.parquet")
    with pytest.raises(MissingPackage, match=r"pip install 'cil\[frames\]'"):
        Comparison.frame(SimpleNamespace(rows=[{"strategy": "icarl"}]))


def test_latex_has_the_numbers_of_the_table_and_escapes_what_is_special(run):
    records = [run("er_ace", seed, matrix=((80.0, None), (60.0 + seed, 80.0))) for seed in (0, 1, 2)]
    records += [run("wa", seed) for seed in (0, 1, 2)]
    text = to_latex(table([*records, run("joint", bound=True)]))
    assert r"er\_ace & 3 & \textbf{75.25 $\pm$ 0.25} & \textbf{70.50 $\pm$ 0.50} &" in text
    assert r"1\,019\,300" in text and r"$3.00 \cdot 10^{9}$" not in text and r"$4.00 \cdot 10^{9}$" in text
    assert text.count(r"\midrule") == 2 and r"\emph{bounds: may look back" in text and text.count("{tabular}") == 2
    assert [line for line in text.splitlines() if line.startswith("% Stream: toy")]


def test_figures_are_svg_and_pdf_the_same_bytes_each_time_and_foreign_files_stay(run, tmp_path):
    whole = table([run()])
    first = {path.name: path.read_bytes() for path in write_figures(whole, tmp_path / "figures")}
    assert {"1-forgetting.svg", "1-forgetting.pdf", "1-carried-bytes-by-kind.pdf"} <= set(first)
    assert first["1-forgetting.svg"].startswith(b"<?xml") and first["1-forgetting.pdf"].startswith(b"%PDF")
    assert {path.name: path.read_bytes() for path in write_figures(whole, tmp_path / "figures")} == first
    (tmp_path / "figures/1-forgetting.pdf").write_bytes(b"%PDF of somebody else")
    with pytest.raises(ConfigError, match="was not made by cil report"):
        write_figures(whole, tmp_path / "figures")
    with pytest.raises(ConfigError, match=r"neither a \.csv nor a \.parquet"):
        write_lines([run()], tmp_path / "lines.txt")


def test_a_page_is_made_anew_when_a_record_changes_and_not_else(run):
    record = run(status="interrupted")
    made: list[int] = []

    def make() -> None:
        made.append(len(made))
        if len(made) == 1:
            Path(record.directory, "record.json").touch()

    follow([record.directory.parent], make, pause=0.01, rounds=5)
    assert made == [0, 1]


def test_the_page_is_served_on_this_machine_alone():
    with served(lambda: b"<p>now</p>", port=0) as address:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.read() == b"<p>now</p>" and answer.headers["Refresh"]
        with pytest.raises(urllib.error.HTTPError, match="404"), urllib.request.urlopen(f"{address}etc", timeout=10):
            pass
        with pytest.raises(ConfigError, match="choose another port"), served(bytes, int(address.split(":")[2][:-1])):
            pass


def test_the_command_writes_what_is_asked_for(run, tmp_path, capsys, monkeypatch):
    runs = run(seed=3).directory.parent
    monkeypatch.chdir(tmp_path)
    assert command.main(["runs", "--html", "page.html", "--lines=lines.csv", "--figures", "figures"]) == 0
    said = capsys.readouterr().out
    assert said == "page: page.html\nlines: lines.csv\nfigures: 8 files in figures\n"
    assert "cil report runs --html page.html" in Path("page.html").read_text()
    assert command.main([str(runs), "--latex"]) == 0 and r"\toprule" in capsys.readouterr().out
    assert command.main([str(runs), "--json"]) == 0
    (section,) = json.loads(capsys.readouterr().out)["sections"]
    assert section["rows"] and section["facts"]
    for options, words in (
        (("--csv", "--latex"), "choose one"), (("--watch",), "add --html FILE"), (("--serve=x",), "no port"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            command.main([str(runs), *options])


@pytest.mark.parametrize(
    ("given", "port", "paths"),
    [
        (["runs", "--serve"], 8000, ["runs"]),
        (["--serve", "81", "runs"], 81, ["runs"]),
        (["--serve=0", "82"], 0, ["82"]),
        (["--serve", "runs"], 8000, ["runs"]),
    ],
)
def test_a_port_is_a_number_after_the_option(given, port, paths):
    request = command._parsed(given)
    assert (request.port, request.paths) == (port, [Path(path) for path in paths])


def test_lines_are_of_the_record_as_it_was_read(run):
    record = Record.load(run().directory)
    assert {line["run"] for line in lines(record)} == {record.run}
