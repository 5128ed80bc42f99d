"""Streams that do not wait: the numbers of the specification, and what a phase trains on under them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from toys import Learner, fit_of, grown, plain, some_samples

from cil.engine.arrival import Pace, among, by_rate, in_real_time, leading
from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.strategies import Phase
from cil.streams import IBlurry, blurry
from cil.testing import toy_run, toy_stream
from cil.testing.toy import toy_dataset

PUBLISHED = {"ER": 1, "LwF": "4/3", "RWalk": 2, "MIR": "5/2", "PoLRS": 3, "GSS": 6}


def trained(complexity, count):
    return [batch for batch, steps in enumerate(in_real_time(count, Fraction(complexity))) if steps]


# the schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("complexity", "count", "expected"),
    [
        (1, 6, [0, 1, 2, 3, 4, 5]),
        ("4/3", 8, [0, 2, 3, 4, 6, 7]),  # {0, 2, 3} of every four
        (2, 6, [0, 2, 4]),
        ("5/2", 10, [0, 3, 5, 8]),  # {0, 3} of every five
        (3, 7, [0, 3, 6]),
        (6, 13, [0, 6, 12]),
    ],
)
def test_a_learner_trains_on_what_arrives_while_it_is_free(complexity, count, expected):
    assert trained(complexity, count) == expected


@pytest.mark.parametrize("complexity", PUBLISHED.values(), ids=PUBLISHED)
def test_the_share_that_is_trained_on_is_one_over_the_complexity(complexity):
    assert len(trained(complexity, 60_000)) == pytest.approx(60_000 / Fraction(complexity), abs=1)


def test_no_step_begins_before_the_one_before_it_ended():
    for complexity in PUBLISHED.values():
        began = trained(complexity, 500)
        assert all(batch >= number * Fraction(complexity) for number, batch in enumerate(began))


def test_complexity_measured_by_runs_of_equally_many_steps(tmp_path):
    def spent(name, **hyperparameters):
        recipe = Recipe(epochs=1, batch_size=8, updates_per_batch=1)
        run = toy_run(name, toy_stream(), tmp_path / name, recipe=recipe, hyperparameters=hyperparameters)
        return run.execute().results["flops"]["training"][-1]

    reference = spent("er_ace", task_free=True)  # as many exemplars as new images
    assert Fraction(spent("derpp"), reference) == pytest.approx(Fraction(3, 2), rel=0.03)  # and as many more
    assert Fraction(spent("finetune"), reference) == pytest.approx(Fraction(1, 2), rel=0.07)


@pytest.mark.parametrize(
    ("updates", "expected"),
    [("1/4", [0, 0, 0, 1, 0, 0, 0, 1]), ("3/2", [1, 2] * 4), ("3", [3] * 8), ("1/3", [0, 0, 1, 0, 0, 1, 0, 0])],
)
def test_updates_are_whole_as_soon_as_credit_is(updates, expected):
    assert by_rate(8, Fraction(updates)) == expected


@pytest.mark.parametrize("complexity", PUBLISHED.values(), ids=PUBLISHED)
def test_no_batch_is_answered_by_a_step_that_ended_after_it_arrived(complexity):
    pace = Pace.of(None, complexity)
    began = trained(complexity, 300)
    for batch in range(300):
        ended = [(number + 1) * Fraction(complexity) <= batch for number in range(len(began))]
        assert pace.finished(batch) == sum(ended)


def test_with_several_steps_a_batch_it_is_answered_after_those_of_the_batches_before():
    assert [Pace.of("3/2", None).finished(batch) for batch in range(5)] == [0, 1, 3, 4, 6]
    assert [Pace.of(1, None).finished(batch) for batch in range(3)] == [0, 1, 2]


def test_decimal_numbers_are_exact():
    assert sum(by_rate(1000, Pace.of(0.1, None).updates)) == 100
    assert Pace.of(None, "5/2").steps(5) == [1, 0, 0, 1, 0] and Pace.of(None, None) is None


def test_what_is_mixed_in_is_spread_among_what_arrives_in_its_order():
    order = among(20, 30, torch.Generator().manual_seed(3))
    assert order.sort().values.tolist() == list(range(30))
    assert order[order < 20].tolist() == list(range(20))
    for start in range(0, 30, 6):
        assert int((order[start : start + 6] >= 20).sum()) == 2
    assert among(7, 7, torch.Generator()).tolist() == list(range(7))


def test_what_stands_before_the_images_that_arrive_has_no_order():
    new, old = some_samples(5), some_samples(4)
    assert [leading(data, new) for data in (new, new + old, old + new, new[[2, 0]], old)] == [5, 5, 0, 2, 0]


# a phase under them ---------------------------------------------------------------------------------------------------


def seen_rows(samples, **given):
    rows, learner = [], grown(Learner)

    def loss(batch):
        rows.append(batch.rows.tolist())
        return learner.loss(batch)

    fit = fit_of(learner, Phase("main", samples, loss), plain(epochs=1, batch_size=2, **given))
    fit.run()
    return rows, fit.cost.steps


def test_one_pass_in_the_order_of_the_stream():
    assert seen_rows(some_samples(7), updates_per_batch=1) == ([[0, 1], [2, 3], [4, 5, 6]], 3)


def test_several_steps_on_each_batch_and_one_on_every_other():
    assert seen_rows(some_samples(4), updates_per_batch=2) == ([[0, 1], [0, 1], [2, 3], [2, 3]], 4)
    assert seen_rows(some_samples(8), updates_per_batch="1/2") == ([[2, 3], [6, 7]], 2)
    assert seen_rows(some_samples(4), updates_per_batch="1/4") == ([], 0)


def test_batches_that_arrive_during_a_step_are_missed():
    assert seen_rows(some_samples(10), complexity="5/2") == ([[0, 1], [6, 7]], 2)


def test_images_are_handed_out_before_they_are_learned():
    samples, told, learner = some_samples(10), [], grown(Learner)

    def ahead(found):
        same = lambda image: int((samples.pixels == image).flatten(1).all(1).nonzero())  # noqa: E731
        told.append(None if found is None else [same(image) for image in found.pixels])

    def loss(batch):
        told.append("step")
        return learner.loss(batch)

    given = {"complexity": "5/2"}  # steps from 0 to 2.5, from 2.5 (batch 3 arrives) to 5
    fit_of(learner, Phase("main", samples, loss), plain(batch_size=2, **given), ahead=ahead).run()
    assert told == [[0, 1, 2, 3, 4, 5], "step", [6, 7, 8, 9], "step", None]
    told.clear()
    fit_of(learner, Phase("main", samples, loss), plain(batch_size=4), ahead=ahead).run()
    assert told == [None, "step", None, "step", None, "step", None][: len(told)] and "step" in told


@pytest.mark.parametrize("made", [1, 3])
def test_images_that_arrive_when_the_budget_is_spent_are_answered_too(made):
    """All learners are asked about the whole stream, however much of it their steps leave of the budget."""
    samples, told, learner = some_samples(8), [], grown(Learner)

    def ahead(found):
        same = lambda image: int((samples.pixels == image).flatten(1).all(1).nonzero())  # noqa: E731
        told.extend([] if found is None else [same(image) for image in found.pixels])

    given = {"ahead": ahead, "spent": lambda cost: cost.steps >= made}
    fit_of(learner, Phase("main", samples, learner.loss), plain(batch_size=2, updates_per_batch=1), **given).run()
    assert told == list(range(8)) and learner.progress.step == made


def test_max_steps_caps_a_single_pass_too():
    rows, steps = seen_rows(some_samples(4), updates_per_batch=3, max_steps=4)
    assert rows == [[0, 1]] * 3 + [[2, 3]] and steps == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"updates_per_batch": 0}, r"trainer\.updates_per_batch is 0; it must be a number above 0 or a fraction"),
        ({"complexity": "1/0"}, r"trainer\.complexity is '1/0'"),
        ({"complexity": "fast"}, r"trainer\.complexity is 'fast'"),
        ({"updates_per_batch": True}, r"trainer\.updates_per_batch is True"),
        ({"updates_per_batch": 1, "epochs": 2}, r"trainer\.epochs is 2 with trainer\.updates_per_batch"),
        ({"complexity": 2, "first": {"epochs": 3}}, r"trainer\.first\.epochs is 3 with"),
        ({"complexity": 2, "updates_per_batch": 3}, "each says on which batches steps are taken"),
    ],
)
def test_a_pace_that_cannot_be_followed_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        Recipe(**{"epochs": 1, **given})


@pytest.mark.parametrize("name", ["finetune", "replay", "derpp", "er_ace", "icarl", "gdumb", "bic"])
def test_learners_pass_once_over_a_blurry_stream(name, tmp_path):
    stream = blurry(toy_dataset(), experiences=3, arrival=IBlurry(50, 40))
    recipe = Recipe(epochs=1, batch_size=8, updates_per_batch="3/2")
    record = toy_run(name, stream, tmp_path, recipe=recipe).execute()
    assert record.status == "finished"


def test_an_online_memory_is_offered_each_image_once(tmp_path):
    stream = blurry(toy_dataset(), experiences=3, arrival=IBlurry(50, 40))
    run = toy_run("er_ace", stream, tmp_path, recipe=Recipe(epochs=1, batch_size=8, updates_per_batch=3))
    run.execute()
    assert int(run.checkpoints.state(2).meta["seen"]) == 72
