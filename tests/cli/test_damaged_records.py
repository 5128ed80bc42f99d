"""Records that cannot be used: one line names the file, and the others are reported."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
from made_records import make_run

from cil.engine.options import RunOptions
from cil.errors import ConfigError, ResumeError
from cil.tracking.digests import SEAL

ODD = {
    "identity": lambda content: content["identity"].update(stream=3),
    "ledger": lambda content: content["results"].update(ledger=[{"totals": 5}]),
    "curve": lambda content: content["results"].update(accuracy_curve=["a", "b"]),
    "results": lambda content: content.update(results=[1]),
}


def _changed(path, change, seal=False):
    """Change a record as somebody does who does not know of its sum, or takes it away."""
    content = json.loads(path.read_text())
    change(content)
    if not seal:
        content.pop(SEAL, None)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("odd", ODD)
def test_one_bad_record_is_named_and_the_others_are_reported(cil, tmp_path, odd):
    run = make_run(tmp_path / "runs")
    run("icarl")
    bad = run("wa", name="bad").directory / "record.json"
    _changed(bad, ODD[odd])
    for form in ((), ("--csv",), ("--html", "page.html")):
        said = cil("report", "runs", *form)
        assert said.code == 1
        assert said.line.startswith("cil: left out: runs/") and "bad/record.json" in said.line
        assert "icarl" in ((tmp_path / "page.html").read_text() if "--html" in form else said.out)
    said = cil("show", str(bad.parent))
    assert said.code == 2
    assert "bad/record.json" in said.line and "KeyError" not in said.line


def test_a_record_that_only_a_plot_cannot_use_is_named_too(cil, tmp_path):
    run = make_run(tmp_path / "runs")
    run("icarl")
    bad = run("wa", name="bad").directory / "record.json"
    _changed(bad, lambda content: content["results"].update(accuracy_matrix=[[1.0], [2.0, 3.0, 4.0]]))
    said = cil("report", "runs", "--html", "page.html")
    assert said.code == 1
    assert said.line.startswith("cil: left out: runs/") and "bad/record.json is not what classes records" in said.line
    page = (tmp_path / "page.html").read_text()
    assert "icarl" in page and "wa" not in page.partition("<table")[2].split("</table>")[0]


def test_a_record_that_was_changed_is_named_and_left_out(cil, tmp_path):
    run = make_run(tmp_path / "runs")
    run("icarl")
    bad = run("wa", name="bad").directory / "record.json"
    _changed(bad, lambda content: content["results"].update(forgetting=0.0), seal=True)
    said = cil("report", "runs")
    assert said.code == 1 and "bad/record.json is damaged" in said.line and "icarl" in said.out


@pytest.mark.parametrize("left", ["checkpoint/experience-000.json", "arrays/index.jsonl"])
def test_a_run_that_lost_its_record_is_named_and_the_others_are_reported(cil, tmp_path, left):
    make_run(tmp_path / "runs")("icarl")
    place = tmp_path / "runs/stream/wa-s0" / left
    place.parent.mkdir(parents=True)
    place.write_text("{}\n")
    (tmp_path / "runs/mine/checkpoint").mkdir(parents=True)  # of somebody else
    said = cil("report", "runs")
    assert said.code == 1 and "icarl" in said.out
    assert said.line == (
        f"cil: left out: runs/stream/wa-s0 has {left} and no record.json; restore it, or give the run's command again"
    )


@pytest.mark.parametrize(
    "arguments", [("run", "run_dir="), ("compare", "out=", "strategy=finetune"), ("sweep", "out=")]
)
def test_an_empty_folder_is_refused_before_anything_is_written(cil, tmp_path, arguments):
    said = cil(*arguments, "stream=split_digits", "trainer.max_steps=1")
    assert said.code == 2
    assert said.line.startswith(f"cil: {arguments[1].rstrip('=')} is empty; ")
    assert not list(tmp_path.iterdir())


def test_a_record_of_another_run_in_its_place_is_named_by_reports_and_by_the_same_command(cil, tmp_path):
    options = ("stream=split_digits", "stream.classes=4", "trainer.max_steps=1", "progress=false", "jobs=1", "out=here")
    compare = ("compare", "strategy=finetune,replay", *options)
    assert cil(*compare).code == 0
    one, other = sorted(tmp_path.glob("here/*/*/record.json"))
    shutil.copy(other, one)
    for left in ("with arrays", "without"):  # not all kinds of run have arrays
        if left == "without":
            shutil.rmtree(one.parent / "arrays")
        said = cil("report", "here", "--csv")
        assert said.code == 1 and len(said.out.splitlines()) == 2
        assert said.line.startswith(f"cil: left out: {one.relative_to(tmp_path)} is of another run than metrics.jsonl")
    said = cil(*compare)
    assert said.code == 1 and "finetune: failed: run_dir=here/" in said.err and "belongs to another run" in said.err
    assert len((tmp_path / "here/table.csv").read_text().splitlines()) == 2
    one.unlink()
    assert cil(*compare).code == 0 and len((tmp_path / "here/table.csv").read_text().splitlines()) == 3


# what was learned ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of finetune on digits, by the command line."""
    from cil.cli.main import main

    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        options = ("stream=split_digits", "stream.train_per_class=10", "stream.test_per_class=5", "trainer.max_steps=2")
        assert main(["run", "strategy=finetune", *options, "progress=false", "run_dir=run"]) == 0
    return folder / "run"


def test_what_is_evaluated_again_is_what_the_record_says(cil, trained):
    said = cil("evaluate", str(trained))
    assert said.code == 0 and "(its record says " in said.out


def test_other_data_end_with_an_error_code_where_nobody_asked_for_them(cil, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    _changed(tmp_path / "run/record.json", lambda content: content["results"].update(accuracy_curve=[1.0] * 5))
    said = cil("evaluate", "run")
    assert said.code == 1
    assert "and run/record.json says 1.00 %" in said.line
    assert cil("evaluate", "run", "stream.test_per_class=4").code == 0


def test_damaged_weights_are_refused_by_name(cil, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = max((tmp_path / "run/checkpoint").glob("experience-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    said = cil("evaluate", "run")
    assert said.code == 2 and f"run/checkpoint/{path.name} is damaged" in said.line
    from cil import load

    with pytest.raises(ResumeError, match=f"{path.name} is damaged"):
        load("run")


def test_a_last_boundary_that_is_missing_is_named_and_no_earlier_one_taken_for_it(cil, trained, tmp_path):
    from cil import load

    shutil.copytree(trained, tmp_path / "run")
    last = max((tmp_path / "run/checkpoint").glob("experience-*.json"))
    last.unlink()
    for command in ("evaluate", "audit"):
        said = cil(command, "run")
        assert said.code == 2 and f"run/checkpoint/{last.name} is missing, and the record has results of" in said.line
    with pytest.raises(ResumeError, match=f"{last.name} is missing"):
        load("run")


def test_a_run_of_the_first_classes_of_an_order_is_evaluated_on_these(cil):
    options = ("stream=split_digits", "stream.train_per_class=10", "stream.test_per_class=5", "trainer.max_steps=2")
    assert cil("run", "strategy=finetune", *options, "stream.classes=4", "progress=false", "run_dir=run").code == 0
    said = cil("evaluate", "run")
    assert said.code == 0 and "20 test images" in said.out


def test_a_run_dir_that_is_empty_is_refused_in_python(tmp_path):
    with pytest.raises(ConfigError, match="run_dir is empty"):
        RunOptions(run_dir="")
