"""The survey's three comparisons: its tables, from what the commands would run."""

from __future__ import annotations

from functools import cache

import pytest

from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.composition import files_remembered
from cil.cli.grid import expand
from cil.errors import ConfigError
from cil.streams.known_shapes import without_images

MIB = 2**20
SINGLE = ("gem", "replay", "icarl", "podnet", "coil", "wa", "bic", "foster")  # charged one network


@cache
def exemplars_and_budget(*overrides: str) -> tuple[int, int]:
    """Exemplars that fit beside the networks at the end of the stream, and the budget: bytes as the survey counts."""
    job = compose(overrides)
    run = build(job, stream=without_images(job.config["stream"]), progress=False, device="cpu")
    (limit,) = run.work.budget.limits
    fixed, shape = run.work.bill[-1].fixed["survey"], run.work.stream.image_shape
    return (limit - fixed) // (shape[0] * shape[1] * shape[2]), limit


CIFAR, IMAGENET, IMAGENET_1000 = (f"stream=split_{name}" for name in ("cifar100", "imagenet100", "imagenet1000"))
# stream, split, MiB, exemplars of one network, of MEMO, of DER
TABLE_6_4 = [
    (CIFAR, "b0_inc5", 41.22, 13_466, 4_771, 2_000),
    (CIFAR, "b0_inc10", 23.54, 7_431, 3_312, 2_000),
    (CIFAR, "b0_inc20", 14.70, 4_414, 2_583, 2_000),
    (CIFAR, "b50_inc50", 9.40, 2_603, 2_145, 2_000),
    (CIFAR, "b50_inc25", 11.16, 3_207, 2_291, 2_000),
    (CIFAR, "b50_inc10", 16.47, 5_017, 2_729, 2_000),
    (CIFAR, "b50_inc5", 25.31, 8_035, 3_458, 2_000),
    (IMAGENET, "b0_inc5", 1139.81, 7_642, 3_404, 2_000),
    (IMAGENET, "b0_inc10", 713.46, 4_672, 2_665, 2_000),
    (IMAGENET, "b0_inc20", 500.28, 3_187, 2_295, 2_000),
    (IMAGENET, "b50_inc10", 542.92, 3_484, 2_369, 2_000),
    (IMAGENET, "b50_inc5", 756.09, 4_969, 2_739, 2_000),
    (IMAGENET_1000, "b0_inc100", 3297, 22_672, 20_665, 20_000),
]
QUICK = ("b50_inc25", 2)  # of CIFAR-100; the others take structures of up to twenty networks


def mostly_slow(table):
    """Rows as cases: two of CIFAR-100 in every run of the tests, all with ``-m slow``."""
    return [pytest.param(*row, marks=() if row[0] == CIFAR and row[1] in QUICK else pytest.mark.slow) for row in table]


@pytest.mark.parametrize(("stream", "split", "mebibytes", "single", "memo", "der"), mostly_slow(TABLE_6_4))
def test_all_methods_aligned_to_der_have_the_exemplars_of_table_6_4(stream, split, mebibytes, single, memo, der):
    asked = ("experiment=survey_aligned", stream, f"split={split}")
    expected = {"icarl": single, "memo": memo, "der": der}
    found = {name: exemplars_and_budget(*asked, f"strategy={name}") for name in expected}
    assert {name: count for name, (count, _) in found.items()} == expected
    for _, limit in found.values():
        assert limit / MIB == pytest.approx(mebibytes, abs=0.005 if mebibytes < 2_000 else 0.5)


@pytest.mark.parametrize(
    "strategy", [one if one in ("podnet", "foster") else pytest.param(one, marks=pytest.mark.slow) for one in SINGLE]
)
def test_every_method_of_one_network_has_7431_exemplars_in_the_bytes_of_der(strategy):
    asked = ("experiment=survey_aligned", CIFAR, "split=b0_inc10")
    assert exemplars_and_budget(*asked, f"strategy={strategy}")[0] == 7_431


# stream, point, MiB, exemplars of one network, of DER, of MEMO, the network of DER and MEMO
TABLE_6_5 = [
    (CIFAR, 1, 7.628, 2_000, 2_096, 2_118, "convnet2"),
    (CIFAR, 2, 12.415, 3_634, 2_000, 2_495, "resnet14"),
    (CIFAR, 3, 16.124, 4_900, 2_000, 2_768, "resnet20"),
    (CIFAR, 4, 19.832, 6_165, 2_000, 3_040, "resnet26"),
    (CIFAR, 5, 23.541, 7_431, 2_000, 3_312, "resnet32"),
    (IMAGENET, 1, 329.74, 2_000, 2_032, 2_115, "convnet4"),
    (IMAGENET, 2, 492.96, 3_136, 2_000, 2_327, "resnet10"),
    (IMAGENET, 3, 756.09, 4_969, 2_000, 2_739, "resnet18"),
    (IMAGENET, 4, 872.31, 5_779, 2_000, 2_915, "resnet26b"),
    (IMAGENET, 5, 1180.25, 7_924, 2_000, 4_171, "resnet34"),
    (IMAGENET, 6, 1273.55, 8_574, 2_000, 4_270, "resnet50"),
]


@pytest.mark.parametrize(("stream", "point", "mebibytes", "single", "der", "memo", "network"), mostly_slow(TABLE_6_5))
def test_the_points_of_the_curve_are_those_of_table_6_5(stream, point, mebibytes, single, der, memo, network):
    asked = ("experiment=survey_curve", stream, f"point={point}")
    for name, expected in {"icarl": single, "der": der, "memo": memo}.items():
        count, limit = exemplars_and_budget(*asked, f"strategy={name}")
        assert count == expected, name
        assert limit / MIB == pytest.approx(mebibytes, abs=0.005)
    assert compose([*asked, "strategy=memo"]).config["model"]["name"] == network
    assert compose([*asked, "strategy=wa"]).config["model"]["name"] == "resnet32" if stream == CIFAR else "resnet18"


def test_what_a_method_differs_in_is_set_for_it_alone_and_the_command_line_goes_before():
    asked = ["experiment=survey_benchmark", "split=b50_inc25"]
    rmm, podnet, wa = (compose([*asked, f"strategy={name}"]).config for name in ("rmm", "podnet", "wa"))
    assert rmm["strategy"]["rates"] == [0.4, 0.4, 0.5] and rmm["budget"]["scope"] == "carried+incoming"
    assert (podnet["model"]["name"], podnet["model"]["head"]) == ("resnet32_cosine", "cosine")
    assert (wa["model"]["name"], wa["budget"]["scope"]) == ("resnet32", "carried")
    assert (wa["stream"]["base"], wa["stream"]["increment"]) == (50, 25)
    assert compose([*asked, "strategy=podnet", "model=resnet20"]).config["model"]["name"] == "resnet20"
    large = compose(["experiment=survey_benchmark", IMAGENET_1000, "strategy=podnet"]).config
    assert (large["budget"]["exemplars"], large["model"]["name"]) == (20_000, "resnet18_cosine")


def test_small_is_twenty_classes_and_quick_needs_no_data():
    for name in ("benchmark", "aligned", "curve"):
        small, quick = (
            compose([f"experiment=survey_{name}", f"scale={scale}", "strategy=wa"]) for scale in ("small", "quick")
        )
        assert (small.config["stream"]["dataset"], small.config["stream"]["classes"]) == ("cifar100", 20)
        assert (small.config["model"]["name"], small.config["trainer"]["epochs"]) == ("resnet14", 20)
        assert quick.config["stream"]["dataset"] == "digits" and quick.config["trainer"]["epochs"] == 2


def test_a_split_or_a_point_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="split is 'b0inc5'; it must be base and increment in one word"):
        compose(["split=b0inc5"])
    with pytest.raises(ConfigError, match="it must be a mapping of conditions to overrides"):
        compose(["++cases.seed='5'"])
    with pytest.raises(ConfigError, match="point is 6; here are 1, 2, 3, 4, 5; budgets of your own"):
        compose(["experiment=survey_curve", "point=6"])
    with pytest.raises(ConfigError, match="point is 1; points are of experiment=survey_curve"):
        compose(["point=1"])


def test_every_point_of_the_curve_is_that_of_its_stream():
    curve = ["experiment=survey_curve", "strategy=replay"]
    with files_remembered():
        cifar = [cell.label for cell in expand(curve)]
        both = [cell.label for cell in expand([*curve, "stream=split_cifar100,split_imagenet100", "point=all"])]
    assert cifar == [f"replay, point={point}" for point in range(1, 6)]
    counts = [sum(f"stream=split_{name}" in label for label in both) for name in ("cifar100", "imagenet100")]
    assert counts == [5, 6] and "replay, stream=split_imagenet100, point=6" in both
    assert "point=all" not in expand([*curve, "point=all"])[0].job.command
    with pytest.raises(ConfigError, match="point is all: cil compare makes a run for each; here name one, as point=1"):
        build(compose(["experiment=survey_curve", "scale=quick", "point=all"]), progress=False)
    with pytest.raises(ConfigError, match="point is all; points are of experiment=survey_curve"):
        compose(["point=all"])


def test_own_increments_are_in_place_of_the_splits_of_an_experiment():
    asked = ["experiment=survey_benchmark", "strategy=wa", "stream.base=40", "stream.increment=20"]
    assert [cell.label for cell in expand(asked)] == ["wa"]
