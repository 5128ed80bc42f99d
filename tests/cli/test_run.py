"""cil run, and what is done with a run afterwards: evaluate, show, report, load."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cil as package
from cil.cli.build import build_stream
from cil.cli.compose import compose, split_hydra_options
from cil.kinds.command_line import find_commands
from cil.tracking import Record

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run that keeps all its states."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    torch.set_num_threads(1)
    package.run(*DIGITS, f"run_dir={folder}", "checkpoint.keep=all", "trainer.threads=1", "seed=3")
    return folder


def test_a_run_says_what_came_out_and_where_it_is(cil, tmp_path):
    said = cil("run", *DIGITS)
    assert said.code == 0 and not said.err
    record = Record.load(next(tmp_path.glob("runs/digits_b0_inc2/icarl-200exemplars-s0-*")))
    assert f"last {record.results['last_accuracy']:.2f} %" in said.out
    assert f"{record.results['ledger'][-1]['totals']['exact']['total']:,} bytes" in said.out
    assert str(record.directory.relative_to(tmp_path)) in said.out


def test_the_same_command_finds_the_finished_run(cil, tmp_path):
    cil("run", *DIGITS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("experience-*.json")}
    assert "was finished before, nothing was run" in cil("run", *DIGITS).out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("experience-*.json")} == before


def test_a_data_set_is_found_in_the_folder_one_stands_in(cil, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    lines = "from PIL import Image\ndef make():\n    pair = [(Image.new('L', (4, 4), k), k % 2) for k in range(4)]"
    (tmp_path / "images_of_this_folder.py").write_text(f"{lines}\n    return pair, pair[:2]\n")
    said = cil("show", "stream=torch", "stream.dataset=images_of_this_folder:make", "--out", "seen.png")
    assert said.code == 0 and (tmp_path / "seen.png").exists(), said.err


def test_another_seed_or_budget_is_another_folder(cil, tmp_path):
    cil("run", *DIGITS, "strategy=finetune")
    cil("run", *DIGITS, "strategy=finetune", "seed=1")
    cil("run", *DIGITS, "strategy=finetune", "budget=none")
    assert len(list(tmp_path.glob("runs/*/*"))) == 3


def test_where_a_run_lies_and_how_it_is_shown_is_no_part_of_what_it_is(cil, tmp_path):
    cil("run", *DIGITS, "run_dir=a", "strategy=finetune")
    cil("run", *DIGITS[:-1], "run_dir=b", "strategy=finetune", "progress=true", f"data_root={tmp_path}")
    assert Record.load("a").identity == Record.load("b").identity


def test_a_run_directory_is_not_given_to_another_run(cil):
    cil("run", *DIGITS, "run_dir=a", "strategy=finetune")
    said = cil("run", *DIGITS, "run_dir=a", "strategy=finetune", "trainer.batch_size=16")
    assert said.code == 2
    assert "config.trainer.batch_size was 128 and is now 16" in said.line


def test_a_record_says_the_command_that_runs_it_again(cil):
    cil(
        "compare",
        *DIGITS,
        "strategy=finetune,lwf",
        "seed=4",
        "logger=wandb",
        "logger.mode=disabled",
        "logger.entity=hidden",
        "out=a",
        "jobs=1",
    )
    found = {record.identity["strategy"]: record for record in map(Record.load, Path("a").glob("*/*/"))}
    command = found["lwf"].environment["command"]
    assert command.startswith("cil run ") and "hidden" not in command
    cil(*shlex.split(command)[1:], "run_dir=again", "progress=false")
    assert Record.load("again").identity == found["lwf"].identity


def test_a_dry_run_prints_the_bill_and_trains_nothing(cil, tmp_path):
    said = cil("run", *DIGITS, "--dry-run")
    assert said.code == 0
    assert "exemplars, after experience" in said.out and "icarl" in said.out
    assert not list(tmp_path.iterdir())


def test_nothing_but_the_runs_is_left_behind(cil, tmp_path):
    cil("run", *DIGITS, "strategy=finetune")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_interrupted_run_says_how_to_go_on_and_ends_where_the_straight_one_ends(cil, tmp_path):
    """Through a real process and a real signal; then on in this one."""
    options = ["trainer.epochs=2", "trainer.batch_size=32", "trainer.threads=1", "trainer.log_every=1"]
    command = ["run", "stream=split_digits", "strategy=replay", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "cil.cli.main", *command, "run_dir=a"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "a" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 8) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was computed is in a; the same command goes on from there" in err
    assert Record.load(tmp_path / "a").status == "interrupted"
    for folder in ("a", "b"):
        assert cil(*command, f"run_dir={folder}", "progress=false").code == 0
    one, other = Record.load(tmp_path / "a"), Record.load(tmp_path / "b")
    assert one.results["accuracy_matrix"] == other.results["accuracy_matrix"]
    assert one.results["ledger"] == other.results["ledger"]


def test_hydra_prints_the_configuration(cil):
    said = cil("run", "--cfg", "job", "trainer.epochs=7", "strategy=wa")
    assert said.code == 0
    assert "  epochs: 7\n" in said.out and "cil.strategies.wa.WA" in said.out and "hydra:" not in said.out


def test_hydra_runs_several_and_one_that_is_wrong_stops_no_other(cil):
    said = cil("run", "--multirun", *DIGITS, "strategy=finetune", "trainer.epochs=0,1", "seed=4,5")
    assert said.code == 1
    assert said.out.count(": finished") == 2
    assert said.err.count("trainer.epochs is 0; it must be a whole number of 1 or more") == 2


def test_an_option_may_stand_among_the_overrides(cil):
    said = cil("run", *DIGITS, "--multirun", "strategy=finetune", "trainer.epochs=1", "seed=4,5")
    assert said.code == 0, said.err
    assert said.out.count(": finished") == 2
    said = cil("run", "trainer.epochs=7", "--cfg", "job", "strategy=wa", "--package=trainer")
    assert said.code == 0 and "epochs: 7\n" in said.out and "strategy" not in said.out
    assert split_hydra_options(["a=1", "--info", "seed=1", "-c", "job"]) == (
        ["--info=all", "-c", "job"],
        ["a=1", "seed=1"],
    )
    assert split_hydra_options(["a=1", "--info", "plugins", "-m"]) == (["--info=plugins", "-m"], ["a=1"])


def test_a_value_that_is_missing_in_one_of_several_is_told_once_and_the_others_run(cil):
    said = cil("run", "--multirun", *DIGITS, "strategy=finetune", 'stream.increment="???",2')
    assert said.code == 2 and said.out.count(": finished") == 1
    assert said.err.strip() == "cil: stream.increment has no value; it must be given"


def test_hydra_says_where_the_configuration_is_from(cil):
    assert "provider" in cil("run", "--info", "searchpath").out.lower()


# afterwards ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_evaluates_to_what_its_record_says(cil, finished):
    said = cil("evaluate", str(finished), "--json")
    found, record = json.loads(said.out), Record.load(finished)
    assert found["accuracy"] == pytest.approx(record.results["last_accuracy"])
    assert found["accuracy_by_experience"] == pytest.approx(record.results["accuracy_matrix"][-1])
    assert found["confusion"] == record.arrays()["confusion"][-1].tolist()
    early = json.loads(cil("evaluate", str(finished), "--experience", "1", "--json").out)
    assert early["accuracy"] == pytest.approx(record.results["accuracy_curve"][1])


def test_a_finished_run_evaluates_on_fewer_images(cil, finished):
    found = json.loads(cil("evaluate", str(finished), "stream.test_per_class=7", "--json").out)
    assert found["images"] == 70


def test_slots_keep_their_meaning_whatever_order_is_asked_for(cil, finished):
    found = json.loads(cil("evaluate", str(finished), "stream.order=natural", "--json").out)
    assert found["accuracy"] == pytest.approx(Record.load(finished).results["last_accuracy"])


def test_evaluate_refuses_a_key_that_is_not_of_the_stream(cil, finished):
    said = cil("evaluate", str(finished), "stream.tst_per_class=7")
    assert said.code == 2 and "unknown key stream.tst_per_class; did you mean 'stream.test_per_class'" in said.line


def test_evaluate_says_that_the_stream_itself_stays(cil, finished):
    said = cil("evaluate", str(finished), "stream=split_digits")
    assert said.code == 2
    assert said.line == ("cil: stream=split_digits cannot be changed here; stream.dataset=... and other stream.KEY can")


def test_a_run_is_shown_as_a_curve(cil, finished):
    said = cil("show", str(finished))
    for value in Record.load(finished).results["accuracy_curve"]:
        assert f"{value:.1f} %" in said.out


def test_a_stream_is_shown_as_a_picture(cil, tmp_path):
    said = cil("show", "stream=split_digits", "--count", "3", "--out", "sheet.png")
    assert said.code == 0 and "5 experiences of 2 new classes, 1,438 training images" in said.out
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_class_order_is_cut():
    order = str([*range(30, 94), *range(30)]).replace(" ", "")
    given = ["stream.base=34", "stream.increment=20", f"stream.order={order}", "stream.train_per_class=2"]
    stream = build_stream(compose(["stream=split_glyphs", *given]).config)
    first, second = find_commands(stream.kind).stream_lines(stream)
    assert "4 experiences of 34 + 3 x 20 new classes, 188 training images" in first
    assert second.endswith(f"class order {', '.join(map(chr, range(63, 83)))}, ...")  # their names: ? is number 30


def test_a_report_has_every_form(cil, finished, tmp_path):
    assert "icarl" in cil("report", str(finished)).out
    assert len(cil("report", str(finished), "--csv").out.splitlines()) == 2
    assert "| icarl" in cil("report", str(finished), "--markdown").out
    assert cil("report", str(finished), "--html", "page.html").out.strip() == "page: page.html"
    assert "<html" in (tmp_path / "page.html").read_text()


def test_a_finished_run_loads_as_a_module(finished):
    module = package.load(finished)
    assert isinstance(module, torch.nn.Module) and not module.training
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        scores = module(images)
        alone = torch.cat([module(image[None]) for image in images])
    assert scores.shape == (5, 10) and len(module.classes) == 10
    assert torch.allclose(scores, alone, atol=1e-5)
    assert sum(p.numel() for p in module.parameters()) > 4000


def test_an_earlier_state_loads_too(finished):
    assert package.load(finished, experience=1)(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_an_experience_that_a_budget_of_compute_cut_short_says_so(cil):
    given = ("stream=split_digits", "stream.increment=5", "strategy=finetune", "trainer.epochs=1")
    said = cil("run", *given, "budget.updates=1", "run_dir=a")
    assert said.code == 0
    lines = [line for line in said.err.splitlines() if "ended" in line]
    early = "budget.updates ended training early"
    assert [", ".join(line.split(", ")[:2]) for line in lines] == [
        f"finetune: experience {number}/2, {early}" for number in (1, 2)
    ]
    assert "ended" not in cil("run", *given, "budget.updates=1000", "trainer.max_steps=1", "run_dir=b").err
