"""Files and numbers that cannot be meant: each is refused in one line that names it, before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cil.cli.composition import files_remembered, own_data
from cil.cli.names import _check_own_file
from cil.data.file_store import images_below, read_image, subfolders
from cil.data.tasks.file_sources import column_of, read_table
from cil.engine.arrival import Pace
from cil.engine.status import is_out_of_memory
from cil.errors import ConfigError, DataError, StreamError
from cil.models import build_backbone
from cil.models.weights import load_weights
from cil.strategies.parts.class_texts import read_sentences
from cil.streams.options import check_channels
from cil.values import check_value


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("trainer.epochs", 10**12, "at most 1,000,000"),
        ("trainer.max_steps", 10**20, "at most 9,223,372,036,854,775,807, or null"),
        ("budget.exemplars", 10**26, "at most 9,223,372,036,854,775,807, or null"),
        ("trainer.looks", 10**26, "free or a whole number of 1 or more, at most"),
        ("seed", 2**64, "at most 9,223,372,036,854,775,807"),
        ("optimizer.lr", 1e10, "at most 1e[+]06"),
        ("trainer.first.lr", 1e39, "at most 1e[+]06"),
        ("optimizer.weight_decay", 1e30, "at most 1e[+]06"),
        ("scheduler.warmup_factor", 5, "above 0, at most 1"),
        ("run_dir", "  ", "without blanks at its ends"),
        ("run_dir", "a\nb", "signs that cannot be seen"),
        ("run_dir", "x" * 300, "255 for each folder"),
        ("run_dir", "x/" * 2000, "at most 3000 bytes"),
    ],
)
def test_numbers_and_folders_without_meaning(key, value, says):
    with pytest.raises(ConfigError, match=rf"^{key} is .*; .*{says}") as refused:
        check_value(key, value)
    assert len(str(refused.value)) < 500


def test_statistics_of_images_from_0_to_255_and_thousands_of_steps_a_batch():
    with pytest.raises(StreamError, match=r"stream.mean is \[125.3\]; .*divide those of images in \[0, 255\] by 255"):
        check_channels([125.3], [0.2], 1)
    with pytest.raises(StreamError, match=r"stream.std is \[1e-30\]; .*from 1e-06 to 1"):
        check_channels([0.5], [1e-30], 1)
    with pytest.raises(ConfigError, match=r"trainer.updates_per_batch is 1000000000.0; .*at most 10,000"):
        Pace.of(1e9, None)


def test_memory_that_is_used_up_on_a_cpu_is_told_apart():
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 60)
    assert is_out_of_memory(full.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_tables(tmp_path):
    table = tmp_path / "table.csv"
    for text, says in {
        "": "has no rows",
        "image,label,image\na,b,c\n": "has the column 'image' 2 times",
    }.items():
        table.write_text(text)
        with pytest.raises(DataError, match=says):
            read_table(table)
    table.write_bytes("\ufeffimage,label\r\na.png,x\r\nb.png, \r\n".encode())
    header, rows = read_table(table)
    assert header == ["image", "label"] and column_of(table, rows, "image", blank=False) == ["a.png", "b.png"]
    with pytest.raises(DataError, match=r"table.csv line 3 has no value for 'label'"):
        column_of(table, rows, "label", blank=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": ["x"], "a": ["y"]}', "'a' is there twice"),
        ("[" * 100_000, "RecursionError"),
        ("{}", "must map each class name"),
        ('{"a": [" "]}', r"has \[\" \"\] for class 'a'"),
        ('{"a": "text"}', "for class 'a'; it must map"),
    ],
)
def test_sentences(text, says, tmp_path):
    (tmp_path / "texts.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"strategy.texts: .*texts.json .*{says}"):
        read_sentences(tmp_path / "texts.json")
    (tmp_path / "texts.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": ["x"]}).encode())
    assert read_sentences(tmp_path / "texts.json") == {"a": ["x"]}


def test_weights(tmp_path):
    net = build_backbone("smallconv", 1, 8)
    state = net.state_dict()
    for change, says in {float("nan"): "not finite", -1.0: "below zero"}.items():
        own = {k: torch.full_like(v, change) if k.endswith("running_var") else v for k, v in state.items()}
        save_file(own, tmp_path / "w.safetensors")
        with pytest.raises(ConfigError, match=rf"does not fit SmallConvNet: {says} stages\.0\.1\.running_var"):
            load_weights(net, tmp_path / "w.safetensors")
    for content, says in (
        ([1], "it holds a list"),
        (torch.ones(2), "it holds a Tensor"),
        ({1: torch.ones(2)}, "missing"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ConfigError, match=says):
            load_weights(net, tmp_path / "w.pth")
    bf16 = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    save_file(bf16, tmp_path / "w.safetensors")
    load_weights(net, tmp_path / "w.safetensors")
    assert next(net.parameters()).dtype == torch.float32


def test_folders_and_pictures(tmp_path, caplog):
    for name in ("Ant", "ant", "cat"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "cat" / "0.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    assert subfolders(tmp_path) == ["Ant", "ant", "cat"] and len(images_below(tmp_path / "cat")) == 1
    assert "the folders 'Ant' and 'ant', which differ in case or spelling alone" in caplog.text
    assert "links to folders are not followed inside a class" in caplog.text
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    with pytest.raises(
        DataError,
        match=r"page\.jpg cannot be read as an image \(none of JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM\); replace",
    ):
        read_image(tmp_path / "page.jpg")
    (tmp_path / "x\ny").mkdir()
    with pytest.raises(DataError, match=r"the name 'x\\ny' in .* has signs that cannot be seen"):
        subfolders(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seed: 1\nseed: 2\n", "the key 'seed' is there twice"),
        (b"a: {b: 1, b: 2}\n", "the key 'b' is there twice"),
        (b"\xef\xbb\xbf# @package _global_\nseed: 1\n", "begins with a byte order mark"),
        (b"1: 2\n", "has the key 1, which is no text"),
        (b"defaults: 3\n", "defaults is 3; it must be a list"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
    ],
)
def test_own_files_of_the_configuration(content, says, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.yaml.*{says}"):
        _check_own_file(tmp_path / "mine.yaml")


def test_streams_of_own_files_are_remembered_for_one_command(monkeypatch):
    monkeypatch.setattr("cil.cli.composition._merged", None)  # no command around this test, nor before it
    monkeypatch.setattr("cil.cli.composition._own_data", {})
    with files_remembered():
        own_data()["stream"] = 1
        with files_remembered():
            assert own_data() == {"stream": 1}
        assert own_data() == {"stream": 1}
    assert own_data() == {}
