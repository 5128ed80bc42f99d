"""Hyperparameters out of range are refused in one line."""

from __future__ import annotations

import math
import re

import pytest
from small_runs import bare

from cil.errors import ConfigError
from cil.models.tuners import ALL_TUNERS
from cil.strategies.base import check


@pytest.mark.parametrize(
    ("accept", "allowed", "refused", "words"),
    [
        (lambda value: check.at_least(0, "si", damping=value), (0, 0.0, 1, 2.5, None), (-1e-9, -1), "0 or more"),
        (lambda value: check.above(0, "si", damping=value), (1e-9, 1, None), (0, -1), "above 0"),
        (lambda value: check.below(1, "si", damping=value), (0, 0.999, -3, None), (1, 2), "below 1"),
        (lambda value: check.between(0, 1, "si", damping=value), (0, 0.5, 1, None), (-0.1, 1.1), "between 0 and 1"),
        (
            lambda value: check.whole_or_share("si", damping=value),
            (0.5, 1, 2.0, 130, None),
            (0, -1, 1.5),
            "a whole number above 0, or a share below 1",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_in_one_line_with_its_key(accept, allowed, refused, words):
    for value in allowed:
        accept(value)
    for value in (*refused, math.nan, math.inf, -math.inf, True, "3", [1]):
        line = re.escape(f"strategy.damping of si is {value!r}; it must be {words}")
        with pytest.raises(ConfigError, match=f"^{line}$"):
            accept(value)


def test_a_word_that_is_not_known_is_refused_with_those_that_are():
    check.one_of(("head", "network"), "podnet", tuned="head", also="network")
    with pytest.raises(ConfigError, match=r"^strategy\.tuned of podnet is 'hed'; allowed: head, network$"):
        check.one_of(("head", "network"), "podnet", tuned="hed")
    with pytest.raises(ConfigError, match=r"allowed: auto, true, false$"):
        check.one_of(("auto", True, False), "memo", train_shared="yes")


NAN = math.nan
RANKS = "allowed: pairs of an experience from 1 on, in rising order, and a rank from 1 on, as [[4,8],[8,6]]"
OUT_OF_RANGE = {
    "acil": [("size", 0, "it must be 1 or more"), ("ridge", 0.0, "it must be above 0"),
             ("carries", "gram", "allowed: sums, recursion"), ("statistics", "half", "allowed: float32, float64")],
    "agem": [("reference", 0)],
    "aper": [("tuner", "none", f"allowed: {', '.join(ALL_TUNERS)}"), ("rank", 0), ("prompts", 0)],
    "bic": [("temperature", 0.0), ("temperature", NAN), ("split", 1.0), ("split", -0.1), ("bias_epochs", 0),
            ("bias_lr", 0.0), ("bias_lr", NAN)],
    "coda_prompt": [("components", 0), ("length", 1, "it must be 2 or more"), ("orthogonality", -1)],
    "coil": [("temperature", 0.0), ("prospective", -1.0), ("retrospective", -1.0), ("refresh", 0), ("sinkhorn", 0.0),
             ("norm", 0.5)],
    "der": [("auxiliary", -1)],
    "derpp": [("alpha", -0.1), ("alpha", NAN), ("beta", -1), ("replay", 0)],
    "ds_al": [("compensation_ridge", 0, "it must be above 0"), ("ratio", 2.5, "it must be between 0 and 2")],
    "dualprompt": [("general_length", 0), ("expert_length", 0), ("keys", "own", "allowed: shared, block"),
                   ("pull", -0.1, "it must be 0 or more")],
    "dytox": [("divergence", -1.0, "it must be 0 or more"), ("temperature", 0.0, "it must be above 0"),
              ("kd_mean", "output", "allowed: outputs, batch"), ("tuning_epochs", -1), ("tuning_lr", 0.0)],
    "ease": [("rank", 0), ("others", -0.1)],
    "er_ace": [("scale", 0.0), ("scale", NAN), ("scale", -1), ("replay", 0)],
    "ewc": [("strength", -1), ("cap", -1e-9), ("batch_size", 0)],
    "fecam": [("covariance", "fill", "allowed: full, low_rank, diagonal, tied"), ("diagonal_shrinkage", 0.0),
              ("other_shrinkage", -1), ("tukey", 0, "it must be above 0"), ("tukey", 1.5)],
    "fetril": [("classifier", "tree", "allowed: linear, svm"), ("svm_c", 0, "it must be above 0")],
    "foster": [("beta1", 1.0), ("beta2", -0.1), ("temperature", 0.0), ("strength", -1.0), ("old_features", "az"),
               ("compression_epochs", 0), ("compression_epochs", 1.5), ("compression_decay", -1.0), ("keep", "both")],
    "gdumb": [("cutmix", -0.1), ("cutmix", 1.5)],
    "gem": [("margin", -0.5), ("margin", NAN), ("constraint_batch", 0), ("statistics", "none")],
    "gkeal": [("width", 0.0, "it must be above 0"), ("size", 0)],
    "gpm": [("threshold", 0.0, "it must be above 0"), ("threshold", 1.1), ("step", -1), ("images", 0),
            ("directions", "all", "allowed: met, published")],
    "icarl": [("temperature", 0), ("strength", -1)],
    "inflora": [("rank", 0), ("threshold", 0.0, "it must be above 0"), ("threshold", 1.1), ("step", -1),
                ("energy", "squared", "allowed: variance, published"), ("directions", "short")],
    "l2p": [("prompts", 0, "it must be 1 or more"), ("length", 0), ("top", 0), ("pull", -0.1),
            ("top", 11, "it must be at most strategy.prompts, 10"), ("position", "first"),
            ("train_selection", "batches", "allowed: sample, batch"), ("transfer", "keys", "allowed: true, false")],
    "lae": [("tuner", "prompt", "allowed: adapter, low_rank, prefix"), ("rank", 0), ("blocks", 0), ("momentum", 1.1),
            ("head_first", -0.1, "it must be between 0 and 1")],
    "lucir": [("strength", -1.0), ("ranking", -0.5), ("margin", NAN), ("negatives", 0), ("tune_epochs", -1),
              ("tune_lr", -1.0)],
    "lwf": [("temperature", -2.0), ("strength", NAN)],
    "mas": [("strength", -1.0), ("strength", NAN), ("function", "cubed"), ("batch_size", 0), ("merge", "mean")],
    "memo": [("auxiliary", -1.0), ("train_shared", "maybe")],
    "moe_adapters": [("top", 0), ("experts", 1, "it must be 2 or more"), ("freeze", -1), ("threshold", 0.0),
                     ("routers", "two", "allowed: each, one"), ("code", 0), ("selector_lr", 0.0)],
    "mos": [("rank", 0), ("merge", 1.1), ("apart", -1), ("head_lr", 0.0), ("covariance", "none"), ("align_epochs", -1)],
    "pass": [("distillation", -1), ("prototypes", -0.5), ("prototypes", NAN), ("temperature", NAN), ("pseudo", -1),
             ("temperature", 0, "it must be above 0"), ("radius", "some", "allowed: all, first")],
    "podnet": [("spatial", -1.0), ("flat", NAN), ("margin", -0.1), ("proxies", 0), ("tune_epochs", -1),
               ("tune_lr", -0.1), ("margin_on", "both"), ("tuned", "backbone")],
    "ranpac": [("ridge", "best", "allowed: a number > 0, or auto"), ("ridge", 0.0, "it must be above 0"), ("ridge", -1),
               ("ridge", NAN), ("projection", "none", "allowed: seed, stored"),
               ("gram", "half", "allowed: full, packed"),
               ("statistics", "float16", "allowed: float32, float64"), ("rank", 0),
               ("tuner", "adapters", "allowed: none, adapter, scale_shift")],
    "rapf": [("start", "zero", "allowed: random, identity"), ("fusion", 1.5, "it must be between 0 and 1"),
             ("samples", 0), ("margin", -0.1)],
    "sd_lora": [
        ("rank", 0),
        ("carry_magnitudes", "no", "allowed: true, false"),
        ("start", -0.1),
        ("merge_below", -1.0),
        ("later_ranks", [[8, 6], [4, 8]], RANKS),
    ],
    "si": [("strength", -0.1), ("damping", 0.0), ("strength", NAN), ("damping", NAN)],
    "slda": [("covariance", "exakt", "allowed: exact, reference"), ("base", "lda", "allowed: plain, oas"),
             ("shrinkage", 1.5, "it must be between 0 and 1"), ("shrinkage", -1e-9)],
    "slca": [("tuning", "head", "allowed: full, low_rank"), ("covariance", "none"), ("scaling", "age"),
             ("jitter", -1.0), ("reverse", -0.1), ("align_epochs", -1), ("align_samples", 0), ("align_lr", 0.0),
             ("backbone_lr", 0.0), ("first_lr", 0.0), ("answer_growth", -0.1),
             ("temperature", 0.0, "it must be above 0")],
    "ssre": [("distillation", -1), ("prototypes", -0.5), ("distillation", NAN), ("temperature", NAN),
             ("temperature", 0.0, "it must be above 0")],
    "trgp": [("threshold", 0.0, "it must be above 0"), ("trust", 1.1), ("step", -1), ("images", 0), ("regions", 0)],
    "wa": [("temperature", 0), ("strength", -0.1)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [(name, *case, *[""] * (3 - len(case))) for name, cases in OUT_OF_RANGE.items() for case in cases],
)
def test_a_value_that_the_equations_cannot_take_is_refused_in_one_line(name, key, value, words):
    ending = re.escape(words) + "$" if words else "(it must be|allowed:) .+$"
    with pytest.raises(ConfigError, match=rf"^strategy\.{key} of {name} is {re.escape(repr(value))}; {ending}"):
        bare(name, **{key: value})
