"""ACIL, DS-AL, GKEAL: ridge regression on hidden features, recursive or by sums, equal to the joint solution."""

import math

import pytest
import torch
import torch.nn.functional as F
from frozen_runs import UNTRAINED, D, experience, scores_by_label, split
from small_runs import Fixed, bare, differing, regrouped

from cil.models import extract
from cil.strategies.parts.ridge import RIDGES, RecursiveRidge, RidgeSums

NAMES = ("acil", "ds_al", "gkeal")


def tensor(rows):
    return torch.tensor(rows).double()


def taught(name, points, slots, classes, **hyperparameters):
    """A learner whose W_r is 1 everywhere, shown these features."""
    learner = bare(name, classes=[classes], size=1, **hyperparameters)
    learner.layer = torch.ones(len(points[0]), 1)
    learner.learn(tensor(points), torch.tensor(slots))
    learner.head = learner.main.weights()
    learner.net = Fixed([[]] * len(points), points)
    return learner


# ridge ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RIDGES)
def test_two_steps_by_hand(kind):
    """gamma 1: X = [[1, 0], [1, 1]], y = (0, 1); then x = (0, 2), y = 2."""
    ridge = RIDGES[kind](2, 1.0)
    ridge.grow(2)
    ridge.add([(tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2).double())])
    torch.testing.assert_close(ridge.weights(), tensor([[2.0, 1.0], [-1.0, 2.0]]) / 5)
    if kind == "recursion":
        torch.testing.assert_close(ridge.inverse, tensor([[2.0, -1.0], [-1.0, 3.0]]) / 5)
    ridge.grow(1)
    ridge.add([(tensor([[0.0, 2.0]]), tensor([[0.0, 0.0, 1.0]]))])
    torch.testing.assert_close(ridge.weights(), tensor([[6.0, 5.0, -2.0], [-1.0, 2.0, 6.0]]) / 17)
    if kind == "recursion":
        torch.testing.assert_close(ridge.inverse, tensor([[6.0, -1.0], [-1.0, 3.0]]) / 17)


@pytest.mark.parametrize("kind", RIDGES)
def test_any_order_and_chunks_give_the_joint_solution(kind):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(40, 7, generator=generator).double()
    y = F.one_hot(torch.randint(3, (40,), generator=generator), 3).double()
    joint = torch.linalg.solve(h.T @ h + 0.1 * torch.eye(7).double(), h.T @ y)
    order = torch.randperm(40, generator=generator)
    ridge = RIDGES[kind](7, 0.1)
    ridge.grow(3)
    first, *rest = order.split([1, 20, 3, 16])
    ridge.add([(h[first], y[first])])
    ridge.add((h[rows], y[rows]) for rows in rest)
    ridge.add([])
    torch.testing.assert_close(ridge.weights(), joint, rtol=1e-8, atol=1e-10)


def test_the_published_bytes():
    """E = 8192, 100 classes, float64: R 536,870,912 and W 6,553,600; the triangle of G 268,468,224."""
    with torch.device("meta"):
        made = {"recursion": RecursiveRidge(8192, 0.1), "sums": RidgeSums(8192, 0.1)}
    for ridge in made.values():
        ridge.grow(100)
    sizes = {name: sum(t.numel() * t.element_size() for t in one.state_dict().values()) for name, one in made.items()}
    assert sizes == {"recursion": 536_870_912 + 6_553_600, "sums": 268_468_224 + 6_553_600}


# strategies -----------------------------------------------------------------------------------------------------------


def test_ds_al_by_hand():
    """One hidden feature 1: main W = 1 / 2, residual 1 / 2; compensation tanh(1) / 2 / (tanh(1)^2 + 1) = .241007."""
    learner = taught("ds_al", [[1.0]], [0], 1, ridge=1.0, compensation_ridge=1.0)
    learner.second_head = learner.compensation.weights()
    assert learner.head.item() == pytest.approx(0.5)
    assert learner.second_head.item() == pytest.approx(0.241007, abs=1e-6)
    assert learner.predict(torch.zeros(1, 3, 12, 12)).item() == pytest.approx(0.610130, abs=1e-6)


def test_residuals_of_classes_without_images_are_left_out():
    learner = taught("ds_al", [[1.0], [1.0]], [0, 1], 3, ridge=1.0, compensation_ridge=1.0)
    before = learner.compensation.gram.clone(), from_sums(learner)
    learner.learn(tensor([[1.0]]), torch.tensor([2]))
    assert torch.equal(from_sums(learner)[:, :2], before[1][:, :2])
    assert from_sums(learner)[0, 2] > 0 and learner.compensation.gram > before[0]


def from_sums(learner):
    return learner.compensation.targets.clone()


def test_the_kernel_by_hand():
    """A distance of 5 at width 5 is e^-1/2."""
    learner = bare("gkeal", classes=[2], size=1, width=5.0)
    learner.centres = torch.zeros(1, 2)
    assert learner.hidden(tensor([[3.0, 4.0]])).item() == pytest.approx(math.exp(-0.5))


def test_centres_are_features_of_random_images_of_the_first_experience_alone():
    points = [[float(i), 0.0] for i in range(12)]
    learner = bare("gkeal", classes=[1], size=5)
    learner.centres = torch.zeros(5, 2)
    learner.after_experience(experience(points, [0] * 12, learner))
    first = learner.centres.clone()
    assert len(first.unique(dim=0)) == 5 and not first[:, 1].any()
    assert first[:, 0].tolist() != [0.0, 1.0, 2.0, 3.0, 4.0]  # not the first ones
    learner.after_experience(experience([[50.0, 50.0]], [0], learner, index=1))
    assert torch.equal(learner.centres, first)


def test_there_are_no_more_centres_than_images():
    learner = bare("gkeal", classes=[2, 2], size=500)  # 12 images a class
    assert learner.centres.shape == (24, D) and learner.main.size == 24


@pytest.mark.parametrize("carries", RIDGES)
def test_acil_is_joint_ridge_in_any_order_and_grouping(learn, carries):
    options = {"hyperparameters": {**UNTRAINED, "carries": carries}}
    whole = learn("acil", split(6), **options)
    expected = scores_by_label(whole)
    for stream in (split(2), split(1, order=[4, 2, 0, 5, 1, 3])):
        torch.testing.assert_close(scores_by_label(learn("acil", stream, **options)), expected, rtol=1e-6, atol=1e-8)
    learner = whole.learner(0)
    train = whole.stream[0].train
    h = learner.hidden(extract(learner.net, train).double())
    y = F.one_hot(train.slots, 6).double()
    system = h.T @ h + 0.1 * torch.eye(32).double()
    torch.testing.assert_close(learner.head, torch.linalg.solve(system, h.T @ y), rtol=1e-6, atol=1e-8)


def test_classes_that_come_back_are_learned_as_if_all_their_images_had_come_at_once(learn):
    """G-ACIL."""
    options = {"hyperparameters": UNTRAINED}
    once = learn("acil", regrouped((0, 1, 2, 3, 4, 5)), **options)
    ridge = once.learner(0).main
    again = RidgeSums(32, 0.1)
    again.grow(6)
    train = once.stream[0].train
    h = once.learner(0).hidden(extract(once.learner(0).net, train).double())
    for rows in torch.arange(len(train)).split(5):
        again.add([(h[rows], F.one_hot(train.slots[rows], 6).double())])
    torch.testing.assert_close(again.weights(), ridge.weights(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("carries", RIDGES)
def test_acil_itself_learns_classes_that_come_back_as_if_at_once(carries):
    """Class 0 has images in both experiences."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(12, 4, generator=generator).double()
    slots = torch.tensor([0, 0, 1, 1, 0, 1, 0, 2, 2, 0, 2, 2])

    def learned(*parts):
        learner = bare("acil", classes=[3], size=6, carries=carries)
        learner.layer = torch.eye(4, 6) - 0.5
        for rows in parts:
            learner.learn(points[rows], slots[rows])
        return learner.main.weights()

    found = learned(slice(0, 6), slice(6, 12))
    torch.testing.assert_close(found, learned(slice(0, 12)), rtol=1e-8, atol=1e-10)
    assert found.any(0).all()


def test_without_compensation_ds_al_is_acil(learn):
    plain = learn("acil", split(2), hyperparameters=UNTRAINED)
    other = learn("ds_al", split(2), hyperparameters={**UNTRAINED, "ratio": 0.0})
    torch.testing.assert_close(scores_by_label(other), scores_by_label(plain))


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_is_not_touched_and_what_is_carried_has_the_size_of_the_formula(learn, name):
    done = learn(name)
    assert differing(done.net(0), done.net(2)) == []
    size = {"gkeal": 16}.get(name, 32)
    ridge = 8 * (size * (size + 1) // 2 + size * 6)
    expected = {"acil": ridge + 8, "ds_al": 2 * ridge + 8, "gkeal": ridge}[name]
    assert done.ledger(2)["statistics"] == expected
    assert done.ledger(2).get("features", 0) == (4 * size * D if name == "gkeal" else 0)
