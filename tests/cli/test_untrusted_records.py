"""A run directory of a stranger is data: nothing that it names is imported or called."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from unsealed import unsealed

import cil
from cil.cli.main import main
from cil.errors import ConfigError
from cil.tracking import Record


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    code = main(
        ["run", "scale=quick", "strategy=finetune", "stream=split_digits", f"run_dir={folder}", "progress=false"]
    )
    assert code == 0
    return folder


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a file where it is imported or called."""
    (tmp_path / "trap_of_a_record.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'sprung')!r}).write_text('imported')\n"
        f"def spring(**given):\n    Path({str(tmp_path / 'sprung')!r}).write_text('called')\n"
        "class Spring:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "sprung"
    sys.modules.pop("trap_of_a_record", None)


def altered(run_dir, tmp_path, change):
    """A copy of the run whose record says something else."""
    folder = tmp_path / "altered"
    folder.mkdir()
    for path in run_dir.rglob("*"):
        target = folder / path.relative_to(run_dir)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(path.read_bytes())
    content = json.loads((unsealed(folder) / "record.json").read_text())
    change(content["identity"]["config"])
    (folder / "record.json").write_text(json.dumps(content))
    return folder


STREAMS = {
    "a target in place of the builder": lambda config: config.update(
        stream={"builder": None, "_target_": "trap_of_a_record.spring"}
    ),
    "a target beside the builder": lambda config: config["stream"].update(_target_="trap_of_a_record.spring"),
    "a target inside a value": lambda config: config["stream"].update(name={"_target_": "trap_of_a_record.spring"}),
    "a target inside a list": lambda config: config["stream"].update(order=[{"_target_": "trap_of_a_record.spring"}]),
    "a path to code as the builder": lambda config: config["stream"].update(builder="trap_of_a_record:spring"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_a_record_is_a_registered_builder(name, run_dir, tmp_path, trap, capsys):
    folder = altered(run_dir, tmp_path, STREAMS[name])
    assert main(["evaluate", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("cil: ")
    assert not trap.exists()


STRATEGIES = {
    "another class": lambda config: config.update(strategy={"_target_": "trap_of_a_record.Spring"}),
    "a function": lambda config: config.update(strategy={"_target_": "trap_of_a_record.spring"}),
    "a function of the system": lambda config: config.update(strategy={"_target_": "os.system", "command": "true"}),
    "an argument to call": lambda config: config["strategy"].update(x={"_target_": "trap_of_a_record.spring"}),
    "a name": lambda config: config.update(strategy="trap_of_a_record:Spring"),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_of_a_record_is_a_registered_one(name, run_dir, tmp_path, trap):
    folder = altered(run_dir, tmp_path, STRATEGIES[name])
    with pytest.raises(ConfigError):
        cil.load(folder)
    assert not trap.exists()


def test_an_own_class_is_taken_from_the_caller(run_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_idea_of_a_caller.py").write_text(
        "from cil.strategies.finetune import Finetune\n\n\nclass Own(Finetune):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "own"
    options = ["scale=quick", "stream=split_digits", f"run_dir={folder}", "progress=false"]
    assert main(["run", "strategy=own_idea_of_a_caller:Own", *options]) == 0
    sys.modules.pop("own_idea_of_a_caller")
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 2
    assert "strategy=module:Class" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "strategy=own_idea_of_a_caller:Own"]) == 0
    sys.modules.pop("own_idea_of_a_caller", None)


def test_a_run_whose_class_is_imported_loads(run_dir):
    record = Record.load(run_dir)
    assert isinstance(cil.load(run_dir)(torch.rand(2, *record.identity["stream"]["image_shape"])), torch.Tensor)


def test_pickled_weights_are_refused_without_a_tip_to_read_them_all_the_same(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"state_dict": {"stem": object()}}, path)
    from cil.models.weights import read_weights

    with pytest.raises(ConfigError) as refused:
        read_weights(path)
    assert "weights_only" not in str(refused.value)
    assert "pickled objects" in str(refused.value)
