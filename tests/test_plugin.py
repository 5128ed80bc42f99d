"""A third-party package, installed for real: its strategy, streams, kind of run and budgets are found by name."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import run_command

from cil import api, plugins, report, strategies, testing
from cil.strategies.registry import STRATEGIES
from cil.streams.registry import STREAMS

PACKAGE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the package is installed."""
    source = tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(PACKAGE, source)  # a build leaves files
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def _forget() -> None:
    plugins.forget()
    api._distributions.cache_clear()


@contextmanager
def seen(site: Path | None, folder: Path) -> Iterator[None]:
    """This process in a folder, as if it had been started with the package on its path; None: without it."""
    known = [(registry, dict(registry.registered)) for registry in (STRATEGIES, STREAMS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "120")
        if site is not None:
            patch.syspath_prepend(site)
        _forget()
        yield
    _forget()
    for registry, before in known:
        own = {name: thing for name, thing in registry.registered.items() if thing.__module__.startswith("cil.")}
        registry.registered = own | before


def cil(arguments, site, folder):
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with seen(site, folder), redirect_stdout(out), redirect_stderr(err):
        code = run_command(arguments)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def python(arguments, site, folder):
    """A process of its own that sees the package."""
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


def test_its_strategy_and_stream_run_by_name(installed, tmp_path):
    options = [
        "strategy=prototypes",
        "stream=shuffled_digits",
        "strategy.scale=5",
        "trainer.max_steps=3",
        "run_dir=out",
    ]
    done = python(["-m", "cil.cli.main", "run", *options], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["identity"]["stream"]["name"].startswith("shuffled_digits")
    prototypes = record["results"]["ledger"][-1]["totals"]["exact"]["prototypes"]
    assert prototypes == 10 * 32 * 4  # ten classes, 32 features, float32


def test_the_list_says_where_it_comes_from(installed, tmp_path):
    done = cil(["list", "strategies"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("prototypes")]
    assert "cil-prototypes" in line


def test_a_wrong_key_of_its_config_is_refused(installed, tmp_path):
    done = cil(["run", "strategy=prototypes", "stream=shuffled_digits", "strategy.scal=5"], installed, tmp_path)
    assert done.returncode == 2
    assert "strategy.scal" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_it_keeps_the_contract(installed, tmp_path):
    done = cil(["check", "cil_prototypes.prototypes:Prototypes"], installed, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_the_package_the_name_is_unknown(tmp_path):
    done = cil(["run", "strategy=prototypes"], None, tmp_path)
    assert done.returncode == 2
    assert "prototypes" in done.stderr


# a kind of run, and further budgets -----------------------------------------------------------------------------------

GALLERY = ("stream=growing_gallery", "trainer.max_steps=3", "progress=false")
RESUMED = '''
import json
from contextlib import suppress

import cil
from cil.testing.subject import Interruption
from cil_retrieval.gallery import growing_gallery

stream = growing_gallery("digits", increment=5, train_per_class=10, test_per_class=6)
budget = cil.Budget(exemplars=20, caps={"inference_parameters": 50_000, "prediction_seconds": 60.0})
recipe = cil.Recipe(epochs=2, batch_size=8, log_every=1, snapshot_steps=2)


def trained(run_dir, *stops):
    """A run that is interrupted after so many steps, each time it is run again."""
    statuses = []
    for loggers in (*([Interruption(stop)] for stop in stops), []):
        with suppress(KeyboardInterrupt):
            cil.train("replay", stream, "smallconv", budget, recipe=recipe, run_dir=run_dir, loggers=loggers)
        record = cil.Record.load(run_dir)
        statuses.append(record.status)
    return record.kind, statuses, record.results


print(json.dumps([trained("straight"), trained("resumed", 3, 30)]))
'''
CHEAT = '''
from cil.strategies.finetune import Finetune


class Centred(Finetune):
    """Its features depend on the company in which an image comes; its scores do not."""

    def build_net(self):
        net = super().build_net()
        net.register_forward_hook(lambda _, given, out: out._replace(features=out.features - out.features.mean(0)))
        return net
'''


@pytest.fixture(scope="module")
def compared(installed, tmp_path_factory):
    """Two strategies on the gallery, one of which has too many parameters; the folder, and the command."""
    folder = tmp_path_factory.mktemp("compared")
    cap = "budget.caps.inference_parameters=15000"
    command = ["compare", "strategy=finetune,der", *GALLERY, cap, "jobs=1", "out=out"]
    done = cil(command, installed, folder)
    assert done.returncode == 0, done.stderr
    return folder, command, done


def record_of(folder, strategy):
    (path,) = folder.glob(f"out/*/{strategy}-*/record.json")
    return json.loads(path.read_text())


def test_its_kind_of_run_is_trained_resumed_and_read_back(installed, tmp_path):
    done = python(["-c", RESUMED], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    (kind, straight, expected), (_, resumed, results) = json.loads(done.stdout)
    assert kind == "retrieval" and straight == ["finished"]
    assert resumed == ["interrupted", "interrupted", "finished"]
    assert len(expected["recall_at_1"]) == 2 and expected["gallery"] == [15, 30]
    seconds = [found["caps"].pop("prediction_seconds")["measured"] for found in (expected, results)]
    assert all(len(measured) == 2 and min(measured) > 0 for measured in seconds)
    del expected["seconds"], results["seconds"]
    assert results == expected


def test_its_kind_reports_in_every_form(compared, installed):
    folder, _, done = compared
    assert "Retrieval: gallery_digits_b0_inc2: 10 classes in 5 experiences of 2" in done.stdout
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("finetune"))
    recall = record_of(folder, "finetune")["results"]["recall_at_1"]
    assert row[2] == f"{recall[-1]:.2f}" and row[4] == f"{sum(recall) / len(recall):.2f}"
    assert "| strategy | n | last recall@1 % | last mAP % |" in (folder / "out/table.md").read_text()
    with (folder / "out/table.csv").open() as file:
        entries = {entry["label"]: entry for entry in csv.DictReader(file)}
    assert float(entries["finetune"]["last recall@1 %"]) == recall[-1] and not entries["der"]["last recall@1 %"]
    page = (folder / "out/index.html").read_text()
    assert "Recall over experiences" in page and page.count("<svg") == 1 and "How to read retrieval runs" in page
    with seen(installed, folder):
        as_json = report.to_json(report.table(report.find_runs("out")))
    assert json.loads(as_json)["sections"][0]["rows"][0]["label"] == "finetune"


def test_what_structure_tells_is_capped_before_training(compared, installed):
    folder, command, done = compared
    refused, fits = record_of(folder, "der"), record_of(folder, "finetune")
    assert refused["status"] == "over_budget" and "budget.caps.inference_parameters is 15,000" in refused["error"]
    assert not list(folder.glob("out/*/der-*/checkpoint/*")) and "recall_at_1" not in refused["results"]
    caps = [record["results"]["caps"]["inference_parameters"] for record in (refused, fits)]
    assert [cap["limit"] for cap in caps] == [15000, 15000]
    assert len(caps[0]["measured"]) == 5 and max(caps[1]["measured"]) < 15000 < caps[0]["measured"][-1]
    assert "inference_parameters (parameters)" in done.stdout and f"{caps[0]['measured'][-1]:,.0f}" in done.stdout
    written = {path: path.stat().st_mtime_ns for path in folder.glob("out/*/finetune-*/metrics.jsonl")}
    again = cil(command, installed, folder)  # finds what is finished, and refuses again
    assert again.returncode == 0 and again.stdout == done.stdout
    assert written == {path: path.stat().st_mtime_ns for path in written}
    dry = cil(["run", "strategy=der", *GALLERY, command[-3], "--dry-run"], installed, folder)
    assert "der does not fit" in dry.stdout and "budget.caps.inference_parameters" in dry.stdout


def test_what_must_be_measured_is_capped_when_it_is(installed, tmp_path):
    done = cil(["run", "strategy=finetune", *GALLERY, "budget.caps.prediction_seconds=1e-9", "run_dir=out"],
               installed, tmp_path)  # fmt: skip
    assert done.returncode == 2 and "s/image after experience 0, budget.caps.prediction_seconds is 1e-09" in done.stderr
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record["status"] == "over_budget" and len(record["results"]["caps"]["prediction_seconds"]["measured"]) == 1


def test_its_kind_has_a_rule_of_its_own(installed, tmp_path):
    (tmp_path / "cheat.py").write_text(CHEAT)
    few = ("stream.train_per_class=4", "stream.test_per_class=4")
    done = cil(["check", "cheat:Centred", "stream=growing_gallery", *few], installed, tmp_path)
    sys.modules.pop("cheat")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ok     same_seed_same_bits" in done.stdout
    finetune = strategies.find("finetune")
    with seen(installed, tmp_path):
        make = STREAMS.find("growing_gallery")
        stream = make("digits", increment=2, train_per_class=4, test_per_class=4).reduced()
        kind = testing.kind_of(finetune, stream)
        rules = [rule for rule in kind.rules() if rule.__name__ == "a_query_finds_the_same_alone"]
        assert [found.error for found in testing.outcomes(kind.subject(finetune, {}, stream), rules)] == [None]
    broken = [line for line in done.stdout.splitlines() if line.startswith("BROKEN")]
    told = "BROKEN a_query_finds_the_same_alone: a query that is asked alone finds other images"
    assert len(broken) == 1 and broken[0].startswith(told)


def test_without_the_package_its_records_are_left_out_with_one_line(compared):
    folder, _, _ = compared
    done = cil(["report", "out"], None, folder)
    assert done.returncode == 0, done.stderr
    words = " ".join((done.stdout + done.stderr).split())
    assert words.startswith("! Left out, because their kind is not installed: 2 runs (cil.kinds has no 'retrieval'")
    assert words.count("!") == 1 and len(words) < 200
