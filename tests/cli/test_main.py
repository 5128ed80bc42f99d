"""The door: help, names, completion; fast because little is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cil.cli.main import COMMANDS
from cil.cli.names import KINDS, known

HEAVY = ("torch", "hydra", "omegaconf", "numpy", "torchvision", "timm", "wandb", "sklearn", "matplotlib")


def _python(code: str, cwd, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"], ["--version"], ["rum"]], ids=" ".join)
def test_the_door_imports_nothing_heavy(arguments, tmp_path):
    code = f"""
import sys
from cil.cli.main import main
main({arguments!r})
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert _python(code, tmp_path).splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    assert _python(f"import sys, cil; print([n for n in {HEAVY!r} if n in sys.modules])", tmp_path).strip() == "[]"


def test_help_names_every_command(cil):
    out = cil("--help").out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert cil().out == out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name, cil):
    said = cil(name, "--help")
    assert said.code == 0 and said.out.startswith(f"usage: cil {name}")


def test_list_tells_what_the_registries_know(cil):
    """The names are read off files; the registries are imported here to compare."""
    from cil.data import dataset_names
    from cil.memory import codecs, selections
    from cil.strategies import names as strategies
    from cil.tracking.loggers import names as loggers

    assert set(known("strategies")) == set(strategies())
    assert set(known("datasets")) == set(dataset_names())
    assert set(known("selections")) == set(selections._SELECTIONS)
    assert set(known("codecs")) == set(codecs._CODECS)
    assert set(known("loggers")) >= set(loggers()) - {"progress"}
    out = cil("list").out
    assert all(f"{kind}\n" in out for kind in (*KINDS, "plots")) and "Accuracy over the stream  " in out
    assert all(item.about for item in known("codecs").values())
    assert known("codecs")["jpeg"].about.startswith("JPEG bytes")
    assert "icarl" in cil("list", "strategies").out and "split_digits" not in cil("list", "strategies").out


def test_a_list_without_a_name_says_so(cil, monkeypatch):
    monkeypatch.setattr("cil.cli.listing.known", lambda kind: {})
    assert cil("list", "metrics").out == "metrics\n  none but those that are built in\n"


def test_every_model_file_names_a_model_that_there_is():
    from cil.cli.compose import compose
    from cil.models import names

    for name in known("models"):
        model = compose([f"model={name}"]).config["model"]["name"]
        assert model.startswith(("timm:", "clip:")) or model in names()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cil co", "compare"),
        ("cil run strategy=ic", "strategy=icarl"),
        ("cil compare trainer.ep", "trainer.epochs="),
        ("cil run optimizer=", "optimizer=adam optimizer=adamw optimizer=sgd"),
    ],
)
def test_completion_answers(line, expected, cil, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert cil("-sc", "query=bash").out.strip() == expected


def test_completion_installs(cil, monkeypatch):
    monkeypatch.delenv("COMP_LINE", raising=False)
    said = cil("-sc", "install=bash")
    assert said.code == 0 and said.out.strip().endswith("-F hydra_bash_completion cil")


def test_threads_and_spin_are_set_before_torch_is_imported(tmp_path):
    code = """
import os, sys
from cil.cli import environment
environment.prepare(["trainer.threads=1"])
assert "torch" not in sys.modules
import torch
print(torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"])
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "1000"]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cil.cli.main", "list", "strategies"],
        cwd=tmp_path, env=dict(os.environ), stdout=write, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_command_is_the_same(tmp_path):
    from pathlib import Path

    command = Path(sys.executable).with_name("cil")
    if not command.exists():
        pytest.skip("the package is not installed here")
    done = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cil ")
