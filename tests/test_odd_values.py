"""Values without meaning that no other test names: whatever the key, they are refused in one line that names it."""

from __future__ import annotations

import csv
import io

import pytest
import torch
from PIL import EpsImagePlugin, Image

from cil.cli.arguments import split_jobs_and_out
from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.schema import check
from cil.data.file_store import read_image
from cil.errors import CilError, ConfigError, DataError
from cil.memory import ExemplarMemory
from cil.models.registry import build_backbone
from cil.plugins import Registry
from cil.report.exports import csv_text
from cil.streams import class_incremental
from cil.tracking.loggers import build_loggers
from cil.values import home_path

SMALL = ("strategy=replay", "stream=split_digits", "trainer.max_steps=1")
BLURRY, TASKS = ("strategy=replay", "stream=blurry_digits"), ("strategy=independent", "stream=embedded_tasks")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("setting", "key", "value", "says"),
    [
        # numbers that no tensor takes, whoever reads them
        (("strategy=ewc",), "strategy.strength", 1e300, r"strategy\.strength is 1e\+300; numbers must be finite"),
        (("strategy=acil",), "strategy.size", 2**70, r"strategy\.size is \d+; .* whole ones 9,223,372"),
        (SMALL, "stream.train_per_class", 2**70, r"stream\.train_per_class is \d+; numbers"),
        (("strategy=lucir",), "strategy.tune_lr", 1e9, r"strategy\.tune_lr of lucir is .*, at most 1e\+06"),
        ((*SMALL, "scheduler=multistep"), "scheduler.gamma", 1e9, r"scheduler\.gamma is .*at most 1e\+06"),
        (
            (*SMALL, "scheduler=warm_restarts"),
            "scheduler.first",
            0,
            r"scheduler\.first is 0; it must be a whole number",
        ),
        ((*SMALL, "scheduler=warm_restarts"), "scheduler.factor", 2**70, r"scheduler\.factor is \d+; numbers must be"),
        # 1 is not true
        (SMALL, "trainer.pictures", 1, r"trainer\.pictures is 1; "),
        (SMALL, "budget.fit", 0, r"budget\.fit is 0; "),
        (SMALL, "progress", 1, r"progress is 1; "),
        # things of the wrong sort
        (SMALL, "stream.builder", [1], r"no stream '\[1\]'"),
        (SMALL, "stream.dataset", [1], r"stream\.dataset is \[1\]; a list has names"),
        (BLURRY, "stream.arrival", 3, r"stream\.arrival is 3; it must be an object of the class Arrival"),
        (BLURRY, "stream.arrival", {}, r"stream\.arrival is \{\}; it must be an object of the class Arrival"),
        (SMALL, "stream.mean", [-1.0], r"stream\.mean is \[-1\.0\]; need numbers of images in \[0, 1\]"),
        (("strategy=replay", "stream=rotated_digits"), "stream.order_seed", -1, r"stream\.order_seed is -1"),
        (SMALL, "data_root", " ", r"data_root is ' '; it must be the path of a folder"),
        (SMALL, "reuse", "a\nb", r"reuse is 'a\\nb'; it must be the path of a folder"),
        # filters of a stream of tasks
        (TASKS, "stream.ids", 3, r"stream\.ids is 3; it must be a list"),
        (TASKS, "stream.years", [2020], r"stream\.years is \[2020\]; it must be \[first, last\]"),
        (TASKS, "stream.first", -1, r"stream\.first is -1; it must be a whole number from 1 on"),
        (TASKS, "stream.min_size", -1, r"stream\.min_size is -1; it must be a whole number from 0 on"),
        (TASKS, "stream.train_per_class", -1, r"stream\.train_per_class is -1; it must be a whole number from 1 on"),
        (TASKS, "stream.image_size", 0, r"stream\.image_size is 0; it must be a whole number from 1 on"),
        (TASKS, "stream.order_seed", -1, r"stream\.order_seed is -1"),
        (TASKS, "stream.manifest", {}, r"stream\.manifest is \{\}; it must be"),
        (TASKS, "stream.heads", "", r"stream\.heads is ''"),
        # what would not be read, as another key says
        (("strategy=fecam",), "strategy.rank", 0, r"strategy\.rank of fecam is 0; it must be 1 or more"),
        (("strategy=slca",), "strategy.rank", -1, r"strategy\.rank of slca is -1; it must be 1 or more"),
        (("strategy=linear_probe",), "strategy.selection", "abc", r"no selection rule 'abc'"),
        (("strategy=bn_tuning",), "strategy.codec", "abc", r"no codec 'abc'"),
    ],
)
def test_a_value_without_meaning_is_refused_by_key(setting, key, value, says, tmp_path):
    job = compose([*setting, *(() if any("stream=" in item for item in setting) else SMALL[1:])])
    *path, last = key.split(".")
    node = job.config
    for step in path:
        node = node[step]
    node[last] = value
    with pytest.raises(CilError, match=f"^{says}"):
        check(job.config)
        build(job, root=tmp_path, progress=False).work.bills()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet14", {"width": 0}, r"model\.options\.width is 0; it must be a whole number from 1 to 65,536"),
        ("resnet14", {"width": "a"}, r"model\.options\.width is 'a'; it must be a whole number"),
        ("resnext29", {"groups": -1}, r"model\.options\.groups is -1; it must be a whole number from 1"),
        ("convit", {"depth": 10**9}, r"model\.options\.depth is 1000000000; it must be a whole number from 1"),
        ("convit", {"mlp_ratio": -1.0}, r"model\.options\.mlp_ratio is -1\.0; it must be above 0"),
        ("timm:vit_tiny_patch16_224", {"stages": "no"}, r"model\.options\.stages is 'no'; it must be true or false"),
        ("timm:vit_tiny_patch16_224", {"num_heads": 0}, r"timm cannot build .* see the keys of model"),
    ],
)
def test_options_of_a_model_are_sizes(name, options, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        build_backbone(name, 3, 224 if ":" in name else 8, **options)


def test_options_of_a_logger_have_types():
    for key, value, says in (
        ("project", 3, r"logger\.project is 3; it must be text"),
        ("tags", [1], r"logger\.tags is \[1\]; it must be a list of texts"),
        ("id", "a/b", r"logger\.id is 'a/b'; wandb takes 1 to 128 characters"),
        ("mode", None, r"logger\.mode is None; .*known: disabled, offline, online"),
    ):
        with pytest.raises(ConfigError, match=f"^{says}"):
            build_loggers({"_target_": "cil.tracking.wandb_sink.WandbLogger", key: value})


def test_a_name_that_is_no_text_is_unknown():
    with pytest.raises(ConfigError, match="no thing"):
        Registry("thing", "cil.nothing").find({"a": 1})  # type: ignore[arg-type]


def test_a_home_of_nobody_is_a_path_that_is_not_there(tmp_path):
    assert home_path("~nobody-of-that-name/x").parts[0] == "~nobody-of-that-name"
    with pytest.raises(DataError, match="does not exist, neither here nor in"):
        class_incremental("folder", path="~nobody-of-that-name/x", root=tmp_path, increment=1)


@pytest.mark.parametrize("out", ["a\nb", " ", "x" * 300])
def test_an_out_that_is_no_folder_is_refused(out):
    with pytest.raises(ConfigError, match=r"^out is .*it must be"):
        split_jobs_and_out([f"out={out}"])


def test_text_that_a_spreadsheet_would_calculate_is_text_in_csv():
    lines = [{"method": "=cmd|' /C calc'!A0", "avg": -1.5}, {"method": "@x", "avg": None}]
    read = list(csv.DictReader(io.StringIO(csv_text(lines))))
    assert [line["method"] for line in read] == ["'=cmd|' /C calc'!A0", "'@x"]
    assert read[0]["avg"] == "-1.5"
    assert csv_text([{"a": 1, "=1+1": None}]) == "a,'=1+1\n1,\n"


@pytest.fixture
def ghostscript(monkeypatch):
    """Calls of the program that Pillow starts for EPS."""
    calls = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *given: calls.append(given) or Image.new("RGB", (8, 8)).im
    )
    return calls


def test_no_program_is_started_for_a_file_that_says_it_is_a_picture(tmp_path, ghostscript):
    (tmp_path / "cat.png").write_bytes(EPS)
    with pytest.raises(
        DataError, match=r"cat\.png cannot be read as an image \(none of JPEG, PNG, BMP, WEBP, GIF, TIFF, PPM\)"
    ):
        read_image(tmp_path / "cat.png")
    assert not ghostscript


def test_no_program_is_started_for_exemplars_of_a_stranger(ghostscript):
    codec = ExemplarMemory("jpeg").codec
    data = torch.frombuffer(bytearray(EPS), dtype=torch.uint8)
    with pytest.raises(Exception, match="cannot identify image"):
        codec.decode(data, torch.tensor([len(data)]), (3, 8, 8))
    assert not ghostscript
