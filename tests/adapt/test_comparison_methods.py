"""What holds for every method that EcoTTA is compared with."""

import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from cil.adapt import SourceModel, built_in, find

NAMES = ("source", "bn_stats", "tent", "cotta", "eata", "sar", "rotta")
TOY = {
    "tent": {"lr": 0.01},
    "cotta": {"views": 2, "threshold": 0.7},
    "eata": {"samples": 16, "fisher_batch": 8, "margin": 0.8, "lr": 0.01},
    "sar": {"margin": 0.9, "lr": 0.01},
    "rotta": {"capacity": 12, "every": 8, "lr": 0.01},
}
CONF = Path(__file__).parents[2] / "conf" / "adapter"


def started(made, name):
    adapter = made(name, **TOY.get(name, {}))
    adapter.deploy(made.source_samples() if adapter.needs_source else None)
    return adapter


def run(made, adapter, batches):
    answers = []
    for batch in batches:
        made.at(adapter, batch)
        answers.append(adapter.adapt_and_predict(made.pictures(12, batch)))
    return answers


def test_they_are_here():
    assert set(NAMES) <= set(built_in())


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_finite_scores_without_gradient(made, name):
    adapter = started(made, name)
    for answer in run(made, adapter, range(3)):
        assert answer.shape == (12, 4) and answer.isfinite().all() and not answer.requires_grad
    assert all(p.grad is None for net in adapter.modules() for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_carried_is_all_that_counts(made, name):
    straight, first = started(made, name), started(made, name)
    expected = run(made, straight, range(5))
    run(made, first, range(3))
    again = made(name, made.conv_source(), **TOY.get(name, {}))
    state = first.state()
    again.load_state(state)
    assert all(torch.equal(a, b) for a, b in zip(run(made, again, range(3, 5)), expected[3:], strict=True))
    here, there = straight.state(), again.state()
    assert here.tensors.keys() == there.tensors.keys() and here.meta == there.meta
    for key, value in here.tensors.items():
        assert torch.equal(value, there.tensors[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_is_known_before_the_first_batch(made, name):
    adapter = made(name, **TOY.get(name, {}))
    before = adapter.state()
    adapter = started(made, name)
    run(made, adapter, range(3))
    assert adapter.state().bytes == before.bytes and adapter.state().kinds == before.kinds
    assert adapter.fixed_bytes() == before.bytes


AFFINE = {f"net.backbone.stages.{stage}.1.{name}" for stage in (0, 1) for name in ("weight", "bias")}
RUNNING = {f"net.backbone.stages.{stage}.1.running_{name}" for stage in (0, 1) for name in ("mean", "var")}
MOVES = {
    "source": set(),
    "bn_stats": set(),
    "tent": AFFINE,
    "eata": AFFINE,
    "sar": AFFINE,  # of a network of two stages
    "rotta": AFFINE | RUNNING,
}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cotta"])
def test_nothing_else_moves(made, name):
    adapter = started(made, name)
    before = made.copied(adapter)
    run(made, adapter, range(3))
    after = adapter.state().tensors
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert {key for key in moved if key.startswith("net.")} == MOVES[name]
    teacher = {key.replace("net.", "teacher.", 1) for key in MOVES[name]} if name == "rotta" else set()
    assert {key for key in moved if key.startswith("teacher.")} == teacher
    assert not {"start", "fisher"} & moved


def test_cotta_moves_all_parameters_and_never_the_source(made):
    adapter = started(made, "cotta")
    before = made.copied(adapter)
    run(made, adapter, range(3))
    after = adapter.state().tensors
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    parameters = {name for name, _ in made.conv_source().net.named_parameters()}
    assert {key.removeprefix("net.") for key in moved if key.startswith("net.")} == parameters
    assert {key.removeprefix("teacher.") for key in moved if key.startswith("teacher.")} == parameters
    assert not any(key.startswith("source_net.") for key in moved)


@pytest.mark.parametrize("name", NAMES)
def test_networks_share_no_tensor(made, name):
    adapter = started(made, name)
    places = [tensor.data_ptr() for tensor in adapter.state().tensors.values() if tensor.numel()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", NAMES)
def test_its_configuration_has_the_defaults_of_the_class(name):
    given = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    kind = find(name)
    assert given.pop("_target_") == f"{kind.__module__}.{kind.__qualname__}" and given.pop("_partial_") is True
    own = {key: value.default for key, value in inspect.signature(kind).parameters.items() if key != "source"}
    assert given == own
    assert set(kind.toy) <= set(own)


class Plain(nn.Module):
    """Scores without an ``Output``, and layer norm alone."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 4)
        with torch.no_grad():
            self.head.weight.copy_(2 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return self.head(self.norm(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(
    ("name", "given"),
    [("tent", {}), ("eata", {"margin": 1}), ("sar", {"margin": 1, "recover": 0, "leave": []}), ("cotta", {})],
)
def test_layer_norm_and_plain_scores_do(made, name, given):
    torch.manual_seed(0)
    adapter = made(name, SourceModel(Plain(), 4, (3, 12, 12)), **TOY[name] | given)
    adapter.deploy(made.source_samples() if adapter.needs_source else None)
    before = adapter.net.norm.weight.clone()
    answers = run(made, adapter, range(2))
    assert answers[0].shape == (12, 4)
    assert not torch.equal(adapter.net.norm.weight, before)
    if name != "cotta":
        assert not adapter.net.head.weight.requires_grad
