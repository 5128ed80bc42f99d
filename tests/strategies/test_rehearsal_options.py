"""Rules of selection and codecs, by name in the configuration of a method that rehearses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_runs import OF_SETTINGS, ONE_STEP, PIXELS, bare, signatures

from cil.data import Samples
from cil.engine.dry_run import dry_run
from cil.errors import ConfigError
from cil.memory import Allowance, Budget, Gradients, Predictions, selection
from cil.models import extract_outputs
from cil.strategies import find
from cil.strategies.parts import store_exemplars
from cil.streams import Experience
from cil.testing import check_strategy, toy_stream
from cil.testing.carried import exemplars_decode_from_their_bytes
from cil.testing.toy import toy_factory

SMALL = 3 * 5 * 5 + 1  # bytes of an image of downsample:5, and its label


@pytest.mark.parametrize("strategy", ["replay", "icarl", "der"])
@pytest.mark.parametrize("rule", ["entropy", "loss:lowest", "margin:true_class", "k_center", "gradient_diversity"])
def test_a_method_keeps_what_the_rule_chooses_with_the_network_as_it_is_then(learn, strategy, rule):
    done = learn(strategy, hyperparameters={"selection": rule}, recipe=ONE_STEP)
    for index in range(3):
        learner = done.learner(index)
        for slot in done.stream.signatures[index].new_slots:
            pool = done.stream[index].train.of_class(slot)
            output = extract_outputs(learner.net, pool)
            needed = {
                "features": output.features,
                "logits": Predictions(output.logits, pool.slots),
                "gradients": Gradients.of(output.logits, output.features, pool.slots),
            }[selection(rule).needs]
            chosen = pool[selection(rule)(needed, 10 // learner.num_classes, torch.Generator())]
            assert torch.equal(learner.memory.of_class(slot).pixels, chosen.pixels)


def test_a_rule_that_needs_logits_refuses_a_network_that_has_another_number_of_them():
    learner = bare("replay", classes=[2], selection="entropy")
    learner.net.grow(1)
    pixels = torch.zeros(4, 3, 12, 12, dtype=torch.uint8)
    experience = Experience(signatures([2])[0], Samples.from_arrays(pixels, torch.tensor([0, 0, 1, 1])))
    with pytest.raises(ConfigError, match=r"strategy\.selection needs one logit for each of 2 classes.* has 3"):
        store_exemplars(learner, experience)


def test_a_rule_is_checked_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"strategy\.selection is 'entropy:high'"):
        bare("replay", selection="entropy:high")


@pytest.mark.parametrize("strategy", ["replay", "der"])
def test_small_images_are_billed_as_small_and_as_many_as_fit_are_kept(learn, strategy):
    stream = toy_stream()
    make = partial(find(strategy), codec="downsample:5")
    last = dry_run(make, partial(toy_factory, stream, seed=0, meta=True), stream.signatures, Budget(exemplars=0))[-1]
    budget = Budget(limits=[last.fixed["exact"] + 11 * SMALL + SMALL - 1], reserve="final")
    done = learn(strategy, hyperparameters={"codec": "downsample:5"}, budget=budget, recipe=ONE_STEP)
    assert done.record.results["exemplars"] == [10, 8, 6]
    for index, bill in enumerate(done.record.results["bills"]):
        held = done.record.results["exemplars"][index]
        assert bill["by_kind"] == done.ledger(index)
        assert done.ledger(index)["exemplars"] == 75 * held
        assert bill["total"]["exact"] == sum(done.ledger(index).values()) <= budget.limits[-1]
        survey = done.record.results["ledger"][index]["totals"]["survey"]
        assert bill["total"]["survey"] == survey["total"] and survey["exemplars"] == PIXELS * held


@pytest.mark.parametrize("codec", ["raw", "downsample:7", "downsample:2", "jpeg:20", "jpeg:90"])
@pytest.mark.parametrize("rule", ["herding", "random", "cluster_complexity:hard", "gradient_diversity"])
def test_whatever_the_codec_and_the_rule_bytes_are_never_over_the_budget_and_the_next_would_be(codec, rule):
    first, second = signatures([2, 1])
    generator = torch.Generator().manual_seed(0)
    for room in (0, 1, 500, 2_000, 3_333, 7_000, 50_000):
        learner = bare("replay", classes=[2], codec=codec, selection=rule)
        for signature in (first, second):
            if signature is second:
                learner.grow(second)
            slots = torch.tensor(signature.new_slots).repeat_interleave(9)
            pixels = torch.randint(256, (len(slots), 3, 12, 12), generator=generator, dtype=torch.uint8)
            learner.budget = Allowance(Budget(limits=[learner.fixed_bytes() + room]))
            store_exemplars(learner, Experience(signature, Samples.from_arrays(pixels, slots)))
            held, limit = learner.state().bytes, learner.budget.limit
            assert held <= limit
            counts = learner.memory.counts()
            fewest = min(counts.values()) if len(counts) == learner.num_classes else 0
            if learner.memory.codec.fixed:  # one more of every class would be too much
                each = learner.memory.item_bytes((3, 12, 12), 10)
                assert fewest == min(9, room // each // learner.num_classes)
            elif signature is first and fewest < 9:  # a second best of one class is too large, and no class is ahead
                largest = 1_500  # a toy image of noise at most
                assert held + largest > limit and max(counts.values(), default=0) <= fewest + 1


def test_small_images_chosen_by_gradients_keep_the_contract():
    check_strategy(
        "replay",
        rules=(*OF_SETTINGS, exemplars_decode_from_their_bytes),
        codec="downsample:6",
        selection="gradient_diversity",
    )
