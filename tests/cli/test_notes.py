"""What is said before training: settings in which a method cannot show what it can do."""

from __future__ import annotations

import pytest
from torch import nn

import cil as package
from cil.cli.build import build
from cil.cli.compose import compose
from cil.engine.planned import size_warnings
from cil.models import build_backbone, save_weights
from cil.models.cifar import CifarResNet

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")
VIT = ("model=timm", "model.name=timm:vit_tiny_patch16_224", "+model.options.img_size=8")
VIT += tuple(f"+model.options.{key}={value}" for key, value in {"patch_size": 4, "embed_dim": 32, "depth": 2}.items())
VIT += ("+model.options.num_heads=2",)


def notes(*overrides):
    return build(compose([*DIGITS, *overrides])).work.warnings()


@pytest.mark.parametrize("strategy", ["lucir", "podnet", "coil", "aanets"])
def test_a_cosine_head_on_features_without_signs_is_worth_a_note(strategy):
    (note,) = notes(f"strategy={strategy}")
    assert (
        note.startswith(f"{strategy}: its cosine head") and "SmallConvNet" in note and "model=resnet32_cosine" in note
    )
    assert "CifarResNet" in notes(f"strategy={strategy}", "model=resnet14")[0]
    assert notes(f"strategy={strategy}", "model=resnet14_cosine") == []


def test_images_that_buy_nothing_are_worth_a_note():
    (note,) = notes("strategy=rmm")
    assert note.startswith("rmm: under budget.scope=carried") and note.endswith("budget.scope=carried+incoming")
    assert notes("strategy=rmm", "budget.scope=carried+incoming") == []
    assert notes("strategy=rmm", "strategy.rates=[0]") == []


@pytest.mark.parametrize("strategy", ["finetune", "icarl", "der"])
def test_others_have_none(strategy):
    assert notes(f"strategy={strategy}") == []


@pytest.mark.parametrize("strategy", ["simplecil", "slda", "fetril", "feature_replay", "ranpac"])
def test_a_frozen_backbone_of_random_weights_is_worth_a_note(strategy, tmp_path):
    small = ("strategy.size=40",) if strategy == "ranpac" else ()
    (note,) = notes(f"strategy={strategy}", "strategy.train_first=false", *small)
    assert note.startswith(f"{strategy}: the weights of the frozen network are random") and "model.weights" in note
    assert "strategy.train_first=true" in note
    assert notes(f"strategy={strategy}", *small) == []  # the first experience trains them
    save_weights(build_backbone("smallconv", 1, 8), tmp_path / "some.safetensors")
    assert notes(f"strategy={strategy}", f"model.weights={tmp_path}/some.safetensors", *small) == []


def test_prompts_for_a_random_transformer_are_worth_a_note():
    (note,) = notes("strategy=l2p", *VIT)
    assert note.startswith("l2p: the weights of the frozen network are random") and note.endswith("model=timm or clip)")


def test_sums_a_hundred_times_as_large_as_the_network_are_worth_a_note():
    """smallconv on grey images: 4,896 parameters and 96 statistics, 19,968 bytes. 707^2 floats are 100.1 times that."""
    (note,) = notes("strategy=ranpac")
    assert note.startswith("ranpac will carry 400,000,000 bytes for G, 20,032 times its network")
    assert "strategy.size=10000; strategy.size=1000 carries a hundredth" in note
    assert len(notes("strategy=ranpac", "strategy.size=707")) == 1
    assert notes("strategy=ranpac", "strategy.size=706") == []
    assert notes("strategy=ranpac", "strategy.size=800", "strategy.gram=packed") == []


def test_notes_are_one_line_each_before_a_run_and_not_after(cil):
    said = cil("run", *DIGITS, "strategy=coil", "run_dir=a")
    assert said.code == 0 and said.line.startswith("cil: note: coil: its cosine head")
    assert cil("run", *DIGITS, "strategy=coil", "run_dir=a").err == ""


def test_a_comparison_says_each_note_once(cil):
    said = cil("compare", *DIGITS, "strategy=coil,finetune", "seed=0,1")
    assert said.code == 0 and said.line.startswith("cil: note: coil: ")


def test_a_network_of_small_images_that_meets_large_ones():
    large = size_warnings(CifarResNet(14, 3), (224, 160))
    assert list(large) == [
        "CifarResNet is a network for images of about 32 pixels, and those of the stream have 224x160: it will be slow "
        "and see little of each; take stream.size=32, or a network for large images, as model=resnet18"
    ]
    assert not list(size_warnings(CifarResNet(14, 3), (64, 224)))
    assert not list(size_warnings(None, (224, 224)))


def test_in_python_they_are_warnings_of_the_log(tmp_path, caplog):
    stream = package.class_incremental("digits", increment=5)
    recipe = package.Recipe(epochs=1, max_steps=1)
    package.train("coil", stream, "smallconv", recipe=recipe, run_dir=tmp_path / "run")
    assert [record.message[:22] for record in caplog.records] == ["coil: its cosine head i"[:22]]


def test_any_strategy_may_leave_notes(tmp_path, caplog):
    class Mine(package.Strategy):
        def build_net(self) -> nn.Module:
            self.warnings.append("mine is slow")
            return super().build_net()

    run = package.plan(Mine, package.class_incremental("digits", increment=5), "smallconv")
    assert run.work.warnings() == ["mine is slow"]


def test_exemplars_for_fewer_than_all_classes_are_worth_a_note():
    (note,) = notes("strategy=icarl", "budget.exemplars=9")
    assert note == (
        "icarl: budget.exemplars=9 leaves 0 exemplars for 10 classes after the last experience, so 10 of them or more "
        "have none; raise it to 10 or more"
    )
    (note,) = notes("strategy=icarl", "budget=bytes", "budget.limit=21400")
    assert note.startswith("icarl: budget.limit=21,400 leaves ") and note.endswith("have none; raise it")
    run = build(compose([*DIGITS, "strategy=icarl", "budget.exemplars=9"]))
    assert run.work.bills()["warnings"] == run.work.warnings()  # so that the record has them
    assert notes("strategy=icarl", "budget.exemplars=0") == []  # as asked for


def test_a_budget_that_does_not_bind_is_worth_a_note():
    every, unused = notes("strategy=replay", "budget=bytes", "budget.limit=1000000")
    assert every.startswith("replay: budget.limit=1,000,000 does not bind, every one of 1,438 training images is kept")
    assert "% of budget.limit=1,000,000 is unused" in unused


def test_settings_that_are_seldom_meant_are_worth_a_note():
    (note,) = notes("strategy=finetune", "optimizer.lr=0")
    assert note.startswith("optimizer.lr is 0")
    (note,) = notes("strategy=finetune", "scheduler.warmup=1000", "trainer.epochs=2")
    assert note.startswith("scheduler.warmup=1000 is not over when trainer.epochs=2 are")
    steps = ("strategy=finetune", "scheduler=multistep", "trainer.epochs=8")
    (note,) = notes(*steps, "scheduler.milestones=[2,4,8,80]", "scheduler.warmup=3")
    assert note.startswith("scheduler.milestones has 2, 8, 80, where the learning rate does not fall")
    assert notes(*steps, "scheduler.milestones=[0.5,7]") == []


def test_bf16_without_units_for_it_is_worth_a_note(monkeypatch):
    monkeypatch.setattr("cil.engine.runtime.has_fast_bf16", lambda: False)
    (note,) = notes("strategy=finetune", "trainer.precision=bf16")
    assert note.startswith("trainer.precision is bf16") and "fp32" in note
    assert notes("strategy=finetune") == []
    monkeypatch.setattr("cil.engine.runtime.has_fast_bf16", lambda: True)
    assert notes("strategy=finetune", "trainer.precision=bf16") == []
