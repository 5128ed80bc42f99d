"""The files of conf/: every one composes, says every hyperparameter, and trains a step."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest

from cil import adapt
from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.names import choices, conf_dir
from cil.engine.options import RunOptions
from cil.engine.recipe import Recipe
from cil.models import NetFactory, build_backbone
from cil.models.classifier import save_classifier
from cil.targets import resolve

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")
DATA_ELSEWHERE = (
    "stream=split_digits",
    "model=smallconv",
    "stream.classes=null",
    "stream.base=0",
    "stream.increment=5",
    "stream.mean=null",
    "stream.std=null",
)  # instead of data that must be downloaded


def _adapts(name: str) -> bool:
    return "override /adapter" in (conf_dir() / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("scale", ["paper", "small"])
@pytest.mark.parametrize("name", filter(_adapts, choices("experiment")))
def test_every_experiment_of_adapters_composes_and_meets_a_batch(name, scale, tmp_path):
    asked = compose([f"experiment={name}", f"scale={scale}"]).config
    assert asked["adaptation"]["batch_size"] == 64
    assert asked["stream"]["images"] == (2000 if scale == "small" else None)
    net = NetFactory(lambda: build_backbone("resnet14", 1, 28, width=4, shortcut="centre"), mean=[0.1], std=[0.3])()
    net.grow(10)
    save_classifier(net, tmp_path / "net.safetensors")
    model = ["model=resnet14", "model.options.width=4", "model.options.shortcut=centre", "++model.mean=[0.1]"]
    model += ["++model.std=[0.3]", f"model.weights={tmp_path / 'net.safetensors'}"]
    stream = ["stream=mnist5k_corrupted", "stream.corruptions=[brightness]", "stream.images=10"]
    short = ["trainer.max_steps=1", "adapter.parts=2", "adapter.warmup_epochs=1", "progress=false"]
    job = compose([f"experiment={name}", f"scale={scale}", *model, *stream, *short])
    record = build(job, root=tmp_path).execute()
    assert record.status == "finished" and record.identity["adapter"] == "ecotta"


@pytest.mark.parametrize("name", choices("adapter"))
def test_an_adapter_file_says_every_hyperparameter_with_its_default(name):
    given = compose([f"adapter={name}"]).config["adapter"]
    kind = resolve(given.pop("_target_"))
    assert given.pop("_partial_") is True
    parameters = inspect.signature(kind).parameters.values()
    assert given == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert adapt.find(name) is kind


@pytest.mark.parametrize("scale", ["paper", "small", "quick"])
def test_a_pool_composes_and_trains_a_step_at_every_scale(scale, tmp_path):
    given = [
        "experiment=libcontinual_random",
        f"scale={scale}",
        "stream.order=by_set",
        "strategy=finetune",
        *DIGITS[1:],
    ]
    config = compose(given).config
    assert len(config["stream"]["dataset"]) == {"paper": 5, "small": 4, "quick": 2}[scale]
    assert config["stream"]["increment"] == 10
    if scale != "quick":
        return
    for split in ("train", "test"):
        file = tmp_path / "signs" / f"{split}.npz"
        file.parent.mkdir(exist_ok=True)
        np.savez(file, images=np.zeros((20, 9, 9), np.uint8), labels=np.arange(20) % 10)
    small = ["stream.dataset=[digits,signs]", "stream.size=8", "model=smallconv", "stream.mean=[0.5]", "stream.std=[1]"]
    small += ["stream.train_per_class=5", "stream.test_per_class=5", f"data_root={tmp_path}"]
    record = build(compose([*given, *small]), root=tmp_path / "runs").execute()
    assert record.identity["stream"]["origins"] == ["digits"] * 10 + ["signs"] * 10
    assert list(record.results["averages"]["sets"]) == ["digits", "signs"]


def _pools(name: str) -> bool:
    return "override /stream: split_pooled" in (conf_dir() / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", [name for name in choices("experiment") if not (_adapts(name) or _pools(name))])
def test_every_experiment_composes_and_trains_a_step(name, tmp_path):
    kind = compose([f"experiment={name}"]).config["budget"]["kind"]
    size = [] if kind in ("bytes", "none") else ["budget.exemplars=50"]
    job = compose([f"experiment={name}", *DATA_ELSEWHERE, *DIGITS[1:], *size])
    record = build(job, root=tmp_path).execute()
    assert record.status == "finished"


@pytest.mark.parametrize("name", sorted(file.stem for file in (conf_dir() / "scale/by_experiment").glob("*.yaml")))
def test_a_model_that_is_asked_for_holds_at_every_scale(name):
    experiment, _, scale = name.rpartition("_")
    own = compose([f"experiment={experiment}", f"scale={scale}", "model=smallconv"]).config["model"]
    assert own == compose(["model=smallconv"]).config["model"]


@pytest.mark.parametrize("name", choices("strategy"))
def test_a_strategy_file_says_every_hyperparameter_with_its_default(name):
    given = compose([f"strategy={name}"]).config["strategy"]
    kind = resolve(given.pop("_target_"))
    assert given.pop("_partial_") is True
    parameters = inspect.signature(kind).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert given == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert kind.name == name


@pytest.mark.parametrize("given", [["stream=mnist5k_corrupted"], ["experiment=ecotta_cifar10c"]], ids=" ".join)
def test_quick_is_a_scale_of_streams_that_shift_too(given):
    job = compose([*given, "adapter=tent", "scale=quick"])
    assert job.config["stream"]["images"] == 100 and "train_per_class" not in job.config["stream"]
    assert job.config["adaptation"]["batch_size"] == 50
    assert job.overrides == (*given, "adapter=tent", "scale=quick")
    assert compose([*given, "adapter=tent", "scale=quick", "stream.images=7"]).config["stream"]["images"] == 7
    assert "images" not in compose(["scale=quick"]).config["stream"]


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("optimizer", "scheduler", "trainer", "scale") for name in choices(group)],
)
def test_every_way_to_train_is_one_that_can_be_built(group, name, tmp_path):
    run = build(compose([f"{group}={name}", "stream=split_digits"]), root=tmp_path)
    assert isinstance(run.work.recipe, Recipe)


def test_the_defaults_of_the_options_are_those_of_the_configuration():
    assert replace(RunOptions.from_config(compose().config), loggers=()) == replace(RunOptions(), progress=True)
    assert compose().config["logger"] == {} and compose().config["progress"] == "auto"  # a person looks on


def test_the_defaults_of_the_trainer_are_those_of_the_recipe():
    trainer, plain = compose().config["trainer"], Recipe()
    same = (
        "epochs",
        "batch_size",
        "max_steps",
        "clip_norm",
        "accumulate",
        "snapshot_minutes",
        "snapshot_steps",
        "log_every",
        "updates_per_batch",
        "complexity",
    )
    assert {key: trainer[key] for key in same} == {key: getattr(plain, key) for key in same}


@pytest.mark.parametrize("name", choices("stream"))
def test_every_stream_composes(name):
    missing = ["stream.dataset=some/set"] if name == "split_small_task" else []
    missing += ["stream.manifest=some.yaml"] if name == "tasks" else []
    missing += ["stream.path=some/where"] if name == "domain_files" else []
    missing += ["stream.path=some/set", "stream.revision=1a2b"] if name == "split_huggingface" else []
    missing += ["stream.dataset=my_module:make"] if name == "torch" else []
    missing += ["stream.benchmark=SplitMNIST"] if name == "avalanche" else []
    missing += ["stream.path=some/where", "stream.increment=2"] if name in ("split_folder", "split_npz") else []
    assert compose([f"stream={name}", *missing]).config["stream"]["builder"]


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_composes(name):
    assert compose([f"model={name}"]).config["model"]["name"]


def test_a_checkout_has_its_configuration_beside_the_package():
    assert (conf_dir() / "config.yaml").is_file()


def test_the_wheel_takes_the_configuration_along():
    pyproject = (conf_dir().parent / "pyproject.toml").read_text()
    assert '"conf" = "cil/conf"' in pyproject
