"""Streams of tasks from the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.run import execute
from cil.errors import ConfigError, StreamError
from cil.trained import evaluate, load

MANIFEST = """
version: 1
stream: {name: mine, image_size: 8}
task_defaults:
  {domain: other, kind: multiclass, splits: {rule: A, seed: 0}, license: {name: own, redistributable: true}}
tasks:
  - {id: one, dataset: one, year: 2000, classes: 2, source: {type: npz, file: one.npz}}
  - {id: two, dataset: two, year: 2001, classes: 3, source: {type: npz, file: two.npz}}
"""


@pytest.fixture
def asked(tmp_path):
    """What is asked for on two tasks of noise."""
    draws = np.random.Generator(np.random.PCG64(0))
    for name, classes in (("one", 2), ("two", 3)):
        images = draws.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(60) % classes)
    (tmp_path / "mine.yaml").write_text(MANIFEST)
    return ["stream=tasks", f"stream.manifest={tmp_path / 'mine.yaml'}", f"data_root={tmp_path}", "progress=false"]


def test_a_learner_meets_a_manifest_of_ones_own(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["strategy=previous", "strategy.search.trials=2", "strategy.search.steps=2", "budget.updates=3"]
    said = execute(compose([*asked, *given]))
    assert "previous on mine, seed 0: finished" in said and "error right after each of 2 events, dev_test" in said
    assert "operations" in said and "search" in said and "parameters at most" in said
    run = build(compose([*asked, *given]))
    assert run.identity["budget"]["updates"] == 3 and run.identity["stream"]["task_known_at_test"] is True
    assert [task["id"] for task in run.identity["stream"]["tasks"]] == ["one", "two"]
    net = load(run.run_dir)
    assert net(torch.rand(3, 3, 8, 8), run.work.stream.signatures[1].task).shape == (3, 3)
    with pytest.raises(StreamError, match="tells the task"):
        evaluate(run.run_dir, run.work.stream)


def test_the_recipe_of_nevis22_is_the_papers_and_what_is_typed_wins_over_it(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose([*asked, "strategy=independent", "recipe=nevis22"]).config
    assert {key: config["strategy"]["search"][key] for key in ("trials", "steps")} == {"trials": 16, "steps": 50_000}
    assert [config["optimizer"][key] for key in ("momentum", "nesterov", "weight_decay")] == [0.9, True, 1e-4]
    assert config["scheduler"]["minimum"] == 1e-8 and config["scheduler"]["_target_"].endswith(".cosine")
    assert config["stream"]["augment"] == {"resized_crop": True, "flip": True}
    short = ["strategy.search.trials=1", "strategy.search.steps=2", "scheduler.warmup=0"]
    given = [*asked, "strategy=independent", "recipe=nevis22", *short]
    assert "independent on mine, seed 0: finished" in execute(compose(given))
    with pytest.raises(ConfigError, match=r"unknown key strategy\.search; Replay has none"):
        build(compose([*asked, "stream.heads=offset", "strategy=replay", "recipe=nevis22"]))


def test_a_foundation_strategy_reads_it_class_by_class(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("finetune", "icarl"):
        given = [f"strategy={name}", "stream.heads=offset", "trainer.epochs=1", "trainer.max_steps=2"]
        assert f"{name} on mine, seed 0: finished" in execute(compose([*asked, *given]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["strategy=icarl"], "strategy icarl answers without being told the task"),
        (["strategy=previous", "stream.heads=offset"], "strategy previous must be told the task"),
        (["strategy=previous", "strategy.search.trails=2"], "trails"),
        (["strategy=previous", "budget.flops=-1"], "budget.flops is -1"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(asked, given, says):
    with pytest.raises(ConfigError, match=says):
        build(compose([*asked, *given]))
