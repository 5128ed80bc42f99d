"""MEMO: a shared part, one last stage an experience, the older ones frozen, the newest helped by an auxiliary head."""

from functools import partial

import pytest
import torch
from small_runs import bare, batch, below, bits, differing, observed, signatures

from cil.memory import Budget
from cil.models import NetFactory, build_backbone, extract
from cil.models.base import count_parameters
from cil.strategies.memo import MEMO
from cil.testing.toy import toy_factory

# the loss -----------------------------------------------------------------------------------------------------------


# what it equals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("specialised", [None, 2])  # no cut, and one in front of the first of two stages
def test_with_nothing_shared_it_is_der(learn, stream, specialised):
    class Whole(MEMO):
        def build_net(self):
            return self.make_net.branching(specialised)

    whole, der, cut = learn(Whole, stream), learn("der", stream), learn("memo", stream)
    for index in range(3):
        assert differing(dict(whole.state(index).tensors), dict(der.state(index).tensors)) == []
        assert differing(cut.net(index), der.net(index))


def test_the_first_experience_trains_what_finetune_trains(learn):
    found, expected = learn("memo").net(0), learn("finetune").net(0)
    places = {"net.shared.1.": "net.backbone.stages.0.", "net.branches.0.stages.0.": "net.backbone.stages.1."}
    for ours, theirs in places.items():
        found = {name.replace(ours, theirs): value for name, value in found.items()}
    assert differing(found, expected) == []


# what moves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("train_shared", ["auto", True, False])
def test_only_the_newest_stage_and_a_shared_part_that_learns_move(learn, stream, train_shared):
    seen = {}

    def see(when, learner, experience):
        seen[when] = bits(learner.net)
        if when == "trained":
            moved = {
                name: len(differing(below(seen["prepared"], name), below(seen["trained"], name)))
                for name in ("shared", *(f"branches.{k}" for k in range(experience.index + 1)))
            }
            everything = len(below(seen["trained"], "shared")), len(below(seen["trained"], "branches.0"))
            learns = train_shared is not False or experience.index == 0  # few classes: auto is true
            assert moved.pop("shared") == (everything[0] if learns else 0)  # statistics too
            assert list(moved.values()) == [0] * experience.index + [everything[1]]

    done = learn(observed("memo", see), stream, hyperparameters={"train_shared": train_shared})
    for index in range(1, 3):
        earlier, later = done.net(index - 1), done.net(index)
        for old in range(index):
            name = f"net.branches.{old}"
            assert below(earlier, name) and differing(below(earlier, name), below(later, name)) == []


@pytest.mark.parametrize("train_shared", [True, False])
def test_old_features_stay_exactly_where_the_shared_part_is_frozen(learn, train_shared):
    images = batch(*range(6)).images
    done = learn("memo", hyperparameters={"train_shared": train_shared})
    features = []
    for index in range(3):
        net = done.learner(index).net.eval()
        features.append(net(images).features)
    for index in (1, 2):
        old = features[index - 1]
        assert torch.equal(features[index][:, : old.shape[1]], old) == (not train_shared)


def test_a_new_stage_starts_as_a_copy_of_the_one_before(learn):
    checked = []

    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            last, before = (bits(learner.net.branches[experience.index - k]) for k in (0, 1))
            assert last and differing(last, before) == []
            checked.append(experience.index)

    learn(observed("memo", see))
    assert checked == [1, 2]


def test_the_shared_part_learns_on_where_the_first_experience_has_20_classes_at_most():
    for classes, learns in (([20, 2], True), ([21, 2], False)):
        learner = bare("memo", classes=classes)
        assert {p.requires_grad for p in learner.net.shared.parameters()} == {learns}
        learner.train_mode()
        assert {layer.training for layer in learner.net.shared.modules()} == {learns}
    for train_shared, classes in ((True, [21, 2]), (False, [2, 2])):
        learner = bare("memo", classes=classes, train_shared=train_shared)
        assert {p.requires_grad for p in learner.net.shared.parameters()} == {train_shared}


def test_a_frozen_shared_part_still_learns_in_the_first_experience():
    assert all(p.requires_grad for p in bare("memo", classes=[2], train_shared=False).net.shared.parameters())


# the bill, norms, exemplars -----------------------------------------------------------------------------------------


def test_carried_bytes_are_those_of_the_formula(learn):
    """4 (g + T s + T d C + C) weights, 4 (32 + 64 T) statistics, images and labels; by the survey 4 (g + T s)."""
    done = learn("memo")
    g, s = toy_factory(done.stream, seed=0).backbone().split()
    assert (g, s) == (16 * 27 + 16 + 32, 32 * 16 * 9 + 32 + 64)
    for index, held in enumerate([10, 8, 6]):
        t, c = index + 1, 2 * (index + 1)
        assert done.ledger(index) == {
            "parameters": 4 * (g + t * s + t * 32 * c + c), "buffers": 4 * (2 * 16 + t * 2 * 32),
            "exemplars": 432 * held, "labels": held,
        }  # fmt: skip
        assert done.record.results["ledger"][index]["totals"]["survey"]["total"] == 4 * (g + t * s) + 432 * held
        assert count_parameters(done.learner(index).net) == g + t * s + t * 32 * c + c


def test_ten_experiences_of_cifar_100_cost_what_the_survey_says():
    factory = NetFactory(partial(build_backbone, "resnet32", 3, 32), meta=True)
    learner = MEMO(factory, Budget(exemplars=0))
    for signature in signatures([10] * 10):
        learner.grow(signature)
    assert learner.fixed_bytes("survey") == 4 * (112_016 + 10 * 351_488)  # 13.84 MB
    assert learner.fixed_bytes() == 4 * (3_626_896 + (10 * 64 + 1) * 100 + 992 + 1_280 * 10)


def test_exemplars_are_chosen_by_the_features_of_all_stages(learn):
    done = learn("memo", hyperparameters={"selection": "closest_to_mean"}, budget=Budget(exemplars=18))
    learner = done.learner(2)
    for slot in (4, 5):
        images = done.stream[2].train.of_class(slot)
        features = extract(learner.net, images)
        assert features.shape == (12, 96)
        unit = features / features.norm(dim=1, keepdim=True)
        nearest = (unit - unit.mean(0)).norm(dim=1).argsort()[:3]
        assert torch.equal(learner.memory.of_class(slot).pixels, images[nearest].pixels)
