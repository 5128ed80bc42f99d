"""Adapters on the command line: run, compare, report, show, list; a finished run and a file of weights as source."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from unsealed import unsealed

import cil as package
from cil.models import NetFactory, build_backbone
from cil.models.classifier import save_classifier
from cil.tracking import Record

STREAM = (
    "stream=mnist5k_corrupted", "stream.corruptions=[brightness,contrast]", "stream.images=25", "progress=false",
    "adaptation.batch_size=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished run over all ten digits, in an order of its own."""
    folder = tmp_path_factory.mktemp("source") / "run"
    torch.set_num_threads(1)
    package.run(
        "stream=split_mnist5k", "strategy=finetune", "stream.increment=5", "stream.train_per_class=20",
        "stream.test_per_class=3", "trainer.epochs=1", "progress=false", "trainer.threads=1", f"run_dir={folder}",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    net = NetFactory(lambda: build_backbone("smallconv", 1, 28), mean=[0.1], std=[0.3])()
    net.grow(10)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_classifier(net, path)
    return path


def test_an_adapter_meets_a_stream_on_top_of_a_finished_run(cil, tmp_path, source):
    said = cil("run", *STREAM, "adapter=bn_stats", f"source={source}", "adaptation.clean=true")
    assert said.code == 0, said.err
    record = Record.load(next(tmp_path.glob("runs/*/bn_stats-on-*-s0-*")))
    assert record.identity["kind"] == "adaptation" and record.identity["source"]["strategy"] == "finetune"
    assert "strategy" not in record.identity["config"] and "source" not in record.identity["config"]
    errors = record.results["domain_errors"]
    assert f"brightness {errors[0]:.1f}  contrast {errors[1]:.1f}" in said.out
    assert f"mean over domains {sum(errors) / 2:.2f} %   clean {record.results['clean_error_before']:.2f} %" in said.out
    again = cil("run", *STREAM, "adapter=bn_stats", f"source={source}", "adaptation.clean=true")
    assert "was finished before, nothing was run" in again.out
    shown = cil("show", str(record.directory)).out
    assert "brightness |" in shown and f"| {errors[1]:.1f} %" in shown
    refused = cil("run", *STREAM, "adapter=source", f"source={record.directory}")
    assert refused.code == 2 and "is of the kind adaptation; give the run of a strategy" in refused.line


def test_several_adapters_are_compared_in_a_table_and_on_a_page(cil, tmp_path, weights):
    model = ("model=smallconv", f"model.weights={weights}")
    said = cil("compare", *STREAM, *model, "adapter=source,tent", "seed=0,1", "jobs=1", "out=both")
    assert said.code == 0, said.err
    assert "mean %" in said.out and "tent" in said.out and "brightness" in said.out
    page = (tmp_path / "both" / "index.html").read_text()
    assert "Error over time" in page and "How to read adaptation runs" in page
    assert page.count("<svg") == 2
    csv = cil("report", "both", "--csv").out.splitlines()
    assert csv[0].startswith("table,title,label,n,seeds,mean_error") and len(csv) == 3
    records = [Record.load(path.parent) for path in sorted((tmp_path / "both").glob("*/*/record.json"))]
    tent = [record for record in records if record.identity["adapter"] == "tent"]
    mean = sum(record.results["mean_error"] for record in tent) / 2
    row = next(line for line in csv if ",tent," in line)
    assert f",2,0 1,{mean}," in row


def test_what_an_adapter_carries_is_told_without_a_run(cil, tmp_path, weights):
    said = cil("run", *STREAM, "adapter=tent", "model=smallconv", f"model.weights={weights}", "--dry-run")
    assert said.code == 0 and "optimizer" in said.out and not list(tmp_path.iterdir())


def test_all_adapters_are_listed(cil):
    out = cil("list", "adapters").out
    assert "source" in out and "tent" in out and "built in" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stream=mnist5k_corrupted",), "choose an adapter for it, as in adapter=tent"),
        (("adapter=tent", "model.weights=none.safetensors"), "images that shift; 'mnist5k_b0_inc2' is class-incr"),
        (("stream=mnist5k_corrupted", "adapter=tent"), "give model.weights=FILE, or source=RUN_DIR"),
        (("stream=mnist5k_corrupted", "adapter=tent", "model.weights=none.pt"), "model.weights=none.pt is no file"),
        (("stream=mnist5k_corrupted", "adapter=tent", "source=nowhere"), "nowhere is no run directory"),
        (("stream=mnist5k_corrupted", "adapter=tent", "strategy=wa"), "an adaptation run has no strategy"),
        (("stream=mnist5k_corrupted", "adapter=tnt"), "no adapter 'tnt' (key adapter); did you mean 'tent'"),
        (("source=somewhere",), "source=somewhere is for adapters"),
        (("adapter=tent", "adaptation.batch_size=0"), "adaptation.batch_size is 0; it must be a whole number"),
        (("stream=mnist5k_corrupted", "adapter=tent", "adapter.lrr=1"), "unknown key adapter.lrr"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(cil, tmp_path, arguments, says):
    said = cil("run", *arguments, "progress=false")
    assert said.code == 2
    assert says in said.line
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_classes_is_refused(cil, tmp_path, source):
    path = source.parent / "other" / "record.json"
    if not path.exists():
        import shutil

        shutil.copytree(source, path.parent)
        record = json.loads((unsealed(path.parent) / "record.json").read_text())
        record["identity"]["stream"]["classes"][3] = "a cat"
        path.write_text(json.dumps(record))
    said = cil("run", *STREAM, "adapter=source", f"source={path.parent}")
    assert said.code == 2
    assert "they must be the same, and differ in" in said.line and "a cat" in said.line


def test_weights_of_another_number_of_classes_are_refused(cil, weights, tmp_path):
    tensors = load_file(weights)
    small = {name: t[:7].clone() if name.startswith("head.") else t for name, t in tensors.items()}
    save_file(small, tmp_path / "small.safetensors")
    said = cil(
        "run", *STREAM, "adapter=source", "model=smallconv", f"model.weights={tmp_path / 'small.safetensors'}",
        "+model.mean=[0.1]", "+model.std=[0.3]",
    )  # fmt: skip
    assert said.code == 2
    assert "the source has 7 classes of images (1, 28, 28)" in said.line


def test_it_is_one_call_from_python(weights, tmp_path):
    import cil.streams  # noqa: F401
    from cil.streams import stream_builder

    stream = stream_builder("corrupted")(dataset="mnist5k", corruptions=["brightness"], images=12)
    record = package.adapt_to(
        stream, "tent", {"name": "smallconv", "weights": str(weights)}, batch_size=5, root=tmp_path, device="cpu"
    )
    assert record.status == "finished"
    assert record.arrays()["count"].tolist() == [5, 5, 2]


def test_classes_of_a_run_are_found_by_name_whatever_their_order(source, tmp_path):
    from cil.streams import stream_builder

    stream = stream_builder("corrupted")(dataset="mnist5k", corruptions=["brightness"], images=60, shuffle=True)
    trained, clean = package.load(source), stream.clean()
    assert trained.classes != list(stream.classes)
    with torch.no_grad():
        best = trained(clean.images).argmax(1).tolist()
    wrong = sum(trained.classes[k] != stream.classes[slot] for k, slot in zip(best, clean.slots.tolist(), strict=True))
    record = package.adapt_to(stream, "source", source, clean=True, root=tmp_path, device="cpu")
    assert record.results["clean_error_before"] == pytest.approx(100 * wrong / len(clean))


def test_an_adapter_that_cuts_a_network_says_which_runs_it_takes(cil, tmp_path):
    options = ("stream.increment=10", "trainer.epochs=1", "trainer.max_steps=1", "progress=false", "model=resnet14",
               "stream.train_per_class=4", "stream.test_per_class=1", "trainer.batch_size=8")  # fmt: skip
    assert cil("run", "strategy=ecotta_cil", *options, "run_dir=metas").code == 0
    said = cil("run", *STREAM, "adapter=ecotta", "source=metas")
    assert said.code == 2
    assert "adapter=ecotta cuts one chain of residual blocks, and source=metas (strategy=ecotta_cil)" in said.line
    assert "strategy=finetune or replay" in said.line
    assert cil("run", *STREAM, "adapter=bn_stats", "source=metas", "--dry-run").code == 0
