"""Commands that use finished runs: predict, export, diff, cite, runs."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cil as package
from cil.cli.cite import PAPERS, entries, source
from cil.cli.predict import shorter_side
from cil.errors import ConfigError
from cil.exchange import export, export_backbone
from cil.models import build_backbone
from cil.strategies import find
from cil.tracking.lock import DirectoryLock

DIGITS = ("stream=split_digits", "stream.train_per_class=20", "trainer.epochs=1", "progress=false")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs, one of which has other settings."""
    from cil.cli.main import main

    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", *DIGITS, "strategy=icarl", f"run_dir={folder}/icarl"]) == 0
    assert main(["run", *DIGITS, "strategy=wa", "optimizer.lr=0.07", f"run_dir={folder}/wa"]) == 0
    return folder


@pytest.fixture
def pictures(tmp_path):
    test = package.class_incremental("digits", increment=2).test(0)
    (tmp_path / "pictures").mkdir()
    for row in range(3):
        Image.fromarray(test.pixels[row, 0].numpy()).save(tmp_path / "pictures" / f"{row}.png")
    return tmp_path / "pictures", test


def test_predict_answers_as_the_loaded_run_does(cil, runs, pictures):
    folder, test = pictures
    said = cil("predict", runs / "icarl", folder, "--top", "2", "--json")
    assert said.code == 0
    net = package.load(runs / "icarl")
    with torch.no_grad():
        scores, places = net(test.pixels[:3].float() / 255).topk(2)
    found = json.loads(said.out)
    assert [Path(one["file"]).name for one in found] == ["0.png", "1.png", "2.png"]
    assert [one["classes"] for one in found] == [[net.classes[i] for i in row] for row in places.tolist()]
    assert np.allclose([one["scores"] for one in found], scores)


def test_predict_brings_other_sizes_and_colours_to_those_of_the_stream(cil, runs, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    assert len(json.loads(cil("predict", runs / "wa", tmp_path / "large.png", "--json").out)[0]["classes"]) == 3


def test_predict_cuts_files_as_the_stream_of_the_run_did():
    def side(config):
        return shorter_side({"config": config}, 224)

    assert side({"stream": {"dataset": "folder", "in_memory": False}}) is None  # FileStore: 256 of 224
    assert side({"stream": {"dataset": "folder", "in_memory": "mapped"}}) == 224
    assert side({"stream": {"dataset": "digits"}}) == side(None) == 224  # arrays; a run of Python


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["RUN"], "needs a run directory, and images"),
        (["RUN", "missing.png"], "missing.png is no file"),
        (["RUN", "empty"], "empty has no images"),
        (["RUN", "missing.png", "--top", "0"], "--top is 0"),
        (["RUN", "missing.png", "--experience", "9"], "experience 9 of"),
    ],
)
def test_predict_refuses(cil, runs, arguments, line):
    Path("empty").mkdir()
    said = cil("predict", *(runs / "wa" if item == "RUN" else item for item in arguments))
    assert said.code == 2 and line in said.line


def test_an_exported_program_answers_as_the_run_for_any_number_of_images(cil, runs, tmp_path):
    said = cil("export", runs / "icarl", "net.pt2")
    assert said.code == 0, said.err
    net, images = package.load(runs / "icarl"), torch.rand(40, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(torch.export.load("net.pt2").module()(images), net(images), atol=1e-4)
    assert Path("net.classes.txt").read_text().split() == net.classes


def test_an_exported_onnx_file_answers_as_the_run(runs, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net = package.load(runs / "wa")
    assert export(net, tmp_path / "net.onnx") < 1e-4
    images = torch.rand(7, 1, 8, 8)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    with torch.no_grad():
        assert np.allclose(session.run(None, {"images": images.numpy()})[0], net(images), atol=1e-4)


def test_what_cannot_be_exported_is_told_and_leaves_no_file(runs, tmp_path, monkeypatch):
    net = package.load(runs / "wa")
    monkeypatch.setattr(net.learner, "predict", lambda images: torch.ones(int(images.sum()), 2))
    with pytest.raises(ConfigError, match=r"WA\.predict cannot be exported"):
        export(net, tmp_path / "net.pt2")
    with pytest.raises(ConfigError, match=r"must end with \.pt2 or \.onnx"):
        export(net, tmp_path / "net.bin")
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_kept(runs, tmp_path):
    net = package.load(runs / "wa")
    asked = []
    predict = net.learner.predict
    net.learner.predict = lambda images: predict(images) + len(asked) * (asked.append(0) is None)  # drifts
    with pytest.raises(ConfigError, match="answers otherwise"):
        export(net, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_an_exported_backbone_is_a_pretrained_one_of_other_runs(cil, runs):
    said = cil("export", runs / "wa", "wa.safetensors")
    assert said.code == 0 and hashlib.sha256(Path("wa.safetensors").read_bytes()).hexdigest() in said.out
    net = package.load(runs / "wa").learner.net
    read = build_backbone("smallconv", 1, (8, 8), "wa.safetensors").eval()
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(read(images)[0], net.backbone.eval()(images)[0])  # memory layouts differ


def test_only_a_single_plain_network_is_exported_as_weights(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = package.load(runs / "wa")
    with pytest.raises(ConfigError, match=r"must end with \.safetensors"):
        export_backbone(net, "wa.pt2")
    monkeypatch.setattr(net.learner, "net", net.learner.net.head)
    with pytest.raises(ConfigError, match="WA has no single network"):
        export_backbone(net, "wa.safetensors")
    assert not Path("wa.safetensors").exists()


def test_a_frozen_backbone_beside_which_something_learned_is_no_result(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = package.load(runs / "wa")
    net.learner.keep("map", torch.nn.Linear(2, 2), kind="parameters")
    assert export_backbone(net, "learned.safetensors")  # its backbone learned too
    net.learner.net.backbone.requires_grad_(False)
    with pytest.raises(
        ConfigError, match=r"^WA learns in map, beside a backbone that is frozen; .* NAME\.pt2 or NAME\."
    ):
        export_backbone(net, "frozen.safetensors")
    assert not Path("frozen.safetensors").exists()


def test_a_method_that_needs_the_task_of_an_image_says_so(cil, runs, pictures, monkeypatch):
    monkeypatch.setattr(find("wa"), "takes_task", True)
    said = cil("predict", runs / "wa", pictures[0])
    assert (
        said.code == 2 and "WA answers within the task of an image, and none is given: in Python cil.load" in said.line
    )
    said = cil("export", runs / "wa", "net.pt2")
    assert said.code == 2 and "WA answers within the task of an image" in said.line


# diff ---------------------------------------------------------------------------------------------------------------


def test_diff_names_what_differs_and_where_it_came_from(cil, runs):
    said = cil("diff", runs / "icarl", runs / "wa", "--json")
    rows = {row["key"]: row for row in json.loads(said.out)}
    assert rows["optimizer.lr"] | {"key": ""} == {
        "key": "", "first": 0.1, "second": 0.07, "first from": "conf/optimizer/sgd.yaml", "second from": "command line",
    }  # fmt: skip
    assert rows["strategy.strength"]["second from"] == "conf/strategy/wa.yaml"
    assert "seed" not in rows and "stream.fingerprint" not in rows
    assert "last_accuracy: " in cil("diff", runs / "icarl", runs / "wa").out
    assert "no setting differs" in cil("diff", runs / "wa", runs / "wa").out


# cite ---------------------------------------------------------------------------------------------------------------


def test_every_paper_that_a_method_names_is_in_the_bibliography():
    named = {name: package.strategies.find(name) for name in package.strategies.built_in()}
    named |= {name: package.adapt.find(name) for name in package.adapt.names() if name not in ("source",)}
    for name, method in named.items():
        numbers = re.findall(r"arXiv:(\d{4}\.\d{5})", source(method))
        found = "\n".join(entries([name]))
        assert all(number in found for number in numbers), f"{name}: {numbers} are not in {PAPERS.name}"


def test_cite_prints_sources_of_runs_and_entries_of_names(cil, runs):
    said = cil("cite", runs)
    assert "icarl: Rebuffi" in said.out and "wa: Zhao" in said.out
    said = cil("cite", "icarl", "--bibtex").out
    assert "eprint={1611.07725}" in said and "methods" not in said and said.count("@") == 1
    assert "no folder and no method" in cil("cite", "icral").line
    said = cil("cite", "avalanche", "linear_probe", "--bibtex")
    assert "eprint={2104.00405}" in said.out and said.err == "cil: note: no entry is known for linear_probe\n"


# runs ---------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_thinned_out_and_moved(cil, runs, tmp_path):
    rows = json.loads(cil("runs", "list", runs, "--json").out)
    assert [(row["method"], row["status"], row["done"]) for row in rows] == [
        ("icarl", "finished", "5/5"),
        ("wa", "finished", "5/5"),
    ]
    assert [row["budget"] for row in rows] == ["200 exemplars"] * 2
    said = cil("runs", "move", runs / "wa", tmp_path / "moved" / "wa")
    assert said.code == 0 and said.out.endswith("moved/wa: 1 run\n") and not (runs / "wa").exists()
    assert "would free" in cil("runs", "prune", "moved", "--checkpoints").out
    assert (tmp_path / "moved/wa/checkpoint").is_dir()
    assert "removed" in cil("runs", "prune", "moved", "--checkpoints", "--yes").out
    assert not (tmp_path / "moved/wa/checkpoint").exists()
    assert "wa" in cil("report", "moved").out  # its table stays
    assert cil("runs", "prune", "moved", "--checkpoints").out == "nothing to remove\n"
    assert "say what may go" in cil("runs", "prune", "moved").out
    assert "would lie in " in cil("runs", "move", "moved/wa", runs / "icarl").line  # no table would find it there
    (tmp_path / "file").write_text("mine")
    assert "file cannot be made" in cil("runs", "move", "moved/wa", "file/wa").line
    assert cil("runs", "move", "moved/wa", runs / "wa").code == 0


def test_a_run_whose_process_is_gone_is_stopped_and_one_that_is_written_is_left_alone(cil, runs, tmp_path):
    import shutil

    shutil.copytree(runs / "icarl", tmp_path / "half")
    record = package.Record.load(tmp_path / "half")
    record.status, record.writable = "running", True
    record.save()
    assert json.loads(cil("runs", "list", "half", "--json").out)[0]["status"] == "stopped"
    lock = DirectoryLock(tmp_path / "half")
    assert json.loads(cil("runs", "list", "half", "--json").out)[0]["status"] == "running"
    assert "nothing to remove" in cil("runs", "prune", "half", "--unfinished").out
    assert "being written" in cil("runs", "move", "half", "elsewhere").line
    lock.close()
    assert "a run that is stopped" in cil("runs", "prune", "half", "--unfinished", "--yes").out
    assert not (tmp_path / "half").exists()


def test_runs_refuses(cil, runs):
    assert "needs list, prune or move" in cil("runs").line
    assert "no 'cil runs lst'" in cil("runs", "lst").line
    assert "exists already" in cil("runs", "move", runs / "wa", runs / "icarl" / "record.json").line
