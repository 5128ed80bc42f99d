"""The same in Python: train, run, load; one path with the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from unsealed import unsealed

import cil
from cil.api import plan, source_digest
from cil.engine.options import RunOptions
from cil.errors import ConfigError
from cil.strategies.icarl import ICaRL
from cil.targets import described, made, resolve


@pytest.fixture
def stream():
    torch.set_num_threads(1)
    return cil.class_incremental("digits", increment=5)


def quick(strategy, stream, **options):
    recipe = cil.Recipe(epochs=1, batch_size=64, max_steps=2)
    return cil.train(strategy, stream, model="smallconv", recipe=recipe, **options)


def test_fifteen_lines_train_a_strategy(stream, tmp_path):
    record = quick("icarl", stream, budget=cil.Budget(exemplars=20), run_dir=tmp_path / "run")
    assert record.status == "finished" and record.results["exemplars"] == [20, 20]
    assert cil.load(record.directory)(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert cil.evaluate(record.directory, stream)["accuracy"] == pytest.approx(record.results["last_accuracy"])


def test_a_name_a_class_and_a_partial_are_the_same_run(stream, tmp_path):
    options = RunOptions(root=tmp_path)
    runs = [plan(s, stream, "smallconv", options=options) for s in ("icarl", ICaRL, partial(ICaRL))]
    assert len({run.run_dir for run in runs}) == 1
    other = plan(partial(ICaRL, temperature=3.0), stream, "smallconv", options=options)
    assert other.run_dir != runs[0].run_dir


def test_training_again_finds_the_run(stream, tmp_path):
    first = quick("finetune", stream, root=tmp_path)
    again = quick("finetune", stream, root=tmp_path)
    assert again.directory == first.directory and again.results == first.results


def test_hyperparameters_of_a_partial_are_loaded_again(stream, tmp_path):
    record = quick(partial(ICaRL, temperature=4.0), stream, run_dir=tmp_path / "run", budget=cil.Budget(exemplars=10))
    assert cil.load(record.directory).learner.temperature == 4.0


def test_a_class_that_cannot_be_imported_is_given_to_load(stream, tmp_path):
    class Local(ICaRL):
        pass

    record = quick(Local, stream, run_dir=tmp_path / "run", budget=cil.Budget(exemplars=10))
    with pytest.raises(ConfigError, match=r"which is no registered strategy, .* load\(run_dir, strategy=\.\.\.\)"):
        cil.load(record.directory)
    assert cil.load(record.directory, strategy=Local)(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_short_options_change_the_recipe(stream, tmp_path):
    record = cil.train("finetune", stream, "smallconv", epochs=1, batch_size=700, lr=0.01, run_dir=tmp_path / "run")
    trainer = record.identity["config"]["trainer"]
    assert (trainer["epochs"], trainer["batch_size"], trainer["optimizer"]["lr"]) == (1, 700, 0.01)


def test_a_wrong_option_is_told_the_nearest(stream):
    with pytest.raises(ConfigError, match="unknown key sed; train has none; did you mean 'seed'"):
        cil.train("finetune", stream, sed=1)
    with pytest.raises(ConfigError, match=r"unknown key model\.heads"):
        plan("finetune", stream, {"name": "smallconv", "heads": "linear"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_steps": 2}, "unknown key max_steps; train takes it as recipe=cil.Recipe(max_steps=...)"),
        ({"exemplars": 2}, "unknown key exemplars; train takes it as budget=cil.Budget(exemplars=...)"),
        ({"epoch": 2}, "did you mean 'epochs'? known: answers, anytime, batch_size, boundary, budget, command,"),
        ({"lrr": 2}, "run_dir, seed, strategy, stream, threads"),
    ],
)
def test_an_option_of_the_recipe_or_the_budget_is_told_its_place(stream, given, says):
    with pytest.raises(ConfigError) as refused:
        cil.train("finetune", stream, **given)
    assert says in str(refused.value)


def test_a_mapping_says_more_of_the_model(stream, tmp_path):
    options = RunOptions(root=tmp_path)
    run = plan("finetune", stream, {"name": "resnet14", "options": {"width": 4}}, options=options)
    whole = plan("finetune", stream, "resnet14", options=options)
    assert run.work.bill[-1].total["exact"] < whole.work.bill[-1].total["exact"] / 10


def test_the_command_line_is_a_thin_layer(stream, tmp_path):
    """The same settings, given as objects and as a configuration, learn the same."""
    options = [
        "stream=split_digits",
        "stream.increment=5",
        "trainer.epochs=1",
        "trainer.batch_size=64",
        "trainer.max_steps=2",
    ]
    one = cil.run(
        *options,
        "strategy=replay",
        "budget.exemplars=20",
        f"run_dir={tmp_path}/a",
        "progress=false",
        "trainer.threads=1",
    )
    other = quick("replay", stream, budget=cil.Budget(exemplars=20), run_dir=tmp_path / "b")
    assert one.results["accuracy_matrix"] == other.results["accuracy_matrix"]
    assert one.results["ledger"] == other.results["ledger"]


def test_every_public_name_is_there():
    for name in cil.__all__:
        assert getattr(cil, name) is not None
    assert set(cil.__all__) <= set(dir(cil))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = cil.trian


# targets ------------------------------------------------------------------------------------------------------------


def test_what_is_described_can_be_made_again():
    maker = partial(ICaRL, temperature=3.0, selection="random")
    again = made(described(maker))
    assert again.func is ICaRL and again.keywords == maker.keywords


def test_nested_targets_are_made_too():
    made_up = made({"_target_": "collections.OrderedDict", "inner": {"_target_": "fractions.Fraction", "numerator": 3}})
    assert made_up["inner"] == 3


def test_a_function_that_is_named_like_its_module_is_found():
    assert resolve("cil.streams.class_incremental") is cil.class_incremental


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "fractions.Fraktion"}, "fractions has no Fraktion"),
        (
            {"_target_": "cil.strategies.lwf.LwF", "_partial_": True, "strength": "a"},
            "x.strength is 'a'; it must be a number",
        ),
        (
            {"_target_": "cil.strategies.lwf.LwF", "_partial_": True, "strenght": 1},
            "unknown key x.strenght.*'x.strength'",
        ),
    ],
)
def test_a_wrong_target_is_refused_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        made(config, "x")


def test_another_augmentation_is_another_run(tmp_path):
    """Two streams that differ in nothing else."""
    from cil import class_incremental, train
    from cil.testing.toy import toy_dataset

    options = {"model": "smallconv", "epochs": 1, "root": tmp_path}
    plain, flipped = (class_incremental(toy_dataset(), increment=2, augment=how) for how in ({}, {"flip": True}))
    assert train("replay", plain, **options).directory != train("replay", flipped, **options).directory


def test_a_record_cannot_name_something_to_call(tmp_path):
    """A record is data: who loads a stranger's run runs nothing of it."""
    import json

    from cil import class_incremental, load, train
    from cil.errors import ConfigError
    from cil.testing.toy import toy_dataset

    record = train(
        "replay", class_incremental(toy_dataset(), increment=2), "smallconv", epochs=1, run_dir=tmp_path / "run"
    )
    path = unsealed(record.directory) / "record.json"
    content = json.loads(path.read_text())
    trap = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "trap")}
    for strategy in ({**content["identity"]["config"]["strategy"], "selection": trap}, {"_target_": "os.getcwd"}):
        content["identity"]["config"]["strategy"] = strategy
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"what a file names is not imported|os\.getcwd, which is no registered"):
            load(record.directory)
    assert not (tmp_path / "trap").exists()


def test_a_hyperparameter_that_a_strategy_does_not_have_is_one_line_in_python_too(stream):
    with pytest.raises(ConfigError, match=r"^unknown key strategy\.temprature; ICaRL has none; did you mean 'strat"):
        plan(partial(ICaRL, temprature=1.0), stream, "smallconv")


def test_the_digest_of_the_code_is_the_same_in_every_process_and_no_optimizer_brings_the_compiler():
    ask = (
        "from cil.api import source_digest; from cil.strategies import find; from cil.engine.recipe import Recipe; "
        "import sys; Recipe().check(); print(source_digest(find('icarl')), 'torch._dynamo.config' in sys.modules)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "2"}
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [source_digest(ICaRL), "False"]
