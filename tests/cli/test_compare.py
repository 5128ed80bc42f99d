"""cil compare and cil sweep: many runs side by side, each in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cil.cli import signed_page
from cil.cli.compare import folder_of
from cil.cli.compose import compose
from cil.cli.grid import expand, number_of_jobs
from cil.cli.pool import QueuedRun, run_all
from cil.cli.progress_screen import ProgressScreen
from cil.engine.options import RunOptions
from cil.errors import BudgetExceeded, ConfigError, TrainingError
from cil.strategies import built_in, find
from cil.tracking import Record

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")


# what a grid is -----------------------------------------------------------------------------------------------------


def test_every_combination_is_a_cell():
    cells = expand(["strategy=wa,icarl", "seed=0,1,2", "trainer.epochs=3"])
    assert [cell.label for cell in cells] == [f"{s}, seed={n}" for s in ("wa", "icarl") for n in range(3)]
    assert all(cell.job.config["trainer"]["epochs"] == 3 for cell in cells)


def test_all_is_every_strategy_that_suits_the_stream():
    told = [name for name in built_in() if find(name).takes_task]
    assert [cell.label for cell in expand(["strategy=all"])] == sorted(set(built_in()) - set(told))
    assert [cell.label for cell in expand(["strategy=all", "stream=embedded_tasks"])] == told
    offset = expand(["strategy=all", "stream=embedded_tasks", "stream.heads=offset", "stream.kinds=[multiclass]"])
    assert len(offset) == len(built_in()) - len(told)
    assert {"der", "finetune", "icarl", "joint", "pass"} <= set(built_in())


@pytest.mark.parametrize(("budget", "key"), [("exemplars", "exemplars"), ("bytes", "limit"), ("aligned", "exemplars")])
def test_points_are_budgets_of_the_chosen_kind(budget, key):
    cells = expand([f"budget={budget}", "budget.points=[1000,2000]"])
    assert [cell.job.config["budget"][key] for cell in cells] == [1000, 2000]
    assert all(cell.job.config["budget"]["points"] is None for cell in cells)


def test_points_go_before_the_budgets_that_an_experiment_sweeps_over_and_beside_none_that_are_typed():
    asked = ["experiment=libcontinual_budget", "strategy=icarl", "seed=0", "budget.points=[1_000_000,2_000_000]"]
    assert [cell.job.config["budget"]["limit"] for cell in expand(asked)] == [1_000_000, 2_000_000]
    with pytest.raises(ConfigError, match=r"^budget\.points gives budget\.exemplars its values; leave one of them out"):
        expand(["budget.points=[50,100]", "budget.exemplars=20,30"])


def test_bytes_may_be_written_short_and_are_the_same_run():
    short, long = (expand(["budget=bytes", f"budget.limit={asked}"]) for asked in ("4e6,16e6", "4000000,16000000"))
    assert [cell.job.config for cell in short] == [cell.job.config for cell in long]
    assert [type(cell.job.config["budget"]["limit"]) for cell in short] == [int, int]
    points = expand(["budget=bytes", "budget.points=[1e5,200_000]"])
    assert [cell.job.config["budget"]["limit"] for cell in points] == [100_000, 200_000]


def test_a_grid_in_an_experiment_holds_unless_the_command_line_says_otherwise():
    assert {cell.varied["seed"] for cell in expand(["experiment=demo"])} == {"0", "1"}
    cells = expand(["experiment=demo", "seed=7", "strategy=wa"])
    assert [cell.job.config["seed"] for cell in cells] == [7]


def test_variants_of_an_experiment_are_left_out_with_a_word_where_a_method_is_named(caplog):
    """With none named they are rows, and there is nothing to say: tests/cli/test_forecast.py."""
    asked = ["experiment=pretrained_cifar100", "scale=quick"]
    assert [cell.label for cell in expand([*asked, "strategy=aper"])] == ["aper"]
    assert "strategy=aper leaves out the variants of the experiment: strategy=aper strategy.tuner=" in caplog.text
    with pytest.raises(ConfigError, match=r"variants is .*it must be a list of overrides, as in 'strategy=aper"):
        compose(["variants=['seed=1']"])


def test_ranges_of_hydra_work():
    assert len(expand(["seed=range(3)", "optimizer.lr=choice(0.1,0.2)"])) == 6


# the command --------------------------------------------------------------------------------------------------------


def test_a_page_of_somebody_else_is_named_before_anything_is_trained(cil, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/index.html").write_text("<p>my thesis</p>")
    said = cil("compare", *DIGITS, "strategy=finetune", "out=here")
    assert said.code == 2 and "here/index.html is there already, and no page of cil" in said.line
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["index.html"]


def test_a_comparison_leaves_runs_a_table_and_a_page(cil, tmp_path, monkeypatch):
    left = tmp_path / "here/.cil-partial.12.index.html", tmp_path / "here/phases/.cil-partial.12.0a1b.json"
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    said = cil("compare", *DIGITS, "strategy=finetune,replay", "seed=0,1", "jobs=2", "out=here")
    assert said.code == 0, said.err
    assert "replay" in said.out and said.out.endswith("\n\npage: here/index.html\n") and "\n\n\n" not in said.out
    assert len(list(tmp_path.glob("here/digits_b0_inc2/*/record.json"))) == 4
    assert not any(path.exists() for path in left)
    assert "<code>cil compare stream=split_digits trainer" in (tmp_path / "here/index.html").read_text()
    assert len((tmp_path / "here/table.csv").read_text().splitlines()) == 3
    assert "replay" in (tmp_path / "here/table.md").read_text()

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    again = cil("compare", *DIGITS[:-1], "strategy=finetune,replay", "seed=0,1", "jobs=2", "out=here")
    assert again.err.count("finished before, not run again") == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == stamps
    assert again.out == said.out

    def drawn(*_):
        raise AssertionError("an unchanged page was drawn again")

    monkeypatch.setattr("cil.report.page.html", drawn)
    assert cil("compare", *DIGITS[:-1], "strategy=finetune,replay", "seed=0,1", "jobs=2", "out=here").out == said.out


def test_a_page_is_current_for_its_records_and_its_own_text_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(signed_page, "plugin_points", lambda: ())
    run, page = tmp_path / "run", tmp_path / "index.html"
    (run / "checkpoint").mkdir(parents=True)
    (run / "record.json").write_text("1")
    records = [SimpleNamespace(directory=run)]
    key = signed_page.key_of_page(records, "title")
    assert not signed_page.is_current(page, key)
    page.write_text(signed_page.signed("<p>text</p>\n", key))
    (run / "checkpoint/state.safetensors").write_text("weights")  # what it holds is said by the file beside it
    assert signed_page.is_current(page, signed_page.key_of_page(records, "title"))
    (run / "checkpoint/experience-0001.json").write_text("sums")  # of exemplars, which a page shows
    assert not signed_page.is_current(page, signed_page.key_of_page(records, "title"))
    (run / "checkpoint/experience-0001.json").unlink()  # as by cil runs prune --checkpoints
    assert signed_page.is_current(page, signed_page.key_of_page(records, "title"))
    assert not signed_page.is_current(page, signed_page.key_of_page(records, "another title"))
    (run / "record.json").write_text("2")
    assert not signed_page.is_current(page, signed_page.key_of_page(records, "title"))
    page.write_text(page.read_text().replace("text", "test"))
    assert not signed_page.is_current(page, key)
    monkeypatch.setattr(signed_page, "plugin_points", lambda: ("point",))
    assert signed_page.key_of_page(records, "title") is None and not signed_page.is_current(page, None)


def test_a_run_of_a_comparison_is_the_run_alone_bit_for_bit(cil, tmp_path):
    cil("compare", *DIGITS, "strategy=replay,finetune", "trainer.threads=1", "out=many")
    cil("run", *DIGITS, "strategy=replay", "trainer.threads=1", "run_dir=one")
    many = Record.load(next(tmp_path.glob("many/*/replay*")))
    one = Record.load(tmp_path / "one")
    assert many.identity == one.identity
    files = [path.name for path in (tmp_path / "one/checkpoint").glob("experience-*.safetensors")]
    for name in files:
        assert (many.directory / "checkpoint" / name).read_bytes() == (tmp_path / "one/checkpoint" / name).read_bytes()
    assert many.results["accuracy_matrix"] == one.results["accuracy_matrix"]


def _place(*overrides: str) -> str:
    return folder_of(expand(overrides)[0].job, overrides)


def test_each_comparison_has_a_folder_of_its_own_that_the_same_command_finds():
    assert _place("experiment=demo") == "demo"
    assert _place("experiment=demo", "device=cpu", "progress=false", "logger=files") == "demo"
    first = _place("stream=split_digits", "strategy=wa,icarl")
    assert re.fullmatch(r"split_digits-[0-9a-f]{6}", first)
    assert _place("strategy=wa,icarl", "data_root=here", "stream=split_digits") == first
    assert _place("stream=split_digits", "strategy=wa,lwf") != first


def test_without_out_the_folder_is_beside_the_others(cil, tmp_path):
    assert cil("compare", *DIGITS, "strategy=finetune", "jobs=1").code == 0
    (page,) = tmp_path.glob("runs/compare-split_digits-*/index.html")
    assert cil("compare", *reversed(DIGITS), "strategy=finetune").out.endswith(f"page: {page.relative_to(tmp_path)}\n")


def test_one_over_its_budget_stops_no_other(cil, tmp_path):
    said = cil("compare", *DIGITS, "strategy=der,finetune", "budget=bytes", "budget.limit=50_000", "out=here")
    assert said.code == 0
    statuses = {path.name.partition("-")[0]: Record.load(path).status for path in tmp_path.glob("here/*/*/")}
    assert statuses == {"der": "over_budget", "finetune": "finished"}
    assert "der" in said.out and "over budget" in said.out


def test_what_is_wrong_with_one_is_said_before_any_is_trained(cil, tmp_path):
    said = cil("compare", *DIGITS, "strategy=finetune", "stream.increment=2,11", "out=here")
    assert said.code == 2
    assert said.line.startswith("cil: finetune, stream.increment=11: stream.increment is 11")
    assert not list(tmp_path.rglob("record.json"))


def test_progress_is_a_line_for_each_boundary(cil):
    err = cil("compare", *DIGITS[:-1], "strategy=finetune", "seed=0,1", "jobs=1", "out=here").err
    for number in (1, 2):
        start = f"[{number}/2] finetune, seed={number - 1}: "
        assert next(line for line in err.splitlines() if line.startswith(start)) == f"{start}started"
        assert f"{start}experience 5/5, loss" in err and f"{start}finished after" in err


def test_a_sweep_is_a_table_of_whatever_was_varied(cil):
    said = cil("sweep", *DIGITS, "strategy=replay", "optimizer.lr=0.01,0.1", "out=here")
    assert said.code == 0
    assert "replay (lr=0.01)" in said.out and "replay (lr=0.1)" in said.out


def test_an_interrupted_comparison_goes_on_where_it_stood(tmp_path):
    """Through real processes: the parent alone is told to stop."""
    command = [sys.executable, "-m", "cil.cli.main", "compare", "stream=split_digits", "strategy=replay", "seed=0,1",
               "trainer.epochs=60", "trainer.batch_size=16", "trainer.log_every=1", "jobs=1", "out=here"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not _lines(tmp_path) > 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was computed is in here; the same command goes on from there" in err
    (record,) = [Record.load(path.parent) for path in tmp_path.rglob("record.json")]
    assert record.status == "interrupted"
    assert list(record.directory.glob("snapshot/now.json")) or list(record.directory.glob("checkpoint/*.json"))


def _lines(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.rglob("metrics.jsonl"))


# the pool -----------------------------------------------------------------------------------------------------------


class _Fake:
    """Something that is executed like a run."""

    options = RunOptions()
    runtime = type("Runtime", (), {"threads": 1})

    def __init__(self, what: str) -> None:
        self.what = what

    def execute(self) -> None:
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "over":
            raise BudgetExceeded("too much")
        if self.what == "fail":
            raise TrainingError("not a number")
        if self.what == "bug":
            raise ValueError("a\nbug")


def test_a_worker_that_is_killed_fails_or_is_over_stops_no_other(tmp_path, capfd):
    kinds = ("kill", "over", "fail", "bug", "fine")
    runs = [QueuedRun(kind, tmp_path / kind, partial(_Fake, kind)) for kind in kinds]
    ends = run_all(runs, 2, fork=True, screen=ProgressScreen(len(runs)))
    assert [end.status for end in ends] == ["killed", "over_budget", "failed", "failed", "finished"]
    assert "signal 9 (SIGKILL)" in ends[0].error
    assert [end.error for end in (*ends[1:3], ends[4])] == ["too much", "not a number", None]
    assert ends[3].error.startswith("ValueError: a bug (") and "test_compare.py:" in ends[3].error
    assert re.search(r"\[1/5\] kill: killed after \d s: its process was ended by signal 9", capfd.readouterr().err)


def test_jobs_share_the_cores(monkeypatch):
    from cil.cli import environment
    from cil.cli.compare import jobs_of

    monkeypatch.setattr(environment, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cells = expand(["seed=range(6)"])
    assert jobs_of("auto", cells[0].job, len(cells)) == 6
    assert environment.threads_of(6) == 1 and environment.threads_of(2) == 4
    assert jobs_of("auto", expand(["seed=range(6)", "trainer.threads=4"])[0].job, 6) == 2
    assert jobs_of("3", cells[0].job, len(cells)) == 3


def test_a_job_composed_twice_is_the_same_job():
    assert compose(["seed=3"]).config == compose(["seed=3"]).config


# what a person sees, and a child that does not listen ----------------------------------------------------------------


def test_the_screen_says_where_a_budget_of_compute_ended_training(capsys):
    screen = ProgressScreen(1)
    screen.start(0, "wa")
    screen.advance(0, "boundary", 0, 2, 1.0, {"loss": 1.0, "ended_early": 1.0})
    screen.advance(0, "boundary", 1, 2, 1.0, {"loss": 1.0})
    first, second = capsys.readouterr().err.splitlines()[1:]
    assert first.endswith("experience 1/2, loss 1.000, training ended early by the budget")
    assert second.endswith("experience 2/2, loss 1.000")


def test_the_time_left_of_many_runs_is_told_from_what_is_done_now(capsys, monkeypatch):
    """Neither runs that were finished before nor what a run that goes on had behind it took any of this time."""
    now = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("cil.cli.progress_screen.time", SimpleNamespace(monotonic=lambda: next(now)))
    screen = ProgressScreen(4)
    for number in (0, 1):
        screen.end(number, "wa", "finished before, not run again", finished=True)
    screen.start(2, "icarl")
    screen.advance(2, "epoch", 1, 2, 0.0, {})
    screen.advance(2, "boundary", 1, 2, 1.0, {})
    screen.end(2, "icarl", "finished after 10 s", finished=True)  # half a run in 10 s, a whole one is left
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert lines == ["1/4 runs", "2/4 runs", "3/4 runs, ETA 20 s"]


def test_the_screen_says_how_all_runs_stand(capsys):
    screen = ProgressScreen(5)
    screen.end(0, "wa", "finished before, not run again", finished=True, accuracy=60.0)
    screen.end(4, "joint", "finished before, not run again", finished=True, accuracy=95.0, bound=True)
    for number, (label, accuracy) in enumerate({"icarl": 70.0, "lwf": 90.0, "bic": 65.0}.items(), start=1):
        screen.start(number, label)
        screen.advance(number, "boundary", 0, 1, 1.0, {"accuracy": accuracy})
    screen.end(1, "icarl", "finished after 1 s", finished=True)
    screen.end(2, "lwf", "failed after 1 s", finished=False)  # whose accuracy is of no finished run
    screen.end(3, "bic", "finished after 1 s", finished=True)
    err = capsys.readouterr().err.splitlines()
    stood = [line for line in err if not line.startswith("[")]
    assert stood[0] == "1/5 runs, best so far 60.00 % (wa)"
    assert stood[1] == "2/5 runs, best so far 60.00 % (wa)"  # a bound is not the best
    assert stood[2].startswith("3/5 runs, 2 running, ETA 0 s, best so far 70.00 % (icarl)")
    assert stood[3].startswith("4/5 runs, 1 running, 1 not finished, ETA 0 s, best so far 70.00 % (icarl)")
    assert stood[4] == "5/5 runs, 1 not finished, best so far 70.00 % (icarl)"


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_launcher_does_all_jobs_and_names_the_one_that_failed(launcher, cil, tmp_path):
    """With joblib and submitit the jobs are processes of their own."""
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    options = {"joblib": ["hydra.launcher.n_jobs=1"], "submitit_local": ["hydra.launcher.timeout_min=3"]}
    digits = ("stream=split_digits", "stream.increment=5", "strategy=finetune", "trainer.max_steps=1", "progress=false")
    said = cil(
        "sweep", f"hydra/launcher={launcher}", *options.get(launcher, []), *digits, "trainer.epochs=0,1", "out=o"
    )
    assert said.code == 1
    (line,) = [line for line in said.err.splitlines() if "trainer.epochs is 0" in line]
    assert line.startswith("cil: ") and "trainer.epochs=0: " in line
    assert f"cil: runs by hydra/launcher={launcher}; each says how it went" in said.err
    assert "page: o/index.html" in said.out and not list((tmp_path / "o").glob(".failures-*"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == ["o"]  # Hydra's files are in it
    (record,) = [Record.load(path.parent) for path in (tmp_path / "o").rglob("record.json")]
    assert record.status == "finished"


@pytest.mark.parametrize("key", ["hydra.launcher.n_job=2", "hydra/lancher=joblib"])
def test_a_misspelt_key_of_a_launcher_is_named_and_nothing_else_is_said(key, cil, tmp_path):
    said = cil("sweep", "hydra/launcher=basic", key, "strategy=finetune", "seed=0,1", "out=o")
    assert said.code == 2 and f"unknown key {key.partition('=')[0]}; cil run --cfg hydra shows" in said.err
    assert "no run at or under" not in said.err


def test_the_jobs_of_a_launcher_are_counted_with_what_the_experiment_sweeps_over():
    assert number_of_jobs(["strategy=wa,icarl", "seed=range(3)", "stream=split_digits"]) == 6
    assert number_of_jobs(["experiment=demo", "strategy=wa"]) == 2  # seeds 0 and 1 are the demo's


def test_a_launcher_that_is_interrupted_says_how_to_go_on(monkeypatch, tmp_path):
    from cil.cli import run

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "application", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
        run.launch(["seed=0,1", "--multirun"], str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_jobs_of_joblib_save_before_a_sweep_that_is_interrupted_ends(monkeypatch, tmp_path):
    """Joblib kills its jobs as soon as an exception reaches it, so none does; no further job begins."""
    from cil.cli import run

    ended, begun = [], []

    def jobs(arguments: object, task: partial[None]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(run, "check", begun.append)
        task = partial(task.func, *task.args[:3], -1)  # as in another process
        task(SimpleNamespace(config={}, overrides=()))
        ended.append(signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(run, "application", jobs)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from there"):
        run.launch(["hydra/launcher=joblib", "seed=0,1", "--multirun"], str(tmp_path))
    assert ended == [signal.SIG_IGN] and not begun and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is before


class Deaf:
    """A run that hears no signal."""

    options = RunOptions()

    def __init__(self, said: Path) -> None:
        self.said = said

    def execute(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.said.write_text(str(os.getpid()))
        time.sleep(120)


def test_a_child_that_ignores_signals_is_killed_after_a_while(tmp_path):
    said = tmp_path / "pid"

    def stop_once_it_runs():
        while not said.exists() or not said.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_once_it_runs, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        deaf = QueuedRun("deaf", tmp_path / "run", partial(Deaf, said))
        run_all([deaf], 1, fork=True, screen=ProgressScreen(1, quiet=True), grace=0.3)
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)
