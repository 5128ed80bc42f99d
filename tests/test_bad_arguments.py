"""Arguments from Python that cannot be meant: each is refused before training, in one line that names it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import cil
from cil.engine.anytime import Anytime
from cil.engine.recipe import Recipe, cosine, multistep
from cil.errors import CilError, ConfigError
from cil.memory import Budget
from cil.testing.toy import toy_stream

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture(scope="module")
def stream():
    return toy_stream()


def refused(error, call, *parts):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epochs": 1.5}, "trainer.epochs is 1.5; it must be a whole number"),
        ({"epochs": True}, "trainer.epochs is True"),
        ({"batch_size": "8"}, "trainer.batch_size is '8'; it must be a whole number"),
        ({"clip_norm": float("nan")}, "trainer.clip_norm is nan; it must be finite"),
        ({"clip_norm": -1}, "trainer.clip_norm is -1; it must be a number above 0, or null"),
        ({"snapshot_steps": -1}, "trainer.snapshot_steps is -1"),
        ({"snapshot_minutes": 0}, "trainer.snapshot_minutes is 0"),
        ({"first": {"epochs": -1}}, "trainer.first.epochs is -1"),
        ({"first": {"lr": -0.1}}, "trainer.first.lr is -0.1"),
        ({"first": {"milestones": [-3]}}, "trainer.first.milestones is [-3]"),
        (
            {"optimizer": partial(SGD, momentum=2)},
            "optimizer.momentum is 2; it must be a number of 0 or more, and below 1",
        ),
        ({"optimizer": partial(SGD, lr=None)}, "optimizer.lr is None"),
        ({"optimizer": partial(SGD, lr="fast")}, "optimizer.lr is 'fast'"),
        ({"optimizer": partial(torch.optim.Adam, betas=(0.9,))}, "optimizer.betas is (0.9,)"),
        ({"scheduler": partial(cosine, minimum=-1.0)}, "scheduler.minimum is -1.0; it must be a number of 0 or more"),
        ({"scheduler": partial(cosine, warmup=-1)}, "scheduler.warmup is -1"),
        ({"scheduler": partial(cosine, warmup=1.5)}, "scheduler.warmup is 1.5"),
        ({"scheduler": partial(multistep, gamma=-1)}, "scheduler.gamma is -1"),
        ({"scheduler": partial(multistep, milestones=[-1])}, "scheduler.milestones is [-1]"),
        ({"scheduler": partial(multistep, milestones=[1.5])}, "is [1.5]; from 1 on these are whole epochs"),
    ],
)
def test_recipes(given, says):
    refused(ConfigError, lambda: Recipe(**given), says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"exemplars": 1.5}, "budget.exemplars is 1.5; it must be a whole number of 0 or more, or null"),
        ({"exemplars": -1}, "budget.exemplars is -1"),
        ({"per_class": -1}, "budget.per_class is -1; it must be a whole number of 0 or more, or null"),
        ({"per_class": 2, "exemplars": 9}, "budget.per_class is 2 beside budget.exemplars=9; both count exemplars"),
        ({"limits": [1.5]}, "budget.limit is [1.5]; it must be a positive whole number of bytes"),
        ({"limits": 5}, "budget.limit is 5"),
        ({"limits": []}, "budget.limit is []"),
        ({"updates": 2.5}, "budget.updates is 2.5"),
        ({"training_bytes": 0.5}, "budget.training_bytes is 0.5"),
        ({"flops": -1}, "budget.flops is -1"),
        ({"enforce": "stop"}, "budget.enforce is 'stop'"),
    ],
)
def test_budgets(given, says):
    refused(ConfigError, lambda: Budget(**given), says)


def test_evaluation_inside_experiences():
    refused(ConfigError, lambda: Anytime(every=1.5), "anytime.every is 1.5")
    refused(ConfigError, lambda: Anytime(every=None), "anytime.every is None")
    refused(ConfigError, lambda: Anytime(every=1, images=0), "anytime.images is 0")


def no_class(make_net, budget):
    return 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": 5}, "strategy is a int, '5'; it must be a name or a class or a partial of one"),
        ({"strategy": dict}, "strategy dict is or makes a dict, which is no class of cil.Strategy"),
        ({"strategy": no_class}, "strategy no_class is or makes a int"),
        ({"stream": "digits"}, "stream is a str, 'digits'; it must be a cil.Stream"),
        ({"model": 3}, "model is a int, '3'; it must be a name or a mapping"),
        ({"budget": 200}, "budget is a int, '200'; it must be a cil.Budget or None"),
        ({"recipe": {"epochs": 1}}, "recipe is a dict"),
        ({"anytime": 5}, "anytime is a int"),
        ({"epochs": "3"}, "trainer.epochs is '3'"),
        ({"batch_size": "x"}, "trainer.batch_size is 'x'"),
        ({"lr": "fast"}, "optimizer.lr is 'fast'"),
        ({"recipe": Recipe(scheduler=partial(cosine, minimum=5.0))}, "scheduler.minimum is 5.0; it must be at most"),
        ({"recipe": Recipe(optimizer=partial(torch.optim.SGD, nope=1))}, "optimizer: TypeError"),
        ({"evaluation_batch": 0}, "trainer.evaluation_batch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": 0}, "trainer.threads is 0"),
        ({"threads": 100_000}, "trainer.threads is 100000"),
        ({"device": "cpu:7"}, "device is 'cpu:7'"),
        ({"device": 3}, "device is 3"),
        ({"keep": "first"}, "checkpoint.keep is 'first'"),
        ({"loggers": 5}, "logger=5 is no logger"),
        ({"loggers": [5]}, "logger=5 is no logger"),
        ({"loggers": object}, "is no logger"),
    ],
)
def test_runs(given, says, stream, tmp_path):
    whole = {"strategy": "finetune", "stream": stream, "model": "smallconv", "run_dir": tmp_path / "run", **given}
    refused(CilError, lambda: cil.train(**whole), says)
    logs = [path for path in tmp_path.rglob("metrics.jsonl") if path.stat().st_size]
    assert not logs


def test_adaptation(stream):
    refused(ConfigError, lambda: cil.adapt_to(stream, "tent", {}), "an adapter meets images that shift")


def test_batch_norm_of_one_image_is_known_before_training(stream, tmp_path):
    given = {"model": "resnet18", "batch_size": 1, "run_dir": tmp_path / "run", "epochs": 1}
    refused(CilError, lambda: cil.train("finetune", stream, **given), "batch")
    assert not [path for path in tmp_path.rglob("metrics.jsonl") if path.stat().st_size]


def test_arguments_of_load_and_evaluate_and_caps_are_looked_at_before_anything_is_read(stream):
    for call, key in (
        (lambda: cil.load(3), "run_dir"),
        (lambda: cil.load("run", experience="1"), "experience"),
        (lambda: cil.load("run", strategy=3), "strategy"),
        (lambda: cil.evaluate("run", "digits"), "stream"),
        (lambda: cil.evaluate("run", stream, batch_size=0), "trainer.evaluation_batch"),
        (lambda: Budget(caps=[1]), "budget.caps"),
    ):
        refused(ConfigError, call, key)


def test_a_further_budget_that_is_none_is_named(monkeypatch):
    from cil import plugins
    from cil.engine.caps import caps_of

    monkeypatch.setattr(plugins, "names", lambda group: ["mine"])
    monkeypatch.setattr(plugins, "find", lambda group, name: len)
    with pytest.raises(ConfigError, match=r"cil\.budgets 'mine' is .*, which has no unit and no static and no measure"):
        caps_of(Budget(caps={"mine": 1.0}))
