"""What methods on public weights carry beside them: ViT-B/16 and CLIP ViT-B/16, 100 classes in ten experiences.

Where a covariance is published as D^2 numbers, half of it is carried: 2 D (D + 1) bytes, and 8 for a count.
"""

from functools import cache, partial

import pytest
from small_runs import signatures

from cil.engine.dry_run import dry_run
from cil.memory import Budget
from cil.models import NetFactory, build_backbone
from cil.strategies import find

K, T, D = 100, 10, 768
HEAD = 4 * K * (D + 1)
MEANS = 4 * K * D  # also a cosine head's rows
GAUSSIANS = K * (4 * D + 2 * D * (D + 1) + 8)
ADAPTERS = 4_758_528  # of rank 64

CARRIED = [
    ("simplecil", {"train_first": False}, 307_200),
    ("slda", {"train_first": False}, 2_666_896),
    ("fecam", {"train_first": False}, GAUSSIANS),
    ("fecam", {"train_first": False, "covariance": "diagonal", "correlation": False}, 614_400 + 8 * K),
    ("ranpac", {"tuner": "adapter", "projection": "stored", "ridge": 1.0}, 443_478_528 - 4_000_000),  # no head
    ("aper", {}, 5_372_928),
    ("aper", {"tuner": "finetune"}, 343_194_624 + 614_400),
    ("l2p", {}, 491_920),
    ("dualprompt", {}, 1_321_360),
    ("coda_prompt", {}, 15_667_600),
    ("ease", {}, 50_657_280 + 4 * K * T),  # and counts
    ("mos", {}, T * 1_217_280 + HEAD + MEANS + GAUSSIANS),
    ("mos", {"covariance": "diagonal"}, T * 1_217_280 + HEAD + MEANS + K * (2 * 4 * D + 8)),
    ("slca", {}, 2 * HEAD + GAUSSIANS),  # the backbone, which it trains, is among what is taken off
    ("slca", {"tuning": "low_rank"}, 2_555_904 + 2 * HEAD + GAUSSIANS),
    ("lae", {}, 645_760),
    ("inflora", {}, T * 1_105_920 + 14_155_776 + 12 * 8 + HEAD),
    ("sd_lora", {"carry_magnitudes": False}, T * 1_474_560 + 4 * T + HEAD),
]
WITH_TEXTS = [
    ("clip_zero_shot", {}, 204_800),
    ("rapf", {}, 1_048_576 + K * 527_360 + 204_800 + 8 * K),
    ("moe_adapters", {"experts": 2, "routers": "one", "freeze": 0}, 16_109_568 + 96 * K + 24 * 2),
]


@cache
def factory(name):
    return NetFactory(partial(build_backbone, name, 3, 224), meta=True)


def carried(strategy, hyperparameters, model):
    """Bytes at the end, without those of one backbone."""
    make = partial(find(strategy), **hyperparameters)
    bill = dry_run(make, factory(model).fresh, signatures([K // T] * T), Budget(side_bytes=None))[-1]
    backbone = sum(value.numel() * value.element_size() for value in factory(model).template.state_dict().values())
    return bill.fixed["exact"] - backbone


@pytest.mark.parametrize(("strategy", "hyperparameters", "expected"), CARRIED, ids=str)
def test_beside_a_vit_b16(strategy, hyperparameters, expected):
    assert carried(strategy, hyperparameters, "timm:vit_base_patch16_224") == expected


@pytest.mark.parametrize(("strategy", "hyperparameters", "expected"), WITH_TEXTS, ids=str)
def test_beside_clip(strategy, hyperparameters, expected):
    pytest.importorskip("open_clip")
    assert carried(strategy, hyperparameters, "clip:ViT-B-16") == expected
