"""What a hyperparameter may be: one line where it may not."""

from __future__ import annotations

import math
import re

import pytest
from small_runs import bare

from cil.errors import ConfigError
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


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("icarl", "temperature", 0), ("icarl", "strength", -1), ("lwf", "temperature", -2.0),
        ("lwf", "strength", math.nan),
        ("ewc", "strength", -1), ("ewc", "cap", -1e-9), ("ewc", "batch_size", 0), ("wa", "temperature", 0),
        ("wa", "strength", -0.1), ("der", "auxiliary", -1),
    ],
)  # fmt: skip
def test_built_in_methods_refuse_what_their_equations_cannot_take(name, key, value):
    with pytest.raises(ConfigError, match=rf"^strategy\.{key} of {name} is "):
        bare(name, **{key: value})
