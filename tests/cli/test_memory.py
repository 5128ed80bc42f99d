"""cil memory, and budget.training_bytes: what a step will hold is told, and held to, before the first one."""

from __future__ import annotations

import json

import pytest

from cil.models import NetFactory, build_backbone
from cil.models.classifier import save_classifier
from cil.tracking import Record

TOY = ("stream=split_digits", "stream.classes=6", "budget.exemplars=20", "trainer.batch_size=16")  # 3 experiences
SHORT = ("trainer.max_steps=2", "trainer.epochs=1", "optimizer.lr=0.01", "progress=false")


def told(cil, *arguments: str) -> dict:
    said = cil("memory", *arguments, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_what_is_told_before_is_what_the_record_bills(cil):
    (found,) = told(cil, *TOY, "strategy=icarl").values()
    cil("run", *TOY, *SHORT, "strategy=icarl", "run_dir=a")
    results = Record.load("a").results
    assert found["total"] == results["peak_training_bytes"]
    assert found["device"] == "meta" and "of 3, phase main" in found["where"]
    assert found["kinds"]["activations"] == found["saved"]["storage_bytes"]
    assert sum(found["saved"]["dtypes"].values()) == found["saved"]["storage_bytes"]
    for kind in ("gradients", "optimizer"):
        assert sum(part[kind] for part in found["parts"]) == found["kinds"][kind]


def test_the_table_has_a_row_for_each_part_and_both_accountings(cil):
    said = cil("memory", *TOY, "strategy=finetune", "--depth", "2", "--experience=3")
    assert said.code == 0
    assert "finetune on smallconv: experience 3 of 3, phase main, 16 images; on meta: shapes alone, no data" in said.out
    rows = [line.split()[0] for line in said.out.splitlines() if line.startswith(("net.", "(outside)"))]
    assert rows == ["net.normalise", "net.backbone", "net.head", "(outside)"]
    assert "held in such a step:" in said.out and "saved for backward (exact):" in said.out
    assert "by the published accounting (EcoTTA, TinyTL):" in said.out


def test_of_a_known_set_no_image_is_read(cil, monkeypatch, tmp_path):
    monkeypatch.setenv("CIL_DATA", str(tmp_path / "nothing"))
    stream = ("stream=split_cifar100", "stream.increment=50")
    (found,) = told(cil, *stream, "model=resnet14", "strategy=finetune", "budget=none").values()
    assert found["where"].startswith("experience 2 of 2") and found["batch_size"] == 128
    assert found["kinds"]["parameters"] == 4 * (171_856 + 100 * 65)  # ResNet-20 less a block of each stage


def test_what_asks_for_values_is_stepped_on_the_cpu_and_says_so(cil):
    said = cil("memory", *TOY, "strategy=gem", "--experience", "2")
    assert said.code == 0
    assert "one step on the CPU, on noise (meta would not do: " in said.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--depth", "0"), "--depth is 0; it must be a whole number of 1 or more"),
        (("--experience", "9"), "--experience is 9; the stream has 3 experiences"),
        (("--batch", "9"), "no option '--batch'"),
        (("budget.training_bytes=-1",), "budget.training_bytes is -1; it must be a whole number of 1 or more, or null"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(cil, arguments, expected):
    said = cil("memory", *TOY, *arguments)
    assert said.code == 2 and expected in said.line


# budget.training_bytes ------------------------------------------------------------------------------------------------


def test_a_step_that_is_too_large_is_refused_with_the_batch_that_fits(cil):
    (found,) = told(cil, *TOY, "strategy=replay").values()
    limit = found["total"] - 1
    said = cil("run", *TOY, *SHORT, "strategy=replay", f"budget.training_bytes={limit}", "run_dir=a")
    assert said.code == 2
    assert f"replay needs {limit + 1:,} bytes in a step of 16 images" in said.line
    assert f"budget.training_bytes is {limit:,}: activations {found['kinds']['activations']:,}, gradients" in said.line
    assert f"trainer.batch_size=15 is the largest that fits, or set budget.training_bytes={limit + 1}" in said.line
    assert Record.load("a").status == "over_budget" and "accuracy_curve" not in Record.load("a").results
    smaller = (*TOY[:3], "trainer.batch_size=15", *SHORT)
    said = cil("run", *smaller, "strategy=replay", f"budget.training_bytes={limit}", "run_dir=b")
    assert said.code == 0
    results = Record.load("b").results
    assert results["peak_training_bytes"] == results["training_bill"]["total"] <= limit


def test_where_no_batch_fits_that_is_said_and_a_report_goes_on(cil):
    said = cil("run", *TOY, *SHORT, "strategy=finetune", "budget.training_bytes=1000", "run_dir=a")
    assert said.code == 2 and "no batch size fits: take a smaller model" in said.line
    given = ("budget.training_bytes=1000", "budget.enforce=report", "run_dir=b")
    assert cil("run", *TOY, *SHORT, "strategy=finetune", *given).code == 0
    assert Record.load("b").status == "finished"


# adapters -------------------------------------------------------------------------------------------------------------

SMALL = ("stream=cifar10_corrupted", "model=resnet20", "adaptation.batch_size=8", "budget=none")


def test_adapters_are_told_without_data_weights_or_stream(cil, monkeypatch, tmp_path):
    monkeypatch.setenv("CIL_DATA", str(tmp_path / "nothing"))
    found = told(cil, *SMALL, "adapter=source,tent,ecotta")
    assert next(iter(found)) == "source on resnet20, images (3, 32, 32) of 10 classes"
    source, tent, ecotta = found.values()
    assert {one["device"] for one in found.values()} == {"meta"}
    assert source["kinds"].keys() == {"parameters", "buffers"}
    assert 0 < ecotta["kinds"]["activations"] < tent["kinds"]["activations"] / 2
    assert ecotta["published"]["bytes"] < tent["published"]["bytes"]
    assert tent["kinds"]["gradients"] == 4 * tent["published"]["trainable"]
    assert tent["kinds"]["optimizer"] == 2 * tent["kinds"]["gradients"] + 4  # moments of Adam, and its count
    assert "source_phase" not in tent and ecotta["source_phase"]["where"] == "source phase warmup"
    assert ecotta["source_phase"]["batch_size"] == 64


def test_methods_that_look_at_values_are_told_without_any_where_their_answer_moves_no_byte(cil):
    found = told(cil, *SMALL, "adapter=eata,sar,cotta")
    assert {one["device"] for one in found.values()} == {"meta"}
    assert all(one["kinds"]["gradients"] > 0 for one in found.values())


@pytest.mark.parametrize(
    ("adapter", "more"), [("tent", ""), ("ecotta", ", source images in adapter.warmup_batch_size")]
)
def test_a_batch_size_of_training_is_refused_where_an_adapter_reads_another(cil, adapter, more):
    said = cil("memory", "model=resnet20", f"adapter={adapter}", "trainer.batch_size=16")
    assert said.code == 2
    expected = f"read by no step of adapter={adapter}: test images come in adaptation.batch_size{more}"
    assert said.line.endswith(expected)
    given = ("stream=mnist5k_corrupted", "model=resnet20", "source=nowhere", f"adapter={adapter}")
    assert cil("run", *given, "trainer.batch_size=16").line.endswith(expected)


def test_a_warm_up_that_is_too_large_is_refused_with_the_batch_that_fits(cil, tmp_path):
    net = NetFactory(lambda: build_backbone("resnet14", 1, 28), mean=[0.1], std=[0.3])()
    net.grow(10)
    save_classifier(net, tmp_path / "net.safetensors")
    given = ("stream=mnist5k_corrupted", "stream.corruptions=[contrast]", "model=resnet14", "adaptation.batch_size=8")
    given += ("model.weights=net.safetensors", "adapter=ecotta", "adapter.parts=3")
    update, warm_up = (one["total"] for one in told_both(cil, *given))
    assert update < warm_up
    said = cil("run", *given, "progress=false", f"budget.training_bytes={warm_up - 1}")
    assert said.code == 2
    assert f"ecotta needs {warm_up:,} bytes in a step of 64 images (source phase warmup)" in said.line
    assert f"adapter.warmup_batch_size=63 is the largest that fits, or set budget.training_bytes={warm_up}" in said.line
    said = cil("run", *given, "progress=false", f"budget.training_bytes={update - 1}", "adapter.warmup_batch_size=2")
    assert "ecotta needs" in said.line and "(update on a batch)" in said.line


def told_both(cil, *arguments: str) -> tuple[dict, dict]:
    (found,) = told(cil, *arguments).values()
    return found, found["source_phase"]
