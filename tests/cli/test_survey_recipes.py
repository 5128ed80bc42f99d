"""recipe=survey: what the survey's code trains with."""

import pytest
import torch
from torch import nn

from cil.cli.build import _recipe
from cil.cli.compose import compose
from cil.data import Samples
from cil.engine.recipe import multistep
from cil.strategies import Phase

EMPTY = Samples.from_arrays(torch.empty(0, 3, 4, 4, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def recipes(strategy, *phases):
    """Epochs, schedule and weight decay of the first experience, then of each phase of a later one."""
    configured = _recipe(compose([f"strategy={strategy}", "recipe=survey"]).config)
    main = Phase("main", EMPTY, lambda batch: batch.images.sum())
    said = []
    for index, phase in ((0, main), *((1, phase) for phase in phases or (main,))):
        recipe = configured.of(phase, index)
        decay = recipe.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["weight_decay"]
        said.append((recipe.epochs, _schedule_of(recipe), decay))
    return said


def _schedule_of(recipe):
    made = getattr(recipe.scheduler, "func", recipe.scheduler)
    return made.__name__ if made is not multistep else list(recipe.scheduler.keywords["milestones"])


SIXTY = [60, 120, 170]  # of 200 epochs


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("finetune", [(200, "cosine", 5e-4), (80, [40, 70], 2e-4)]),
        ("replay", [(200, SIXTY, 5e-4), (70, [30, 50], 2e-4)]),
        ("ewc", [(200, SIXTY, 5e-4), (180, [70, 120, 150], 2e-4)]),
        ("lwf", [(200, [60, 120, 160], 5e-4), (250, [60, 120, 180, 220], 2e-4)]),
        ("gem", [(200, SIXTY, 5e-4), (100, [30, 60, 80], 2e-4)]),
        ("icarl", [(200, SIXTY, 5e-4), (170, [80, 120], 2e-4)]),
        ("bic", [(170, [60, 100, 140], 2e-4), (170, [60, 100, 140], 2e-4)]),
        ("wa", [(200, SIXTY, 5e-4), (170, [60, 100, 140], 2e-4)]),
        ("podnet", [(160, "cosine", 5e-4), (160, "cosine", 5e-4)]),
        ("l2p", [(5, "constant", 0.0), (5, "constant", 0.0)]),
        ("memo", [(200, "cosine", 5e-4), (170, "cosine", 2e-4)]),
        ("foster", [(200, "cosine", 5e-4), (170, "cosine", 5e-4)]),
        ("coil", [(160, [80, 120], 5e-4), (160, [80, 120], 5e-4)]),
        ("der", [(200, SIXTY, 5e-4), (170, [80, 120, 150], 2e-4)]),
    ],
)
def test_epochs_schedule_and_decay_are_the_surveys(strategy, expected):
    assert recipes(strategy) == expected


def test_fosters_compression_has_130_epochs_and_the_milestones_of_coil_are_80_and_120():
    job = compose(["strategy=foster", "recipe=survey"])
    assert job.config["strategy"]["compression_epochs"] == 130
    epochs = job.config["strategy"]["compression_epochs"]
    compression = Phase("compression", EMPTY, lambda batch: batch.images.sum(), epochs=epochs, weight_decay=0.0)
    assert recipes("foster", compression)[1] == (130, "cosine", 0.0)
    recipe = _recipe(compose(["strategy=coil", "recipe=survey"]).config)
    optimizer = recipe.optimizer([nn.Parameter(torch.zeros(1))])
    schedule, rates = recipe.scheduler(optimizer, recipe.epochs), []
    for _ in range(recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates.index(rate) for rate in sorted(set(rates), reverse=True)] == [0, 80, 120]
