"""When a best row is called, and when not."""

from __future__ import annotations

import random

import pytest

from cil.report import Score, verdict


def score(*values: float | None, first: int = 0) -> Score:
    return Score({first + index: value for index, value in enumerate(values)})


def test_no_winner_is_called_on_one_seed_however_wide_the_gap():
    said = verdict("Last", {"wa": score(90.0), "lwf": score(10.0)})
    assert said.winner is None
    assert said.text == "Last: no winner is called on one seed (wa, lwf)."


def test_one_seed_on_top_keeps_all_others_from_winning():
    said = verdict("Last", {"wa": score(90.0), "icarl": score(60.0, 60.5, 61.0), "lwf": score(10.0, 10.1, 10.2)})
    assert said.winner is None and "one seed (wa)" in said.text


def test_a_row_of_one_seed_below_is_not_judged():
    said = verdict("Last", {"wa": score(60.0, 61.0), "icarl": score(50.0, 51.1), "lwf": score(10.0)})
    assert said.winner == "wa"
    assert said.text.endswith("Of one seed, so not judged: lwf.")


def test_a_paired_test_that_holds_calls_a_winner():
    """The example of the specification, section 8: t = 5.715, p = 0.0046; unpaired it would be 0.19."""
    said = verdict("Avg", {"a": score(70, 72, 74, 71, 73), "b": score(69, 70, 73, 70, 71)})
    assert said.winner == "a"
    assert "1.40 behind (paired over 5 seeds, p = 0.0046)" in said.text


def test_a_difference_within_the_noise_has_no_winner_and_says_why():
    said = verdict("Avg", {"a": score(70.0, 75.0), "b": score(72.0, 72.0)})
    assert said.winner is None
    why = "a has the highest mean, but is not surely ahead of b (0.50 behind, paired over 2 seeds, p = 0.87)"
    assert said.text == f"Avg: no clear winner; {why}."


def test_every_rival_that_may_be_as_good_is_named_and_no_other():
    scores = {"a": score(70.0, 75.0), "b": score(72.0, 72.0), "c": score(60.0, 74.0), "d": score(60.0, 65.1)}
    said = verdict("Avg", scores)
    assert said.winner is None and "ahead of b (0.50 behind, " in said.text and "), c (5.50 behind, " in said.text
    assert " d " not in said.text  # 10.0 and 9.9 behind: sure
    many = verdict("Avg", {name: score(70.0 + place, 75.0) for place, name in enumerate("abcde")})
    assert many.text.count("behind") == 3 and many.text.endswith(" and 1 more.")


def test_other_seeds_are_compared_by_intervals_that_must_not_overlap():
    far = verdict("Avg", {"a": score(70, 71, 72), "b": score(50, 51, 52, first=10)})
    assert far.winner == "a" and "seeds shared: 0, 95 % intervals apart" in far.text
    near = verdict("Avg", {"a": score(70, 71, 72), "b": score(68, 69, 70, first=10)})
    assert near.winner is None and "seeds shared: 0)" in near.text


def test_the_best_must_beat_every_other_row():
    scores = {"a": score(70.0, 71.0, 72.0), "b": score(69.5, 71.5, 71.0), "c": score(20.0, 21.0, 22.1)}
    said = verdict("Avg", scores)
    assert said.winner is None and "not surely ahead of b" in said.text


def test_a_winner_is_rarely_called_among_rows_that_are_equal_in_truth():
    """5 % of 400 is 20; three standard deviations more is 33."""
    draw = random.Random(0)
    called = 0
    for _ in range(400):
        scores = {label: score(*(draw.gauss(70, 1) for _ in range(3))) for label in "ab"}
        called += verdict("Avg", scores).winner is not None
    assert 5 < called < 33


def test_equal_differences_tell_no_spread():
    said = verdict("Avg", {"a": score(70.0, 71.0), "b": score(69.0, 70.0)})
    assert said.winner is None and "the same difference on all 2 shared seeds" in said.text


@pytest.mark.parametrize("scores", [{}, {"a": score(1.0, 2.0)}, {"a": score(1.0, 2.0), "b": score(None, 3.0)}])
def test_fewer_than_two_known_rows_are_no_contest(scores):
    assert verdict("Avg", scores).text == "Avg: fewer than two rows to compare."
