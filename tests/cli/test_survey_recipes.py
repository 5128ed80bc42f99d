"""recipe=survey: what the survey's code trains with."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from cil.cli.build import recipe_of
from cil.cli.compose import compose
from cil.data import Samples
from cil.engine.recipe import multistep, quarter_cosine
from cil.errors import ConfigError
from cil.strategies import Phase
from cil.tracking import Record

EMPTY = Samples.from_arrays(torch.empty(0, 3, 4, 4, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def recipes(strategy, *phases, more=()):
    """Epochs, schedule and weight decay of the first experience, then of each phase of a later one."""
    configured = recipe_of(compose([f"strategy={strategy}", "recipe=survey", *more]).config)
    main = Phase("main", EMPTY, lambda batch: batch.images.sum())
    said = []
    for index, phase in ((0, main), *((1, phase) for phase in phases or (main,))):
        recipe = configured.of(phase, index)
        decay = recipe.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["weight_decay"]
        said.append((recipe.epochs, _schedule_of(recipe), decay))
    return said


def _schedule_of(recipe):
    """Its name; of steps the epochs before which the rate falls, found by going through all."""
    made = getattr(recipe.scheduler, "func", recipe.scheduler)
    if made is not multistep:
        return made.__name__
    optimizer = recipe.optimizer([nn.Parameter(torch.zeros(1))])
    schedule, rates = recipe.scheduler(optimizer, recipe.epochs), []
    for _ in range(recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [epoch for epoch in range(1, recipe.epochs) if rates[epoch] != rates[epoch - 1]]


def test_a_quarter_of_a_cosine_by_hand():
    """cos(99 pi e / (200 (E - 1))): of three epochs 1, cos(44.55 degrees) and cos(89.1 degrees)."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = quarter_cosine(optimizer, 3), []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    assert rates == [1.0, pytest.approx(0.712640, abs=1e-5), pytest.approx(0.015707, abs=1e-6)]


SIXTY = [60, 120, 170]  # of 200 epochs


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("finetune", [(200, "cosine", 5e-4), (80, [40, 70], 2e-4)]),
        ("acil", [(300, "cosine", 5e-4), (300, "cosine", 5e-4)]),
        ("gpm", [(200, "constant", 0.0), (200, "constant", 0.0)]),
        ("ranpac", [(20, "cosine", 5e-4), (20, "cosine", 5e-4)]),
        ("rapf", [(15, [4, 10], 0.0), (15, [4, 10], 0.0)]),
        ("moe_adapters", [(1, "cosine", 0.0), (1, "cosine", 0.0)]),
        ("slca", [(20, [18], 5e-4), (20, [18], 5e-4)]),
        ("replay", [(200, SIXTY, 5e-4), (70, [30, 50], 2e-4)]),
        ("ewc", [(200, SIXTY, 5e-4), (180, [70, 120, 150], 2e-4)]),
        ("lwf", [(200, [60, 120, 160], 5e-4), (250, [60, 120, 180, 220], 2e-4)]),
        ("gem", [(200, SIXTY, 5e-4), (100, [30, 60, 80], 2e-4)]),
        ("icarl", [(200, SIXTY, 5e-4), (170, [80, 120], 2e-4)]),
        ("bic", [(170, [60, 100, 140], 2e-4), (170, [60, 100, 140], 2e-4)]),
        ("wa", [(200, SIXTY, 5e-4), (170, [60, 100, 140], 2e-4)]),
        ("podnet", [(160, "cosine", 5e-4), (160, "cosine", 5e-4)]),
        ("l2p", [(5, "constant", 0.0), (5, "constant", 0.0)]),
        ("dualprompt", [(5, "constant", 0.0), (5, "constant", 0.0)]),
        ("coda_prompt", [(20, "quarter_cosine", 0.0), (20, "quarter_cosine", 0.0)]),
        ("aper", [(20, "cosine", 5e-4), (20, "cosine", 5e-4)]),
        ("ease", [(20, "cosine", 5e-4), (20, "cosine", 5e-4)]),
        ("inflora", [(20, "quarter_cosine", 0.0), (20, "quarter_cosine", 0.0)]),
        ("sd_lora", [(20, "constant", 0.0), (20, "constant", 0.0)]),
        ("lae", [(5, "constant", 0.0), (5, "constant", 0.0)]),
        ("mos", [(20, "cosine", 5e-4), (20, "cosine", 5e-4)]),
        ("memo", [(200, "cosine", 5e-4), (170, "cosine", 2e-4)]),
        ("foster", [(200, "cosine", 5e-4), (170, "cosine", 5e-4)]),
        ("rmm", [(200, "cosine", 5e-4), (170, "cosine", 5e-4)]),
        ("coil", [(160, [80, 120], 5e-4), (160, [80, 120], 5e-4)]),
        ("der", [(200, SIXTY, 5e-4), (170, [80, 120, 150], 2e-4)]),
        ("joint", [(200, SIXTY, 5e-4), (200, SIXTY, 5e-4)]),
        ("aanets", [(160, [80, 120], 5e-4), (160, [80, 120], 5e-4)]),
        ("lucir", [(160, [80, 120], 5e-4), (160, [80, 120], 5e-4)]),
        ("derpp", [(50, [35, 45], 0.0), (50, [35, 45], 0.0)]),
        ("pass", [(101, [45, 90], 2e-4), (101, [45, 90], 2e-4)]),
        ("ssre", [(101, [45, 90], 5e-4), (101, [45, 90], 5e-4)]),
    ],
)
def test_epochs_schedule_and_decay_are_the_surveys(strategy, expected):
    assert recipes(strategy) == expected


def test_fosters_compression_has_130_epochs():
    epochs = compose(["strategy=foster", "recipe=survey"]).config["strategy"]["compression_epochs"]
    compression = Phase("compression", EMPTY, lambda batch: batch.images.sum(), epochs=epochs, weight_decay=0.0)
    assert recipes("foster", compression)[1] == (130, "cosine", 0.0)
    assert recipes("foster", compression, more=["trainer.epochs=20"])[1] == (15, "cosine", 0.0)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("bic", {"second_stage": "survey"}),
        ("ewc", {"fisher_mode": "training"}),
        ("podnet", {"margin_on": "all", "hinge": False}),
        ("rmm", {"increment": 10}),
        ("aanets", {"share_gradients": "accumulated"}),
        ("mas", {"function": "norm", "batch_size": 64, "merge": "half", "strength": 0.5}),
        ("derpp", {"mean_over": 100, "insert": "each_epoch"}),
        ("pass", {"pseudo_by_classes": True}),
        ("l2p", {"train_selection": "batch"}),
        ("moe_adapters", {"experts": 2, "routers": "one", "freeze": 0}),
        ("gdumb", {"cutmix": 0.5}),
        ("dytox", {"tuning_lr": 1.25e-5}),
    ],
)
def test_what_a_reference_code_does_beside_its_paper_is_in_the_recipe_alone(strategy, expected):
    plain, survey = (
        compose([f"strategy={strategy}", "stream=split_cifar100", *more]).config["strategy"]
        for more in ([], ["recipe=survey"])
    )
    assert {key: survey[key] for key in expected} == expected
    assert strategy == "podnet" or {key: plain[key] for key in expected} != expected


def test_gdumb_restarts_after_1_2_4_epochs_from_a_tenth_of_the_rate():
    recipe = recipe_of(compose(["strategy=gdumb", "recipe=survey"]).config)
    assert (recipe.epochs, recipe.batch_size, recipe.clip_norm) == (256, 16, 10.0)
    optimizer = recipe.optimizer([nn.Parameter(torch.zeros(1))])
    schedule, rates = recipe.scheduler(optimizer, recipe.epochs), []
    for _ in range(recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.005)
    assert [epoch for epoch, rate in enumerate(rates) if rate == pytest.approx(0.05)] == [2**k for k in range(8)]
    assert rates[3] == pytest.approx((0.05 + 0.0005) / 2) and min(rates[1:]) > 0.0005


def test_dytox_has_the_rates_of_128_images_the_least_of_them_drop_path_and_randaugment():
    config = compose(["strategy=dytox", "recipe=survey"]).config
    assert config["optimizer"]["lr"] == pytest.approx(5e-4 * 128 / 512)
    assert config["scheduler"]["minimum"] == 1e-5
    assert config["model"]["options"]["drop_path"] == 0.1 and config["stream"]["augment"]["policy"] == "rand_m9"


def test_moe_adapters_warms_up_for_30_steps_and_goes_down_by_a_cosine_over_the_rest():
    """5000 images in batches of 128 are 40 steps."""
    recipe = recipe_of(compose(["strategy=moe_adapters", "recipe=survey"]).config)
    assert (recipe.schedule_by, recipe.epochs) == ("step", 1)
    optimizer = recipe.optimizer([nn.Parameter(torch.zeros(1))])
    schedule, rates = recipe.scheduler(optimizer, 40), []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[step] for step in (0, 30, 35)] == pytest.approx([1e-3 / 30, 1e-3, 5e-4], rel=2e-3)
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)


def test_rmm_is_around_foster_and_buys_exemplars_for_what_it_gives_up():
    config = compose(["strategy=rmm", "recipe=survey"]).config
    assert (config["strategy"]["host"], config["budget"]["scope"]) == ("foster", "carried+incoming")
    options = config["strategy"]["host_options"]
    assert (options["beta1"], options["beta2"]) == (0.97, 0.97)
    compression = Phase("compression", EMPTY, lambda batch: batch.images.sum(), epochs=options["compression_epochs"])
    assert recipes("rmm", compression)[1][:1] == (130,)
    assert recipes("rmm", compression, more=["trainer.epochs=20"])[1][:1] == (15,)
    said = compose(["strategy=rmm", "recipe=survey", "budget.scope=carried"]).config
    assert said["budget"]["scope"] == "carried"


# what the command line says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "more", "expected"),
    [
        # epochs alone: the same shares, in the first experience too
        ("icarl", ["trainer.epochs=20"], [(20, [6, 12, 17], 5e-4), (20, [9, 14], 2e-4)]),
        ("icarl", ["trainer.epochs=1"], [(1, [], 5e-4), (1, [], 2e-4)]),
        ("finetune", ["trainer.epochs=8"], [(8, "cosine", 5e-4), (8, [4, 7], 2e-4)]),
        ("der", ["trainer.epochs=17", "trainer.first.epochs=10"], [(10, [3, 6, 8], 5e-4), (17, [8, 12, 15], 2e-4)]),
        # a schedule
        ("icarl", ["scheduler=constant"], [(200, "constant", 5e-4), (170, "constant", 2e-4)]),
        ("icarl", ["scheduler=cosine"], [(200, "cosine", 5e-4), (170, "cosine", 2e-4)]),
        ("icarl", ["scheduler=multistep"], [(200, [100, 150], 5e-4), (170, [85, 128], 2e-4)]),
        ("finetune", ["scheduler=constant"], [(200, "constant", 5e-4), (80, "constant", 2e-4)]),
        ("memo", ["scheduler=constant"], [(200, "constant", 5e-4), (170, "constant", 2e-4)]),
        ("memo", ["scheduler=multistep", "scheduler.milestones=[7]"], [(200, [7], 5e-4), (170, [7], 2e-4)]),
        ("icarl", ["scheduler.milestones=[7]"], [(200, [7], 5e-4), (170, [7], 2e-4)]),
        (
            "icarl",
            ["scheduler=constant", "trainer.first.schedule=cosine"],
            [(200, "cosine", 5e-4), (170, "constant", 2e-4)],
        ),
        # an optimizer
        ("icarl", ["optimizer.weight_decay=0.3"], [(200, SIXTY, 0.3), (170, [80, 120], 0.3)]),
        ("icarl", ["optimizer=adamw"], [(200, SIXTY, 0.01), (170, [80, 120], 0.01)]),
    ],
)
def test_the_command_line_goes_before_the_recipe(strategy, more, expected):
    assert recipes(strategy, more=more) == expected


def test_an_optimizer_of_the_command_line_is_the_one_that_is_made():
    config = compose(["strategy=l2p", "recipe=survey", "optimizer=sgd", "optimizer.lr=0.5"]).config
    made = recipe_of(config).optimizer
    assert (made.func, made.keywords["lr"], made.keywords["momentum"]) == (torch.optim.SGD, 0.5, 0.9)


def test_the_rate_of_an_experiment_is_not_given_to_another_optimizer_unseen():
    asked = ("experiment=demo", "strategy=pass", "recipe=survey")
    with pytest.raises(ConfigError, match=r"experiment=demo sets optimizer.lr=0.05, .*Adam with 0.001: .*lr=0.001"):
        compose(asked)
    assert compose([*asked, "optimizer.lr=0.002"]).config["optimizer"]["lr"] == 0.002
    assert compose([*asked[::2], "strategy=icarl"]).config["optimizer"]["lr"] == 0.05  # the same optimizer
    assert compose(["experiment=survey_cifar100_20_b0_inc4", *asked[1:]]).config["optimizer"]["lr"] == 0.001


def test_what_is_shown_is_what_runs(cil):
    asked = ("strategy=icarl", "recipe=survey", "scheduler=constant", "trainer.epochs=3")
    shown = yaml.safe_load(cil("run", "--cfg", "job", *asked).out)
    held = compose(asked).config
    assert (shown["scheduler"], shown["trainer"]) == (held["scheduler"], held["trainer"])


def test_a_multirun_goes_before_the_recipe_too(cil):
    said = cil(
        "run", "--multirun", "stream=split_digits", "model=smallconv", "trainer.max_steps=2", "progress=false",
        "recipe=survey", "scheduler=constant,cosine", "trainer.epochs=1",
    )  # fmt: skip
    assert said.code == 0 and said.out.count(": finished") == 2, said.err
    trainers = [Record.load(path.parent).identity["config"]["trainer"] for path in Path().rglob("record.json")]
    assert [trainer["first"]["epochs"] for trainer in trainers] == [None, None]
