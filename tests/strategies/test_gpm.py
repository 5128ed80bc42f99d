"""GPM: subspaces of inputs, and gradients that leave them alone."""

from types import SimpleNamespace

import pytest
import torch
from small_runs import bare, batch, differing
from torch import nn

from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.strategies.parts.subspace import Subspace, input_moments, input_rows, weighted_layers
from cil.testing import toy_stream


def basis_of(*columns, size=4):
    made = Subspace(size)
    for column in columns:
        made.extend(torch.tensor(column)[:, None] @ torch.tensor(column)[None], 1.0)
    return made


def inside(subspace):
    """M M'."""
    return torch.eye(len(subspace.basis)) - subspace.outside(torch.eye(len(subspace.basis)))


def test_the_number_of_directions_by_hand():
    """X = diag(3, 1): the first has 9/10 of the square, which is below .95."""
    for share, count in ((0.95, 2), (0.9, 1), (0.89, 1), (0.0, 0)):
        found = Subspace(4)
        assert found.extend(torch.diag(torch.tensor([9.0, 1.0, 0.0, 0.0])), share) == found.dimension == count


def test_the_number_of_directions_of_the_authors_code_by_hand():
    """X = diag(3, 1) and .95: one, as 9/10 is below; with .89 none, or the one that is always kept."""
    moments = torch.diag(torch.tensor([9.0, 1.0, 0.0, 0.0]))
    for share, least, count in ((0.95, 0, 1), (0.95, 1, 1), (0.89, 0, 0), (0.89, 1, 1), (0.0, 1, 0)):
        found = Subspace(4)
        assert found.extend(moments, share, fewer=1, least=least) == found.dimension == count


@pytest.mark.parametrize("strategy", ["gpm", "inflora"])
def test_published_directions_are_one_fewer_in_the_first_experience_alone(strategy, monkeypatch):
    given = []
    monkeypatch.setattr(Subspace, "extend", lambda self, moments, share, fewer, least=0: given.append((fewer, least)))
    for directions in ("met", "published"):
        learner = bare(strategy, classes=[1, 1], directions=directions)
        learner.context.generator = lambda purpose: torch.Generator().manual_seed(0)
        for index in (0, 1):
            learner.after_experience(toy_stream()[index])
    fewer, least = zip(*given, strict=True)
    layers = len(given) // 4
    assert layers and fewer == (0,) * 2 * layers + (1,) * layers + (0,) * layers
    assert set(least) == {int(strategy == "inflora")}


def test_a_gradient_loses_its_part_inside():
    assert basis_of([1.0, 0.0, 0.0, 0.0]).outside(torch.tensor([[2.0, 5.0, 1.0, 0.0]])).tolist() == [[0, 5, 1, 0]]


def test_what_is_known_already_counts():
    """Half of the square lies inside: with .5 nothing is added, with .6 the next direction."""
    moments = torch.diag(torch.tensor([2.0, 1.5, 0.5, 0.0]))
    for share, count in ((0.5, 0), (0.6, 1)):
        found = basis_of([1.0, 0.0, 0.0, 0.0])
        assert found.extend(moments, share) == count
    torch.testing.assert_close(inside(found), torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))


def test_basis_and_complement_say_the_same():
    generator = torch.Generator().manual_seed(0)
    found, span = Subspace(6), torch.empty(6, 0)
    for step in range(6):
        column = torch.randn(6, 1, generator=generator)
        assert found.extend(column @ column.T, 0.999999) == 1
        span = torch.cat([span, column], dim=1)
        assert found.dimension == step + 1 and found.complement == (step + 1 > 3)
        held = found.basis[:, : -1 - int(found.count) if found.complement else int(found.count)]
        torch.testing.assert_close(held.T @ held, torch.eye(held.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.outside(span.T), torch.zeros(step + 1, 6), atol=1e-5, rtol=0)
    assert not found.outside(torch.randn(5, 6)).any()  # all of it
    assert found.extend(torch.eye(6), 1.0) == 0


def test_nothing_given_adds_nothing():
    found = Subspace(3)
    assert found.extend(torch.zeros(3, 3), 0.97) == found.dimension == 0


@pytest.mark.parametrize("layer", [
    nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.Conv2d(2, 3, 5, padding="same", bias=False), nn.Linear(5, 3, bias=False),
    nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False),
])  # fmt: skip
def test_rows_times_weight_are_what_the_layer_gives(layer):
    images = torch.rand(2, 2, 7, 7) if isinstance(layer, nn.Conv2d) else torch.rand(2, 4, 5)
    made = layer(images)
    rows = input_rows(layer, images) @ layer.weight.flatten(1).T
    expected = made.flatten(2).transpose(1, 2) if isinstance(layer, nn.Conv2d) else made
    torch.testing.assert_close(rows, expected.flatten(0, 1))
    with input_moments({"it": layer}) as moments:
        layer(images)
        layer(images)
    found = input_rows(layer, images).double()
    torch.testing.assert_close(moments["it"], 2 * found.T @ found)


def test_layers_that_attention_does_not_call_are_not_projected():
    assert list(weighted_layers(nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 2)))) == ["1"]


def test_grouped_convolutions_are_refused():
    with pytest.raises(ConfigError, match=r"0 is a convolution in groups; set model.name"):
        weighted_layers(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))


def test_the_network_answers_as_before_on_what_was_given_before(learn):
    """With the whole of it protected: features of old images stay, and norms and biases too."""
    options = {"hyperparameters": {"threshold": 1.0, "images": 24}, "recipe": Recipe(epochs=2, batch_size=8)}
    done = learn("gpm", **options)
    images = done.stream[0].train.images
    with torch.no_grad():
        before, after = (done.learner(index).net.eval()(images).features for index in (0, 1))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_norms_biases_and_old_rows_of_the_head_learn_in_their_own_experience_alone(learn):
    done = learn("gpm")
    moved = {name for name in differing(done.net(0), done.net(2)) if ".head." not in name}
    layers = weighted_layers(done.learner(0).net.backbone)
    assert moved <= {f"net.backbone.{name}.weight" for name in layers} and moved
    head = [done.net(index)["net.head.weight"] for index in (0, 2)]
    assert torch.equal(head[1][:2], head[0])


def test_embeddings_of_a_transformer_learn_in_the_first_experience_alone():
    learner = bare("gpm", classes=[2, 2])
    learner.net.backbone.position = nn.Parameter(torch.ones(3))
    experience = SimpleNamespace(index=0)
    learner.prepare(experience)
    assert learner.net.backbone.position.requires_grad
    experience.index = 1
    learner.prepare(experience)
    learning = {name for name, value in learner.net.backbone.named_parameters() if value.requires_grad}
    assert learning == {f"{name}.weight" for name in weighted_layers(learner.net.backbone)}


def test_projected_gradients_have_no_part_inside():
    learner = bare("gpm", classes=[2, 2])
    for basis in learner.bases.values():
        basis.extend(torch.diag(torch.arange(len(basis.basis)).float()), 0.5)
    learner.loss(batch(2, 3)).backward()
    learner.adjust_gradients(batch(2, 3))
    for name, layer in weighted_layers(learner.net.backbone).items():
        gradient, basis = layer.weight.grad.flatten(1), learner.bases[name.replace(".", "/")]
        assert gradient.any()
        torch.testing.assert_close(basis.outside(gradient), gradient, atol=1e-6, rtol=1e-4)


def test_the_bytes_for_the_alexnet_of_the_authors_by_hand():
    """Inputs of 48, 576, 512, 1024 and 2048: 23,356,416 for all directions, half of that as basis or complement."""
    sizes = (48, 576, 512, 1024, 2048)
    with torch.device("meta"):
        held = sum(4 * Subspace(size).basis.numel() for size in sizes)
    assert held == sum(4 * size * size for size in sizes) // 2 == 11_678_208


def test_the_bytes_of_the_bases(learn):
    """Half of d^2 numbers a layer, and eight for the count."""
    sizes = [layer.weight[0].numel() for layer in weighted_layers(learn("gpm").learner(0).net.backbone).values()]
    assert learn("gpm").ledger(2)["statistics"] == sum(4 * d * (d // 2) + 8 for d in sizes)
