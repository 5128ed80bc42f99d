"""In bf16 networks run in half precision; cosines, distances and samples of what they give do not. Float64 stays so."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_runs import Fixed, bare
from torch import nn

from cil.memory import Prototypes
from cil.strategies import find
from cil.strategies.parts.alignment import draw_all

IMAGES = torch.zeros(3, 3, 12, 12)
POINTS = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
TEXTS = F.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)))


def shown(learner):
    """The learner, whose network gives POINTS as features."""
    learner.net = Fixed([[]] * 3, POINTS.tolist())
    learner.net.backbone = SimpleNamespace(logit_factor=lambda: 100.0)
    return learner


def clip_zero_shot():
    learner = shown(bare("clip_zero_shot", classes=[2]))
    learner.weights = TEXTS
    return lambda: learner.predict(IMAGES)


def rapf():
    learner = shown(bare("rapf", classes=[2]))
    learner.weights, learner.map = TEXTS, nn.Identity()
    return lambda: learner.predict(IMAGES)


def moe_adapters():
    learner = bare("moe_adapters", classes=[2], experts=2, rank=2, code=2)
    return lambda: learner.cosines(POINTS, TEXTS)


def choice_of_a_router():
    learner = bare("moe_adapters", classes=[2], experts=2, rank=2, code=2)
    features = torch.randn(3, learner.net.feature_dim, generator=torch.Generator().manual_seed(3))
    return lambda: learner.selectors[0](features)


def ease():
    learner = bare("ease", classes=[1, 1], rank=4)
    object.__setattr__(learner, "features", lambda index, images: POINTS[:, :16] * (index + 1))
    learner.counts += 1
    learner.prototypes = TEXTS.view(2, 2, 16)
    return lambda: learner.predict(IMAGES)


def fecam():
    learner = shown(bare("fecam", classes=[2], tukey=None))
    learner.gaussians.counts += 3
    learner.centres, learner.factors = TEXTS, torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(2))
    return lambda: learner.predict(IMAGES)


def samples():
    made = Prototypes(32, "full")
    made.grow(1)
    made.update(POINTS, torch.zeros(3).long())
    ones = torch.ones(1)
    return lambda: draw_all(made, torch.Generator().manual_seed(0), count=4, scales=ones, jitter=0.1)


@pytest.mark.parametrize("make", [clip_zero_shot, rapf, moe_adapters, choice_of_a_router, ease, fecam, samples])
def test_autocast_rounds_none_of_it(make):
    ask = make()
    with torch.no_grad():
        expected = ask()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ask(), expected)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["l2p", "dualprompt", "coda_prompt", "ease", "clip_zero_shot", "moe_adapters", "rapf"])
def test_networks_in_float64_answer_in_float64(name, float64):
    learner = bare(name, classes=[2], **find(name).toy)
    if name == "ease":
        learner.prototypes = torch.randn(2, 1, 16)
        learner.counts += 1
    answer = learner.predict(torch.rand(3, 3, 12, 12))
    assert answer.dtype == torch.float64 and bool(answer.isfinite().all())
