"""Compositions by files that were merged before are those that Hydra makes, to the order of their keys."""

from __future__ import annotations

import json

import pytest

from cil.cli import compose as commands
from cil.cli import composition as module
from cil.cli.compose import application, compose
from cil.cli.composition import composition, files_remembered, hydra_ready
from cil.cli.names import choices
from cil.errors import ConfigError

pytestmark = pytest.mark.usefixtures("by_hydra")
VALUES = ("budget.exemplars=7", "++model.options.width=4", "stream.order=[1,0]", "seed=${trainer.epochs}")


def as_text(found):
    return json.dumps([found.config, found.choices, found.overrides, found.sweep])


def plain(found):
    return json.dumps([found.container(resolve=False), dict(sorted(found.choices.items())), found.sweep])


# two of each sort: with defaults of its own, of dependent files, with a recipe of its own and without one
PUT_IN = ("dynamic", "dytox", "rmm", "l2p", "podnet", "icarl", "finetune", "slda", "er_ace", "agem")


@pytest.mark.parametrize("names", [PUT_IN, pytest.param(tuple(choices("strategy")), marks=pytest.mark.slow)])
def test_every_strategy_is_put_in_as_hydra_does(monkeypatch, names):
    given = [[f"strategy={name}", *VALUES] for name in names]
    with hydra_ready():
        slow = [plain(composition(one)) for one in given]
        with files_remembered():
            assert [plain(composition(one)) for one in given] == slow
            put_in = [key for key in module._merged if "strategy=_blank" not in key]
            asked = []
            monkeypatch.setattr(module, "_by_hydra", lambda overrides: asked.append(overrides))
            assert [plain(composition(one)) for one in given] == slow and not asked  # all are known now
    assert len(put_in) == len(given)


@pytest.mark.parametrize(
    "given",
    [
        ["strategy=wa", "experiment=survey_curve", "scale=small", "point=2", "trainer.epochs=5"],
        ["strategy=icarl", "recipe=survey", "scheduler=constant", "optimizer.lr=0.3"],
        ["experiment=demo", "strategy.temperature=3"],
        ["strategy=rmm", "logger=[files,tensorboard]", "+model.options.width=4", "~scheduler.warmup"],
    ],
    ids=["cases", "recipe", "no strategy given", "all of Hydra's grammar"],
)
def test_what_recipes_cases_and_experiments_say_holds(given):
    slow = as_text(compose(given))
    with files_remembered():
        assert as_text(compose(given)) == slow  # files are merged
        assert as_text(compose(given)) == slow  # and known


def test_what_a_later_file_says_of_the_strategy_goes_before_its_own_file(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\nstrategy: {temperature: 9.0}\nseed: 4\n")
    monkeypatch.setenv("CIL_CONFIG_DIR", str(tmp_path))
    with files_remembered():
        for name in ("icarl", "wa"):
            config = compose([f"strategy={name}", "experiment=mine"]).config
            assert (config["strategy"]["temperature"], config["seed"]) == (9.0, 4)


@pytest.mark.parametrize("bad", ["strategy.temprature=3", "strategy=ikarl", "seed=1,2", "trainer=3", "seed=${nothing}"])
def test_errors_are_those_of_hydra(bad):
    with pytest.raises(ConfigError) as slow:
        compose([bad])
    with files_remembered(), pytest.raises(ConfigError) as fast:
        compose([bad])
    assert str(fast.value) == str(slow.value)


def test_files_are_read_again_by_the_next_command(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    monkeypatch.setenv("CIL_CONFIG_DIR", str(tmp_path))
    for seed in (4, 5):
        (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\nseed: {seed}\n")
        with files_remembered():
            assert compose(["experiment=mine"]).config["seed"] == seed
    assert module._merged is None


def jobs_of(given):
    jobs = []
    with files_remembered():
        application(given, jobs.append)
    (job,) = jobs
    return as_text(job)


def test_a_plain_command_gives_the_job_that_hydras_own_command_line_gives(monkeypatch):
    given = ["strategy=wa", "recipe=survey", "scheduler=constant", "budget.caps.seen=3", "seed=2", "device=cpu"]
    quick = jobs_of(given)
    monkeypatch.setattr(commands, "alone", lambda overrides: None)
    assert jobs_of(given) == quick


@pytest.mark.parametrize("asked", ["job: {env_set: {SEEN: 'yes'}}", "verbose: true", "run: {dir: here}"])
def test_what_a_file_asks_of_hydra_is_left_to_hydra(tmp_path, monkeypatch, asked):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\nhydra:\n  {asked}\n")
    monkeypatch.setenv("CIL_CONFIG_DIR", str(tmp_path))
    with files_remembered():
        assert module.alone(["experiment=mine"]) is None
        assert module.alone(["hydra.verbose=true"]) is None
        assert module.alone(["seed=1"]).config.seed == 1
