"""Feature replay: a backbone that learns once, and a head that rehearses features or samples of prototypes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from frozen_runs import UNTRAINED, public_run, split
from small_runs import OF_SETTINGS, ONE_STEP, bare, bits, differing, observed, signatures

from cil.data import Batch, Samples
from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.memory import Budget, herd, unit
from cil.models import extract
from cil.streams import Experience, Signature
from cil.testing import check_strategy

DIM = 32
PROTOTYPES = {"store": "prototypes"}


def test_the_first_experience_is_that_of_finetune_then_only_the_head_learns(learn):
    for hyperparameters in ({}, PROTOTYPES):
        done = learn("feature_replay", hyperparameters=hyperparameters)
        first = done.state(0).tensors
        for name, value in learn("finetune").net(0).items():
            assert torch.equal(first[name.replace("net.head.", "head.")], value), name
        for earlier, later in pairwise(range(3)):
            assert differing(done.net(earlier), done.net(later)) == []
            before, after = (done.state(index).tensors for index in (earlier, later))
            for name in ("head.weight", "head.bias"):
                assert not torch.equal(before[name], after[name][: len(before[name])])


def test_the_head_is_trained_with_the_cross_entropy_over_all_outputs_on_features():
    learner = bare("feature_replay", classes=[1, 2])
    with torch.no_grad():
        learner.head.weight.zero_()
        learner.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        learner.head.weight[1, 0] = 2.0
    features = torch.zeros(2, DIM)
    features[0, 0] = 1.5  # logits 0, 3, 1 and 0, 0, 1
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([1, 0]), extras={"features": features})
    loss = learner.head_loss(batch)
    # log(1 + e^3 + e) - 3 = 0.169846 and log(2 + e) = 1.551445
    assert loss.item() == pytest.approx((0.169846 + 1.551445) / 2, abs=1e-5)
    loss.backward()
    assert learner.head.weight.grad[:, 0].any()
    assert all(parameter.grad is None for parameter in learner.net.backbone.parameters())


def test_the_backbone_is_in_evaluation_mode_from_the_second_experience_on():
    for classes, training in (([2], True), ([2, 1], False), ([2, 0], False)):
        learner = bare("feature_replay", classes=classes)
        learner.train_mode()
        assert learner.net.backbone.training == training


@pytest.mark.parametrize("hyperparameters", [{}, {"bits": 8}], ids=["32 bits", "8 bits"])
def test_stored_features_are_those_of_the_frozen_network_herded_and_kept_as_a_prefix(learn, hyperparameters):
    done = learn("feature_replay", hyperparameters=hyperparameters)
    for index in range(3):
        learner = done.learner(index)
        assert learner.memory.counts() == dict.fromkeys(range(2 * index + 2), 10 // (2 * index + 2))
        for slot in range(learner.num_classes):
            pool = done.stream[slot // 2].train.of_class(slot)
            packed = learner.memory.packed(extract(learner.net, pool), pool.slots)
            stored = learner.memory.unpacked(packed)
            own = learner.memory.features()[learner.memory.slots == slot]
            assert torch.equal(own, stored[herd(unit(stored), len(own))])


def sets(learn, stream="toy", **options):
    """Counts of what each experience trains on, and the features."""
    found = []

    def see(when, learner, experience):
        if when == "prepared":
            data = learner.training_set(experience)
            found.append((data.counts(), data.extras.get("features"), data.slots))

    learn(observed("feature_replay", see), stream, **options)
    return found


def test_the_head_sees_all_new_features_and_those_stored_as_often_as_a_new_class(learn):
    found = sets(learn)
    assert [counts for counts, _, _ in found] == [dict.fromkeys(range(classes), 12) for classes in (2, 4, 6)]
    done = learn("feature_replay")
    for index in (1, 2):
        learner, (_, features, slots) = done.learner(index - 1), found[index]
        stored = learner.memory.features()
        for slot in range(2 * index):
            own = stored[learner.memory.slots == slot]  # 5, then 2, in turn
            assert torch.equal(features[slots == slot], own.repeat(12 // len(own) + 1, 1)[:12])
        assert torch.equal(features[slots >= 2 * index], extract(learner.net, done.stream[index].train))


def test_of_prototypes_it_sees_as_many_samples_a_class_as_a_new_class_has_images(learn):
    assert [counts for counts, _, _ in sets(learn, hyperparameters=PROTOTYPES)] == [
        dict.fromkeys(range(classes), 12) for classes in (2, 4, 6)
    ]
    uneven = [counts for counts, _, _ in sets(learn, "uneven", hyperparameters=PROTOTYPES)]
    assert uneven == [{0: 6, 1: 6, 2: 5}, {0: 9, 1: 9, 2: 9, 3: 9}, {0: 4, 1: 4, 2: 4, 3: 4, 4: 2, 5: 7}]


def test_without_spread_the_samples_are_the_means_of_the_classes(learn):
    given = {"store": "prototypes", "spread": "none"}
    found, done = sets(learn, hyperparameters=given), learn("feature_replay", hyperparameters=given)
    _, features, slots = found[2]
    learner = done.learner(1)
    for slot in range(4):
        pool = done.stream[slot // 2].train.of_class(slot)
        mean = extract(learner.net, pool).mean(0)
        torch.testing.assert_close(features[slots == slot], mean.expand(12, DIM))


def test_a_class_that_comes_again_is_not_sampled_beside_its_images():
    learner = bare("feature_replay", classes=[2, 1], store="prototypes", spread="none")
    learner.prototypes.update(torch.arange(2.0)[:, None].expand(2, DIM), torch.tensor([0, 1]))
    pixels = torch.randint(256, (9, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    signature = Signature(1, (2,), (1, 2), {1: 4, 2: 5}, (3, 12, 12), 3)
    data = learner.training_set(Experience(signature, Samples.from_arrays(pixels, torch.tensor([1] * 4 + [2] * 5))))
    assert data.counts() == {0: 4, 1: 4, 2: 5}
    assert not data.extras["features"][data.slots == 0].any()  # the mean
    assert torch.equal(data.extras["features"][:9], extract(learner.net, Samples.from_arrays(pixels, torch.zeros(9))))


def test_stored_features_of_a_class_that_comes_again_are_seen_once_and_of_more_than_a_new_class_has_all():
    learner = bare("feature_replay", classes=[3, 1])
    stored = torch.arange(10.0)[:, None].expand(10, DIM)
    slots = torch.tensor([0] * 2 + [1] * 2 + [2] * 6)
    learner.memory.replace([learner.memory.packed(stored, slots)])
    pixels = torch.randint(256, (8, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    signature = Signature(1, (3,), (1, 3), {1: 3, 3: 5}, (3, 12, 12), 4)
    data = learner.training_set(Experience(signature, Samples.from_arrays(pixels, torch.tensor([1] * 3 + [3] * 5))))
    assert data.counts() == {0: 4, 1: 3 + 2, 2: 6, 3: 5}
    assert data.extras["features"][8:, 0].tolist() == [0, 1, 0, 1, 2, 3, *range(4, 10)]


def test_without_room_for_a_feature_the_head_learns_the_new_classes_alone(learn):
    found = sets(learn, budget=Budget(exemplars=0))
    assert [counts for counts, _, _ in found] == [{k: 12, k + 1: 12} for k in (0, 2, 4)]


@pytest.mark.parametrize(("width", "each"), [(32, 4 * DIM), (16, 2 * DIM), (8, DIM + 4)])
def test_carried_bytes_are_the_network_and_the_vectors_by_their_bits(learn, width, each):
    done, plain = learn("feature_replay", hyperparameters={"bits": width}), learn("finetune")
    for index, held in enumerate([10, 8, 6]):
        assert done.ledger(index) == plain.ledger(index) | {"features": each * held, "labels": held}
        totals = done.record.results["ledger"][index]["totals"]["survey"]
        assert totals["total"] - totals["parameters"] == each * held


@pytest.mark.parametrize(
    ("spread", "each", "once"),
    [
        ("none", 4 * DIM, 0),
        ("radius", 4 * DIM, 4),
        ("diagonal", 8 * DIM, 0),
        ("full", 4 * DIM + 2 * DIM * (DIM + 1), 0),
    ],
)
def test_prototypes_are_billed_before_training_at_the_size_they_have_after_it(learn, spread, each, once):
    given = {"store": "prototypes", "spread": spread}
    done = learn("feature_replay", hyperparameters=given, recipe=ONE_STEP)
    for index, bill in enumerate(done.record.results["bills"]):
        assert done.ledger(index)["prototypes"] == (2 * index + 2) * (each + 8) + once
        assert bill["by_kind"] == done.ledger(index)
        assert bill["exemplars"] == done.record.results["exemplars"][index] == 0


def test_twice_as_many_halves_fit_in_the_same_bytes(learn):
    held = {}
    for width in (32, 16):
        fixed = sum(learn("finetune").ledger(2).values())
        budget = Budget(limits=[fixed + 12 * (4 * DIM + 1)], reserve="final")
        done = learn("feature_replay", hyperparameters={"bits": width}, budget=budget, recipe=ONE_STEP)
        held[width] = done.record.results["exemplars"][2]
    assert held == {32: 12, 16: 18}  # floor(12 * 129 / 65) = 23: three a class


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"store": "images"}, r"strategy\.store of feature_replay is 'images'"),
        ({"bits": 12}, r"strategy\.bits is 12; allowed: 32, 16, 8"),
        ({"store": "prototypes", "spread": "wide"}, r"strategy\.spread is 'wide'"),
        ({"selection": "loss"}, r"strategy\.selection is 'loss', which needs logits"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        bare("feature_replay", **given)
    assert "\n" not in str(caught.value)


def test_an_experience_without_new_classes_changes_no_structure():
    learner = bare("feature_replay", classes=[2], store="prototypes", spread="full")
    before = bits(learner.prototypes)
    learner.grow(signatures([2, 0])[1])
    assert differing(before, bits(learner.prototypes)) == []


# a backbone that is not trained -------------------------------------------------------------------------------------


def test_a_backbone_that_is_not_trained_stays_as_it_was_made_and_the_head_learns_from_the_first_experience_on(learn):
    for hyperparameters in (UNTRAINED, UNTRAINED | PROTOTYPES):
        done = learn("feature_replay", hyperparameters=hyperparameters)
        start = {f"net.{name}": value for name, value in bits(done.run.work.learners.rebuilt(0, None).net).items()}
        assert differing(start, done.net(0)) == differing(start, done.net(2)) == []
        steps = [line for line in done.record.lines() if line["kind"] == "step"]
        assert {line["phase"] for line in steps} == {"head"} and {line["experience"] for line in steps} == {0, 1, 2}


def test_public_weights_are_a_reference_and_the_head_beside_them_learns(tmp_path):
    done = public_run("feature_replay", split(2), tmp_path, recipe=Recipe(epochs=20, batch_size=8))
    for index, held in enumerate([10, 8, 6]):
        state, classes = done.state(index), 2 * (index + 1)
        assert sorted(state.tensors) == ["head.bias", "head.weight", "memory.features", "memory.slots"]
        assert [reference.tag for reference in state.references] == ["smallconv toy_public.safetensors"]
        own = 4 * (DIM + 1) * classes + held * (4 * DIM + 1)
        ledger = done.record.results["ledger"][index]
        assert ledger["totals"]["exact"]["total"] - ledger["public"] == own
        assert done.record.results["bills"][index]["total"]["exact"] == ledger["totals"]["exact"]["total"]
    assert done.record.results["last_accuracy"] > 50


def test_an_untrained_backbone_keeps_the_contract():
    check_strategy("feature_replay", rules=OF_SETTINGS, **UNTRAINED)


def test_prototypes_keep_the_contract():
    check_strategy("feature_replay", rules=OF_SETTINGS, store="prototypes", spread="full")
