"""The files of conf/: every one composes, says every hyperparameter, and trains a step."""

from __future__ import annotations

import inspect

import pytest

from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.names import choices, conf_dir
from cil.engine.recipe import Recipe
from cil.targets import resolve

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")
DATA_ELSEWHERE = (
    "stream=split_digits",
    "model=smallconv",
    "stream.classes=null",
    "stream.increment=5",
)  # instead of data that must be downloaded


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_composes_and_trains_a_step(name, tmp_path):
    job = compose([f"experiment={name}", *DATA_ELSEWHERE, *DIGITS[1:], "budget.exemplars=50"])
    record = build(job, root=tmp_path).execute()
    assert record.status == "finished"


@pytest.mark.parametrize("name", choices("strategy"))
def test_a_strategy_file_says_every_hyperparameter_with_its_default(name):
    given = compose([f"strategy={name}"]).config["strategy"]
    kind = resolve(given.pop("_target_"))
    assert given.pop("_partial_") is True
    parameters = inspect.signature(kind).parameters.values()
    assert given == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert kind.name == name


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in ("optimizer", "scheduler", "trainer", "scale") for name in choices(group)],
)
def test_every_way_to_train_is_one_that_can_be_built(group, name, tmp_path):
    run = build(compose([f"{group}={name}", "stream=split_digits"]), root=tmp_path)
    assert isinstance(run.recipe, Recipe)


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
    )
    assert {key: trainer[key] for key in same} == {key: getattr(plain, key) for key in same}


@pytest.mark.parametrize("name", choices("stream"))
def test_every_stream_composes(name):
    missing = ["stream.dataset=some/set"] if name == "split_small_task" else []
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
