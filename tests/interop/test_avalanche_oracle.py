"""Our losses against Avalanche's on the same weights, and its penalties behind a sealed boundary."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cil import Budget, class_incremental, plan
from cil.api import networks
from cil.data import Dataset, Samples
from cil.interop.avalanche.carried import Logits
from cil.interop.avalanche.strategy import AvalancheStrategy
from cil.strategies import find

pytest.importorskip("avalanche", reason="avalanche-lib is not installed: pip install 'cil[avalanche]'")


@pytest.fixture(scope="module")
def stream():
    """Six classes of noise, two an experience, four images of each."""
    pixels = torch.randint(0, 256, (36, 1, 6, 6), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    train, test = (Samples.from_arrays(part, torch.arange(len(part)) % 6) for part in (pixels[:24], pixels[24:]))
    return class_incremental(Dataset("noise", train, test, list("abcdef")), increment=2)


def second(name, stream, **options):
    """A strategy of ours in its second experience, with weights that have moved, and its first batch."""
    make = networks(stream.image_shape, name="smallconv", mean=list(stream.mean), std=list(stream.std))
    learner = find(name)(make(seed=0, device="cpu"), Budget(), **options)
    learner.grow(stream.signatures[0])
    learner.before_experience(stream[1])
    learner.grow(stream.signatures[1])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in learner.net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    learner.net.eval()  # the same statistics in every pass
    return learner, next(iter(stream[1].train.batches(8, torch.device("cpu"))))


def gradients(value, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*net.parameters()], retain_graph=True)])


def test_lwf_pulls_as_avalanches(stream):
    """Its divergence is our cross-entropy less the teacher's entropy, which has no gradient."""
    from avalanche.training.regularization import LearningWithoutForgetting

    learner, batch = second("lwf", stream, strength=3.0, temperature=2.0)
    ours = learner.loss(batch)["distillation"]
    theirs = LearningWithoutForgetting(alpha=3.0, temperature=2.0)
    theirs.prev_model, theirs.prev_classes_by_task[0] = Logits(learner.teacher), {0, 1}
    found = theirs(batch.images, learner.net(batch.images).logits, learner.net)
    soft = F.softmax(learner.teacher(batch.images).logits / 2, 1)
    entropy = -(soft * soft.log()).sum(1).mean()
    assert found.item() > 0.001 and torch.allclose(found, ours - 3 * entropy, atol=1e-6)
    assert torch.allclose(gradients(found, learner.net), gradients(ours, learner.net), atol=1e-6)


def test_ewc_measures_and_penalises_as_avalanches(stream):
    """The same Fisher diagonal of one batch, then the same penalty with lambda / 2; new outputs are free."""
    from avalanche.training.plugins import EWCPlugin

    from cil.interop.avalanche.carried_weights import parameter_data
    from cil.interop.avalanche.library import ToInput, dataset_of

    learner, batch = second("ewc", stream, strength=6.0, cap=1e9, batch_size=8)
    model, plugin = Logits(learner.net), EWCPlugin(ewc_lambda=3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = dataset_of(stream[1].train, ToInput(), ToInput())
    measured = plugin.compute_importances(model, F.cross_entropy, optimizer, data, "cpu", batch_size=8)
    fisher = learner._fisher_of(stream[1])
    for name, values in fisher.items():
        assert torch.allclose(measured[f"net.{name}"].data, values, rtol=1e-4, atol=1e-8)
    learner.net.eval()
    old = {name: values[:2] if name.startswith("head.") else values for name, values in fisher.items()}
    learner.fisher = {name: torch.zeros_like(values) for name, values in fisher.items()}
    for name, values in old.items():
        learner.fisher[name][: len(values)] = values
    plugin.importances[0].update(parameter_data(old))
    plugin.saved_params[0].update(parameter_data(learner.anchor))
    host = SimpleNamespace(clock=SimpleNamespace(train_exp_counter=1), model=model, device="cpu", loss=torch.zeros(()))
    plugin.before_backward(host)
    ours = learner.loss(batch)["penalty"]
    assert ours.item() > 0 and torch.allclose(host.loss, ours, rtol=1e-5)


@pytest.mark.parametrize("name", ["LwF", "EWC"])
def test_penalties_act_behind_the_boundary(name, stream, tmp_path, monkeypatch):
    """Each experience has a fresh object of Avalanche: what it adds to the loss goes on from what was carried."""
    from avalanche.training.plugins import EWCPlugin, LwFPlugin

    plugin = {"LwF": LwFPlugin, "EWC": EWCPlugin}[name]
    add, added = plugin.before_backward, {0: [], 1: [], 2: []}

    def before_backward(self, strategy, **rest):
        before = strategy.loss.item()
        add(self, strategy, **rest)
        added[strategy.clock.train_exp_counter].append(strategy.loss.item() - before)
        if name == "LwF" and strategy.clock.train_exp_counter:
            assert all(part.training for part in self.lwf.prev_model.modules())  # as Avalanche leaves its copy

    monkeypatch.setattr(plugin, "before_backward", before_backward)
    make = partial(AvalancheStrategy, name=name, epochs=2, batch_size=4, lr=0.1)
    plan(make, stream, "smallconv", Budget(side_bytes=None), run_dir=tmp_path, progress=False).execute()
    assert added[0] and not any(added[0])
    assert min(added[1][1:]) > 0 and min(added[2][1:]) > 0
