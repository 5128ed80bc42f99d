"""RanPAC: random features, running sums, and a ridge classifier whose lambda is chosen on held-out images."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from frozen_runs import UNTRAINED, B, D, P, experience, split
from small_runs import Done, Fixed, bare, bits, differing
from torch import Tensor

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory, build_backbone, extract
from cil.strategies import find
from cil.strategies.parts.ridge import solve
from cil.strategies.ranpac import GRID, RanPAC
from cil.streams import Signature
from cil.testing import toy_run

FIXED = {"size": 40, "ridge": 10.0, "statistics": "float64"}


def data(count: int = 50, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor]:
    """Points of three classes that lie apart."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(3, (count,), generator=generator)
    return torch.randn(count, width, generator=generator) + 2 * torch.eye(width)[slots], slots


def taught(features: Tensor, slots: Tensor, *more: tuple[Tensor, Tensor], **hyperparameters):
    """A learner whose random layer was drawn, that was shown these features, and was rebuilt from its state."""
    learner = bare("ranpac", classes=[3], **{**FIXED, **hyperparameters})
    shown = experience(features.tolist(), slots.tolist(), learner)  # this network's features have another length
    if learner.seed is None:
        learner.layer = torch.zeros(features.shape[1], learner.size)
    learner.prepare(shown)
    learner.after_experience(shown)
    for index, (points, own) in enumerate(more, 1):
        learner.after_experience(experience(points.tolist(), own.tolist(), learner, index))
    learner.load_state(learner.state())
    return learner


def projected(learner, features: Tensor) -> np.ndarray:
    return np.maximum(features.double().numpy() @ learner.layer.double().numpy(), 0)


def ridge(h: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return np.linalg.solve(h.T @ h + strength * np.eye(h.shape[1]), h.T @ y)


def scores(learner, features: Tensor) -> Tensor:
    learner.net = Fixed([[]] * len(features), features.tolist())
    return learner.predict(torch.zeros(len(features), 3, 12, 12)).detach()


# the sums and the head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gram", ["full", "packed"])
def test_the_head_is_ridge_regression_on_one_hot_targets(gram):
    features, slots = data()
    learner = taught(features, slots, gram=gram)
    h, y = projected(learner, features), np.eye(3)[slots]
    np.testing.assert_allclose(learner._gram().numpy(), h.T @ h, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(learner.targets.numpy(), h.T @ y, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(learner.head.numpy(), ridge(h, y, 10.0), rtol=1e-8, atol=1e-10)
    shown, _ = data(7, seed=1)
    np.testing.assert_allclose(
        scores(learner, shown).numpy(), projected(learner, shown) @ ridge(h, y, 10.0), rtol=1e-8, atol=1e-10
    )  # not normalised


def test_scores_by_hand():
    """One feature 1, W_r = (1, -2, 3): h = (1, 0, 3)."""
    learner = taught(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]), size=3, projection="stored")
    learner.layer = torch.tensor([[1.0, -2.0, 3.0]])
    learner.gram, learner.targets = torch.zeros(3, 3).double(), torch.zeros(3, 3).double()
    learner.after_experience(experience([[1.0], [2.0]], [0, 1], learner))
    assert learner.gram.tolist() == [[5, 0, 15], [0, 0, 0], [15, 0, 45]]
    assert learner.targets.tolist() == [[1, 2, 0], [0, 0, 0], [3, 6, 0]]
    learner.load_state(learner.state())
    found = scores(learner, torch.tensor([[1.0]]))[0]
    assert found[:2].tolist() == pytest.approx([10 / 60, 20 / 60])  # h'q / (10 + 5 |h|^2), |h|^2 = 10
    assert found[2] == -torch.inf


def test_sums_of_parts_are_the_sums_of_all():
    features, slots = data()
    whole = taught(features, slots)
    parts = taught(features[:11], slots[:11], (features[11:30], slots[11:30]), (features[30:], slots[30:]))
    torch.testing.assert_close(parts.head, whole.head, rtol=1e-8, atol=1e-10)


def test_many_images_are_projected_in_pieces(monkeypatch):
    features, slots = data()
    whole = taught(features, slots)
    monkeypatch.setattr("cil.strategies.ranpac.ROWS", 7)
    torch.testing.assert_close(taught(features, slots).head, whole.head, rtol=1e-8, atol=1e-10)


def test_with_a_large_lambda_the_head_is_proportional_to_the_sums():
    features, slots = data()
    learner = taught(features, slots, ridge=1e12)
    torch.testing.assert_close(learner.head * 1e12, learner.targets, rtol=1e-6, atol=1e-6)


def test_the_sums_of_the_stream_are_those_of_all_images_and_semidefinite(learn):
    done = learn("ranpac", split(2), hyperparameters=UNTRAINED)
    learner = done.learner(2)
    features = torch.cat([extract(learner.net, done.stream[index].train) for index in range(3)])
    slots = torch.cat([done.stream[index].train.slots for index in range(3)])
    h = projected(learner, features)
    np.testing.assert_allclose(learner.gram.numpy(), h.T @ h, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(learner.targets.numpy(), h.T @ np.eye(6)[slots], rtol=1e-5, atol=1e-4)
    assert torch.equal(learner.gram, learner.gram.T)
    values = torch.linalg.eigvalsh(learner.gram.double())
    assert values.min() > -1e-6 * values.max()
    head = ridge(h, np.eye(6)[slots], float(learner.ridge))
    np.testing.assert_allclose(learner.head.numpy(), head, rtol=1e-3, atol=1e-3 * np.abs(head).max())


def test_an_indefinite_system_is_still_solved():
    system = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
    torch.testing.assert_close(solve(system, torch.tensor([[3.0], [3.0]]).double()), torch.ones(2, 1).double())


# the random layer ---------------------------------------------------------------------------------------------------


def test_the_layer_is_standard_normal_drawn_once_and_again_from_its_seed(learn):
    done = learn("ranpac", hyperparameters={"size": 500})
    layers = [done.learner(index).layer for index in range(3)]
    assert torch.equal(layers[0], layers[1]) and torch.equal(layers[0], layers[2])
    assert layers[0].shape == (D, 500)
    assert layers[0].mean().item() == pytest.approx(0, abs=0.03)
    assert layers[0].std().item() == pytest.approx(1, abs=0.03)
    other = learn("ranpac", hyperparameters={"size": 500}, seed=1)
    assert not torch.equal(other.learner(0).layer, layers[0])


def test_a_stored_layer_gives_the_same_bits_and_is_charged_in_place_of_the_seed(learn):
    drawn, stored = learn("ranpac"), learn("ranpac", hyperparameters={"projection": "stored"})
    one, other = dict(drawn.state(2).tensors), dict(stored.state(2).tensors)
    assert torch.equal(drawn.learner(2).layer, other.pop("layer"))
    assert one.pop("seed").dtype == torch.int64
    assert differing(one, other) == []
    assert drawn.record.results["accuracy_matrix"] == stored.record.results["accuracy_matrix"]
    assert stored.ledger(2)["statistics"] - drawn.ledger(2)["statistics"] == 4 * D * 64 - 8


def test_the_layer_is_the_one_that_the_carried_seed_gives(learn):
    done = learn("ranpac")
    state = done.state(2)
    learner = done.run.work.learners.rebuilt(3, state)
    other = {**state.tensors, "seed": state.tensors["seed"] + 1}
    learner.load_state(type(state)(other, state.kinds, state.meta))
    assert not torch.equal(learner.layer, done.learner(2).layer)


# lambda -------------------------------------------------------------------------------------------------------------


def by_hand(h: np.ndarray, y: np.ndarray) -> list[float]:
    """Squared error on the last fifth of every lambda of the grid, fitted on the rest."""
    cut = int(0.8 * len(h))
    return [float(np.square(h[cut:] @ ridge(h[:cut], y[:cut], strength) - y[cut:]).sum()) for strength in GRID]


@pytest.mark.parametrize("size", [20, 39, 40, 41, 90])  # 50 images, 40 to fit: more or fewer than M
@pytest.mark.parametrize("seed", range(3))
def test_lambda_is_the_one_of_least_squared_error_on_the_last_fifth(size, seed):
    features, slots = data(seed=seed)
    learner = taught(features, slots, size=size, ridge="auto")
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))  # a bare learner's key
    errors = by_hand(projected(learner, features[order]), np.eye(3)[slots[order]])
    chosen = GRID.index(min(GRID, key=lambda value: abs(np.log10(value) - np.log10(learner.ridge.item()))))
    assert errors[chosen] <= min(errors) * (1 + 1e-6)
    assert learner.ridge.item() == pytest.approx(GRID[chosen], rel=1e-6)
    h, y = projected(learner, features), np.eye(3)[slots]
    np.testing.assert_allclose(learner.head.numpy(), ridge(h, y, learner.ridge.item()), rtol=1e-4, atol=1e-8)


def test_the_grid_has_17_powers_of_ten():
    assert len(GRID) == 17 and GRID[0] == 1e-8 and GRID[8] == 1 and GRID[-1] == pytest.approx(1e8)


def test_lambda_is_chosen_on_the_images_at_hand_alone():
    """What came before does not count; nor does a single image, which cannot be held out."""
    first, second = data(seed=1), data(seed=2, count=30)
    alone = taught(*second, ridge="auto")
    after = taught(*first, second, ridge="auto")
    assert after.ridge.item() == alone.ridge.item()
    single = taught(*first, (second[0][:1], second[1][:1]), ridge="auto")
    assert single.ridge.item() == taught(*first, ridge="auto").ridge.item() != 1.0
    assert taught(second[0][:1], second[1][:1], ridge="auto").ridge.item() == 1.0


def test_a_chosen_lambda_is_not_below_the_rounding_of_the_sums():
    """Two points that random features tell apart without error: the smallest lambda wins, and would divide noise."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1) * 1000
    slots = torch.tensor([0, 1]).repeat(20)
    exact, rounded = (taught(features, slots, ridge="auto", statistics=kind) for kind in ("float64", "float32"))
    largest = float(rounded.gram.diagonal().max())
    assert rounded.ridge.item() >= 40**0.5 * torch.finfo(torch.float32).eps * largest * (1 - 1e-6)
    assert exact.ridge.item() < rounded.ridge.item()
    found = scores(rounded, features[:2])
    torch.testing.assert_close(found[:, :2], torch.eye(2).double(), rtol=0, atol=1e-3)


# the bill -----------------------------------------------------------------------------------------------------------

SIZES = [
    ({}, 4 * (64 * 64 + 64 * 6) + 8 + 4),  # G, Q, seed, lambda
    ({"ridge": 1.0}, 4 * (64 * 64 + 64 * 6) + 8),
    ({"gram": "packed"}, 4 * (64 * 65 // 2 + 64 * 6) + 8 + 4),
    ({"statistics": "float64"}, 8 * (64 * 64 + 64 * 6) + 8 + 4),
    ({"projection": "stored"}, 4 * (64 * 64 + 64 * 6 + D * 64) + 4),
    ({"size": 10}, 4 * (100 + 10 * 6) + 8 + 4),
]


@pytest.mark.parametrize(("hyperparameters", "expected"), SIZES, ids=str)
def test_the_sums_are_charged_at_their_size(learn, hyperparameters, expected):
    done = learn("ranpac", hyperparameters=hyperparameters)
    assert done.ledger(2) == {"parameters": 4 * P, "buffers": 4 * B, "statistics": expected}
    assert done.record.results["bills"][2]["by_kind"] == done.ledger(2)


def test_the_bytes_of_the_paper_size_with_a_vit_by_hand():
    """D = 768, M = 10,000, 100 classes: G 400,000,000 bytes, packed 200,020,000, Q 4,000,000."""

    def held(**hyperparameters):
        make = NetFactory(partial(build_backbone, "smallconv", 3, 12), meta=True)
        learner = RanPAC(make, Budget(), **hyperparameters)
        learner.grow(Signature(0, tuple(range(100)), tuple(range(100)), {}, (3, 12, 12), 100))
        return {name: t.numel() * t.element_size() for name, t in learner.state().tensors.items()}

    full, packed = held(), held(gram="packed")
    assert (full["gram"], packed["gram"]) == (400_000_000, 200_020_000)
    assert full["targets"] == packed["targets"] == 4_000_000
    assert full["seed"] == 8 and "layer" not in full
    assert held(projection="stored")["layer"] == 4 * D * 10_000


def test_the_first_training_is_cross_entropy_of_a_cosine_head(learn):
    done = learn("ranpac")
    learner = done.run.work.learners.rebuilt(1, None)
    (phase,) = learner.phases(done.stream[0])
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    slots = torch.tensor([0, 1, 1, 0])
    features = learner.net(images).features
    logits = learner.first_head.scale * F.normalize(features) @ F.normalize(learner.first_head.weight).T
    torch.testing.assert_close(phase.loss(Batch(images, slots)), F.cross_entropy(logits, slots))
    assert bits(learner.first_head)["scale"] == 1


# phase 1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuner", ["adapter", "scale_shift"])
def test_the_first_experience_tunes_beside_a_transformer_that_stays_as_it_is(tmp_path, tuner):
    class OnATransformer(RanPAC):
        toy_model = find("l2p").toy_model

    options = {"size": 40, "tuner": tuner, "rank": 4}
    run = toy_run(OnATransformer, split(2), tmp_path, hyperparameters=options, keep="all")
    done = Done(run, run.execute())
    assert differing(done.net(0), done.net(2)) == []
    start = done.run.work.learners.rebuilt(0, None)
    assert differing(done.net(0), {f"net.{name}": value for name, value in bits(start.net).items()}) == []
    first, last = (done.state(index).tensors for index in (0, 2))
    tuned = [name for name in first if name.startswith("tuner.")]
    assert tuned and all(torch.equal(first[name], last[name]) for name in tuned)
    started = {f"tuner.{name}": value for name, value in bits(start.tuner).items()}
    assert any(not torch.equal(first[name], started[name]) for name in tuned)
    assert {line["experience"] for line in done.record.lines() if line["kind"] == "step"} == {0}
    learner = done.learner(2)
    with torch.no_grad():
        images = done.stream.test(1).images
        assert not torch.equal(learner.backbone_features(images), learner.net(images).features)


def test_a_tuner_and_a_trained_backbone_exclude_each_other():
    with pytest.raises(ConfigError, match=r"strategy\.tuner of ranpac is 'adapter'.*train_first is true"):
        bare("ranpac", tuner="adapter", train_first=True)
