"""A third-party package, installed for real: its strategy, configuration and stream are found by their names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package installed into a folder, and an environment that sees it."""
    source = tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(PACKAGE, source)  # a build leaves files
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}


def cil(arguments, environment, folder):
    command = [sys.executable, "-m", "cil.cli.main", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_its_strategy_and_stream_run_by_name(installed, tmp_path):
    options = [
        "strategy=prototypes",
        "stream=shuffled_digits",
        "strategy.scale=5",
        "trainer.max_steps=3",
        "run_dir=out",
    ]
    done = cil(["run", *options], installed, tmp_path)
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
    done = cil(["run", "strategy=prototypes"], dict(os.environ), tmp_path)
    assert done.returncode == 2
    assert "prototypes" in done.stderr
