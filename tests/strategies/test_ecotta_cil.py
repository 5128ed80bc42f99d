"""EcoTTA for classes that arrive: the objective by number, what learns, what never changes, and what it tends to."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frozen_runs import split
from small_runs import bare, batch, bits, differing, signatures
from torch import nn

from cil.api import plan
from cil.data import Batch, Samples
from cil.engine.keys import generator
from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.memory import Budget
from cil.memory.training_memory import measure_step
from cil.models import NetFactory, Output, build_backbone, count_parameters, extract, freeze, frozen_copy, save_weights
from cil.strategies.ecotta_cil import EcoTTACIL
from cil.streams import Experience
from cil.testing import toy_run, toy_stream

ONE_EPOCH = Recipe(epochs=1, batch_size=12)
UNTRAINED = {"train_first": False}
SMALL = {"train_first": False, "parts": 2}


def learner_of(*classes: int, **options: Any) -> EcoTTACIL:
    """A learner on a random network whose statistics are not those of a fresh one."""
    learner = bare("ecotta_cil", **{**SMALL, **options})
    learner.context.generator = partial(generator, 0)
    torch.manual_seed(3)
    for layer in learner.net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    for signature in signatures(classes or (2,)):
        learner.grow(signature)
    return learner


def experience(learner: Any, index: int = 0, count: int = 24) -> Experience:
    """Noise of the classes that arrived last."""
    signature = signatures([2] * (index + 1))[index]
    pixels = torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(index)).byte()
    slots = torch.tensor(signature.new_slots).repeat(count // 2)
    return Experience(signature, Samples.from_arrays(pixels, slots))


def ready(*classes: int, **options: Any) -> EcoTTACIL:
    """At identity, in the mode that it learns in."""
    learner = learner_of(*classes, **options)
    learner.grouped(learner.metas.latest).start_at_identity([batch(*range(12)).images], learner.gamma)
    learner._learning_mode()
    return learner


# the objective ------------------------------------------------------------------------------------------------------


class Scripted:
    """In place of the networks: features, and two groups whose maps lie a constant above the frozen ones."""

    def __init__(self, learner: Any, **apart: tuple[float, float]) -> None:
        self.features, self.apart, self.learner = {}, apart, learner

    def __call__(self, metas):
        which = "now" if metas is self.learner.metas.latest else "before"
        return SimpleNamespace(maps=partial(self.maps, which))

    def maps(self, which, images):
        above = [torch.full((len(images), 1, 2, 2), far) for far in self.apart[which]]
        return Output(torch.empty(0), self.features[which]), above, [torch.zeros_like(each) for each in above]


def scripted(**options: Any) -> tuple[Any, Batch]:
    """Two old classes and two new ones; one image of class 3."""
    learner = learner_of(2, 2, **options)
    learner.net.head.weight.data = torch.zeros(0, 2)
    learner.head.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]]))
    learner.head.bias = nn.Parameter(torch.zeros(4))
    script = Scripted(learner, now=(2.0, -1.0), before=(1.5, 0.0))
    script.features = {"now": torch.tensor([[1.0, 0.0]]), "before": torch.tensor([[0.0, 1.0]])}
    learner.grouped = script
    return learner, Batch(torch.zeros(1, 3, 12, 12), torch.tensor([3]))


def with_past(learner: Any) -> None:
    learner.previous_meta = frozen_copy(learner.metas.latest)
    if learner.distillation:
        learner.previous_head = frozen_copy(learner.head)
        learner.previous_head.weight = nn.Parameter(learner.head.weight.detach()[:2])
        learner.previous_head.bias = nn.Parameter(torch.zeros(2))


def test_each_term_has_the_value_that_is_found_by_hand():
    learner, shown = scripted(anchor=0.5, previous=3.0, distillation=1.0, temperature=2.0)
    with_past(learner)
    terms = learner.loss(shown)
    assert terms["classes"].item() == pytest.approx(math.log(1 + math.exp(1 - 2)))  # logits 1, 2 of the new classes
    assert terms["anchor"].item() == pytest.approx(0.5 * (2 + 1) / 2)
    assert terms["previous"].item() == pytest.approx(3 * (0.5 + 1) / 2)
    p = torch.softmax(torch.tensor([0.0, 0.5]), 0)  # old logits 0, 1 over T
    q = torch.softmax(torch.tensor([0.5, 0.0]), 0)  # logits 1, 0 of the old classes over T
    assert terms["distillation"].item() == pytest.approx(4 * float((p * (p / q).log()).sum()))
    assert set(terms) == {"classes", "anchor", "previous", "distillation"}


def test_with_exemplars_the_softmax_is_over_all_classes_and_theirs_is_a_term_of_its_own():
    learner, shown = scripted(rehearsal=True, anchor=0.0, previous=0.0, distillation=0.0, replay=0.7)
    learner.grouped.features["now"] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    memory = Batch(torch.zeros(1, 3, 12, 12), torch.tensor([1]))
    terms = learner.loss(Batch(shown.images, shown.slots, streams={"new": shown, "memory": memory}))
    every = torch.tensor([1.0, 0.0, 1.0, 2.0])
    assert terms["classes"].item() == pytest.approx(float(every.logsumexp(0) - 2))
    theirs = torch.tensor([0.0, 2.0, 2.0, 0.0])
    assert terms["replay"].item() == pytest.approx(0.7 * float(theirs.logsumexp(0) - 2))
    assert set(terms) == {"classes", "replay"}


@pytest.mark.parametrize("off", ["anchor", "previous", "distillation"])
def test_a_term_of_weight_0_is_not_there_and_changes_no_other(off):
    whole, without = {"anchor": 0.5, "previous": 1.0, "distillation": 1.0}, {}
    for options in (whole, {**whole, off: 0.0}):
        learner, shown = scripted(**options)
        with_past(learner)
        without[len(without)] = {name: term.item() for name, term in learner.loss(shown).items()}
    assert off in without[0] and without[1] == {k: v for k, v in without[0].items() if k != off}


def test_what_auto_means():
    bare_, full = learner_of(2), learner_of(2, rehearsal=True)
    assert (bare_.scope, bare_.answer, bare_.distillation, bare_.old_rows_learn) == ("new", "ncm", 0, False)
    assert (full.scope, full.answer, full.distillation, full.old_rows_learn) == ("all", "linear", 1, True)
    assert learner_of(2, rehearsal=True, distillation=0.0, head="ncm", scope="new").answer == "ncm"


def test_at_the_start_of_an_experience_nothing_is_apart_from_the_past():
    learner = ready(2)
    with torch.no_grad():
        for parameter in learner.metas.latest.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    learner.distillation = 1.0
    learner.before_experience(experience(learner, 1))
    learner.grow(signatures([2, 2])[1])
    learner._learning_mode()
    terms = learner.loss(batch(2, 3, 3))
    assert terms["previous"].item() == 0 and abs(terms["distillation"].item()) < 1e-6 < terms["anchor"].item()
    with torch.no_grad():
        learner.metas.latest[0].norm.bias.add_(0.25)
    moved = learner.loss(batch(2, 3, 3))
    assert 0.1 < moved["previous"].item() < 1 and moved["distillation"].item() > 1e-6
    assert not any(
        p.requires_grad for module in (learner.previous_meta, learner.previous_head) for p in module.parameters()
    )


# identity, and the limit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["freeze_after_base", "groupnorm"])
def test_at_identity_the_network_is_the_backbone_but_for_the_convolutions(norm):
    images = batch(*range(12)).images
    apart = {}
    for gamma in (0.0, 0.01):
        learner = ready(2, gamma=gamma, norm=norm)
        learner.metas.eval()
        frozen = learner.net(images).features
        ours = learner.features(images, learner.metas.latest)
        apart[gamma] = ((ours - frozen).abs().max() / frozen.abs().max()).item()
    assert apart[0.0] < 1e-4 < apart[0.01] < 0.5


def test_statistics_of_identity_are_those_of_the_first_experience():
    learner = learner_of(2)
    own = experience(learner)
    next(learner.phases(own))
    seen = []
    learner.cuts[0].leave.register_forward_hook(lambda _, args, out: seen.append(out))
    learner.net(own.train.images)
    norm = learner.metas.latest[0].norm
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_where_the_meta_networks_stand_still_it_is_the_linear_probe(tmp_path):
    still = {"gamma": 0.0, "lr": 0.0, "weight_decay": 0.0, "head": "linear"}
    recipe = Recipe(epochs=2, batch_size=12)
    runs = {}
    for name, options in (("ecotta_cil", still), ("linear_probe", {}), ("free", {"head": "linear", "anchor": 0.0})):
        kind = "linear_probe" if name == "linear_probe" else "ecotta_cil"
        model = {"hyperparameters": {**UNTRAINED, **options}, "recipe": recipe}
        run = toy_run(on_resnet(kind), toy_stream(), tmp_path / name, **model)
        run.execute()
        learner = run.work.learners.rebuilt(3, run.checkpoints.state(2))
        runs[name] = run.work.learners.scores(learner, run.work.stream.test(0).images)
    torch.testing.assert_close(runs["ecotta_cil"], runs["linear_probe"], rtol=1e-3, atol=1e-3)
    assert (runs["free"] - runs["linear_probe"]).abs().max() > 0.02


def on_resnet(name: str) -> Any:
    """The strategy, on the backbone of this method's toy runs."""
    from cil.strategies import find

    kind = find(name)
    return type(kind.__name__, (kind,), {"toy_model": EcoTTACIL.toy_model})


def test_the_larger_the_anchor_the_nearer_the_linear_probe():
    apart = []
    for anchor in (0.0, 0.5, 5.0):
        learner = ready(2, anchor=anchor, head="linear", gamma=0.3)
        shown = batch(*[0, 1] * 6)
        parameters = list(learner.metas.latest.parameters()) + list(learner.head.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.05 / (1 + anchor), momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            torch.stack(list(learner.loss(shown).values())).sum().backward()
            optimizer.step()
        learner.metas.eval()
        frozen = learner.net(shown.images).features
        ours = learner.features(shown.images, learner.metas.latest)
        apart.append(((ours - frozen).abs().mean() / frozen.abs().mean()).item())
    assert apart[0] > 3 * apart[1] > 9 * apart[2]


# what learns, and what does not --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_path", ["stop", "lean", "full"])
def test_only_meta_networks_and_rows_of_the_head_have_gradients(grad_path):
    learner = ready(2, 2, grad_path=grad_path)
    learner.before_experience(experience(learner, 2))
    theta = bits(learner.net)
    torch.stack(list(learner.loss(batch(2, 3, 2, 3)).values())).sum().backward()
    learner.adjust_gradients(batch(2))
    assert all(p.grad is None for p in learner.net.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in learner.metas.latest.parameters())
    assert learner.head.weight.grad[:2].eq(0).all() and learner.head.weight.grad[2:].ne(0).any(1).all()
    assert differing(theta, bits(learner.net)) == []
    assert {id(p) for p in learner.trainable()} == {
        id(p) for module in (learner.metas.latest, learner.head) for p in module.parameters()
    }


def test_full_and_lean_have_one_gradient_with_stored_statistics_and_stop_another():
    found = {}
    for grad_path in ("stop", "lean", "full"):
        learner = ready(2, grad_path=grad_path)
        loss = torch.stack(list(learner.loss(batch(0, 1, 0, 1)).values())).sum()
        found[grad_path] = loss.item(), torch.cat([g.flatten() for g in learner.gradient(loss)])
    assert found["stop"][0] == pytest.approx(found["full"][0], abs=1e-6)
    torch.testing.assert_close(found["lean"][1], found["full"][1], rtol=1e-3, atol=1e-5)
    assert (found["stop"][1] - found["full"][1]).norm() > 0.01 * found["full"][1].norm()


def test_a_step_keeps_most_with_full():
    kept = {}
    for grad_path in ("stop", "lean", "full"):
        learner = ready(2, grad_path=grad_path)
        kept[grad_path] = kept_by(learner, batch(*[0, 1] * 8))
    assert max(kept["stop"], kept["lean"]) < 0.8 * kept["full"]


def kept_by(learner: Any, shown: Batch) -> int:
    modules = {"net": learner.net, "metas": learner.metas, "head": learner.head}
    return measure_step(modules, lambda: torch.stack(list(learner.loss(shown).values())).sum()).storage_bytes


@pytest.mark.parametrize("first", [False, True])
def test_theta_and_its_buffers_never_change_once_they_are_frozen(learn, first):
    done = learn("ecotta_cil", hyperparameters={"train_first": first}, recipe=ONE_EPOCH)
    assert differing(done.net(0), done.net(1)) == differing(done.net(0), done.net(2)) == []
    start = {f"net.{key}": value for key, value in bits(done.run.work.learners.rebuilt(0, None).net).items()}
    assert bool(differing(done.net(0), start)) is first
    moved = differing(*({k: v for k, v in done.state(i).tensors.items() if k.startswith("metas")} for i in (0, 2)))
    assert len(moved) == len(list(done.learner(2).metas.latest.parameters()))  # all that is trained, and no statistics


@pytest.mark.parametrize("options", [{}, {"rehearsal": True}, {"rehearsal": True, "train_old_head": False}], ids=str)
def test_old_rows_stay_bit_for_bit_unless_they_are_trained(learn, options):
    done = learn("ecotta_cil", hyperparameters={**UNTRAINED, **options}, recipe=ONE_EPOCH)
    for part in ("weight", "bias"):
        rows = [done.state(index).tensors[f"head.{part}"] for index in range(3)]
        assert [len(each) for each in rows] == [2, 4, 6]
        held = torch.equal(rows[0], rows[2][:2]) and torch.equal(rows[1], rows[2][:4])
        assert held is not options.get("train_old_head", options.get("rehearsal", False))


def test_new_rows_are_small_and_drawn_anew_for_each_experience():
    learner = learner_of(40, 40)
    weight = learner.head.weight.detach()
    assert weight.std().item() == pytest.approx(0.01, rel=0.1) and learner.head.bias.eq(0).all()
    assert not torch.equal(weight[:40], weight[40:])


def test_rows_of_a_cosine_head_start_at_class_means():
    learner = learner_of(2, head="cosine")
    own = experience(learner)
    next(learner.phases(own))
    learner.metas.eval()
    features = learner.features(own.train.images, learner.metas.latest)
    for slot in (0, 1):
        expected = F.normalize(features[own.train.slots == slot].mean(0), dim=0)
        torch.testing.assert_close(learner.head.weight.detach()[slot], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["freeze_after_base", "track", "groupnorm"])
def test_which_statistics_go_on_after_the_first_experience(learn, norm):
    done = learn("ecotta_cil", hyperparameters={**UNTRAINED, "norm": norm}, recipe=ONE_EPOCH)
    held = [{k: v for k, v in done.state(i).tensors.items() if "running" in k and "metas" in k} for i in range(3)]
    names = {key.split(".")[-2] for key in held[0]}
    assert names == ({"norm"} if norm == "groupnorm" else {"norm", "conv_norm"})
    assert len(differing(held[0], held[1])) == (len(held[0]) if norm == "track" else 0)


def test_a_warm_up_is_a_phase_of_its_own_and_learns_statistics():
    learner = learner_of(2, init="warmup", warmup_epochs=3, warmup_lr=0.02)
    fresh = bits(learner.metas.latest)
    warmup, main = learner.phases(experience(learner))
    assert (warmup.name, warmup.epochs, warmup.parameters[0]["lr"], main.name) == ("warmup", 3, 0.02, "groups")
    assert differing(fresh, bits(learner.metas.latest)) == []
    warmup.train_mode()
    assert all(layer.training for layer in learner.metas.latest.modules() if isinstance(layer, nn.BatchNorm2d))
    shown = batch(0, 1, 1)
    expected = F.cross_entropy(learner.head(learner.features(shown.images, learner.metas.latest)), shown.slots)
    assert warmup.loss(shown).item() == pytest.approx(expected.item(), abs=1e-6)


def test_what_stays_is_the_average_over_the_steps():
    learner = ready(2, consolidation=0.75, **{"head": "linear"})
    learner.average = frozen_copy(learner.metas.latest)
    start, learned = bits(learner.metas.latest), {}
    with torch.no_grad():
        for parameter in learner.metas.latest.parameters():
            parameter.add_(1)
    learner.after_step(batch(0))
    learner.after_experience(experience(learner))
    for name, value in learner.metas.latest.named_parameters():
        learned[name] = (value - start[name]).mean().item()
    assert set(map(partial(round, ndigits=5), learned.values())) == {0.25} and learner.average is None


# answers ------------------------------------------------------------------------------------------------------------


def test_without_exemplars_sums_of_features_are_carried_and_answer(learn):
    done = learn("ecotta_cil", hyperparameters=UNTRAINED, recipe=ONE_EPOCH)
    learner, d = done.learner(2), done.learner(2).net.feature_dim
    assert done.ledger(2)["prototypes"] == 4 * 6 * d and "exemplars" not in done.ledger(2)
    for slot in done.stream.signatures[2].new_slots:  # of the network as the last experience left it
        own = extract(learner._net_and_head(), done.stream[2].train.of_class(slot)).sum(0)
        torch.testing.assert_close(learner.sums[slot], own, rtol=1e-4, atol=1e-4)
    images = done.stream.test(2).images
    scores = done.run.work.learners.scores(learner, images)
    with torch.no_grad():
        expected = F.normalize(learner.features(images, learner.metas.latest)) @ F.normalize(learner.sums).T
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_with_exemplars_means_are_theirs_and_neither_carried_nor_charged(learn):
    options = {**UNTRAINED, "rehearsal": True, "head": "ncm"}
    done = learn("ecotta_cil", hyperparameters=options, recipe=ONE_EPOCH, budget=Budget(exemplars=12))
    learner = done.learner(2)
    assert "prototypes" not in done.ledger(2) and done.record.results["exemplars"] == [12, 12, 12]
    held = learner.memory.samples()
    means = torch.stack([extract(learner._net_and_head(), held.of_class(slot)).mean(0) for slot in range(6)])
    torch.testing.assert_close(F.normalize(learner.means), F.normalize(means), rtol=1e-4, atol=1e-5)
    results = done.record.results  # means of features as they are: iCaRL's, of features of unit length, stand beside
    assert results["answer"] == "class_means" and set(results["answers"]) == {"class_means", "head", "nearest_mean"}
    images, slots = (torch.cat([getattr(done.stream.test(k), part) for k in range(3)]) for part in ("images", "slots"))
    unit = [F.normalize(extract(learner._net_and_head(), held.of_class(slot))).mean(0) for slot in range(6)]
    with torch.no_grad():
        near = F.normalize(learner.features(images, learner.metas.latest)) @ F.normalize(torch.stack(unit)).T
    right = 100 * (near.argmax(1) == slots).float().mean().item()
    assert results["answers"]["nearest_mean"]["last_accuracy"] == pytest.approx(right, abs=0.01)
    empty = learn("ecotta_cil", hyperparameters=options, recipe=ONE_EPOCH, budget=Budget(exemplars=0)).learner(2)
    assert empty.means is None
    images = done.stream.test(0).images
    assert torch.equal(empty.predict(images), empty.head(empty.features(images, empty.metas.latest)))


def test_bytes_carried_are_backbone_meta_networks_head_and_sums(learn):
    done = learn("ecotta_cil", hyperparameters=UNTRAINED, recipe=ONE_EPOCH)
    learner, ledger = done.learner(2), done.ledger(2)
    d, theta, phi = learner.net.feature_dim, count_parameters(learner.net.backbone), count_parameters(learner.metas)
    channels = sum(part.outputs[0] for part in learner.cuts)
    assert phi == sum(9 * part.inputs[0] * part.outputs[0] + 4 * part.outputs[0] for part in learner.cuts)
    assert ledger["parameters"] == 4 * (theta + phi + 6 * (d + 1))
    assert ledger["buffers"] == 4 * sum(b.numel() for b in learner.net.backbone.buffers()) + 4 * 4 * channels
    assert done.record.results["ledger"][2]["totals"]["survey"]["total"] == 4 * (theta + phi)


@pytest.mark.parametrize(
    ("name", "kernel", "extra"),
    [("resnet18", None, 1_588_992), ("resnet18", 1, 179_968), ("wrn_40_2", None, 107_008)],
)
def test_extra_parameters_by_hand(name, kernel, extra):
    options = {"stem": "3x3"} if name == "resnet18" else {}
    factory = NetFactory(partial(build_backbone, name, 3, 32, **options), meta=True)
    learner = EcoTTACIL(factory, Budget(exemplars=10), kernel=kernel)
    learner.grow(signatures([5])[0].__class__(0, (0, 1), (0, 1), {0: 5, 1: 5}, (3, 32, 32), 2))
    assert count_parameters(learner.metas) == extra


# one set of meta networks for each experience ------------------------------------------------------------------------


def test_meta_networks_of_earlier_tasks_are_fixed_and_new_ones_are_added(learn):
    done = learn("ecotta_cil", hyperparameters={**UNTRAINED, "sharing": "per_task"}, recipe=ONE_EPOCH)
    last = done.state(2).tensors
    for index in range(2):
        early = {k: v for k, v in done.state(index).tensors.items() if k.startswith("metas")}
        assert len({key.split(".")[1] for key in early}) == index + 1
        assert differing(early, {key: last[key] for key in early}) == []
    learner = done.learner(2)
    assert learner.tasks == [(0, 1), (2, 3), (4, 5)]
    assert not any(p.requires_grad for metas in list(learner.metas)[:-1] for p in metas.parameters())


class Routed:
    """Features by task, in place of the networks."""

    def __init__(self, learner: Any, *features: list[list[float]]) -> None:
        self.learner, self.features = learner, [torch.tensor(each) for each in features]

    def __call__(self, images, metas):
        return self.features[[id(each) for each in self.learner.metas].index(id(metas))]


def test_an_image_is_answered_by_the_surest_task():
    learner = learner_of(2, 2, sharing="per_task", head="linear")
    learner.head.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    learner.head.bias = nn.Parameter(torch.zeros(4))
    learner.features = Routed(learner, [[3.0, 0.0], [0.1, 0.0]], [[0.0, 1.0], [0.0, 1.0]])
    scores = learner.predict(torch.zeros(2, 3, 12, 12))
    p = [torch.sigmoid(torch.tensor(z)).item() for z in (3.0, 0.1, 1.0)]
    expected = [[1 + p[0], 2 - p[0], 1 - p[2], p[2]], [p[1], 1 - p[1], 2 - p[2], 1 + p[2]]]
    torch.testing.assert_close(scores, torch.tensor(expected))
    assert scores.argmax(1).tolist() == [0, 3]


def test_a_task_of_one_class_counts_as_wholly_unsure():
    learner = learner_of(1, 2, sharing="per_task", head="linear")
    learner.head.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    learner.head.bias = nn.Parameter(torch.zeros(3))
    learner.features = Routed(learner, [[9.0, 0.0]], [[0.2, 0.0]])
    assert learner.predict(torch.zeros(1, 3, 12, 12)).argmax(1).item() == 2


def test_or_by_the_nearest_mean_of_frozen_features(learn):
    options = {**UNTRAINED, "sharing": "per_task", "routing": "mean"}
    done = learn("ecotta_cil", hyperparameters=options, recipe=ONE_EPOCH)
    learner = done.learner(2)
    assert done.ledger(2)["prototypes"] == 2 * 4 * 6 * learner.net.feature_dim
    sums = torch.cat([
        torch.stack([extract(learner.net, done.stream[i].train.of_class(slot)).sum(0) for slot in (2 * i, 2 * i + 1)])
        for i in range(3)
    ])  # fmt: skip
    images = torch.cat([done.stream.test(index).images for index in range(3)])
    with torch.no_grad():
        near = F.normalize(learner.net(images).features) @ F.normalize(sums).T
    scores = done.run.work.learners.scores(learner, images)
    assert torch.equal(scores.argmax(1) // 2, near.argmax(1) // 2)
    assert (scores.max(1).values >= 1).all() and ((scores >= 1).sum(1) == 2).all()


# public weights, refusals --------------------------------------------------------------------------------------------


def test_public_weights_are_carried_as_a_reference_and_never_change(tmp_path: Path):
    torch.manual_seed(5)
    options = dict(EcoTTACIL.toy_model["options"])
    backbone = build_backbone("resnet14", 3, 12, **options)
    backbone.train()(torch.rand(32, 3, 12, 12) * 4 - 2)
    save_weights(freeze(backbone), tmp_path / "public.safetensors")
    model = {"name": "resnet14", "options": options, "weights": str(tmp_path / "public.safetensors")}
    make = partial(EcoTTACIL, parts=2)
    run = plan(make, split(3), {**model, "mean": [0.5] * 3, "std": [0.25] * 3}, run_dir=tmp_path / "run",
               recipe=ONE_EPOCH, threads=torch.get_num_threads())  # fmt: skip
    record = run.execute()
    state = run.checkpoints.state(1)
    assert len(state.references) == 1 and not [key for key in state.tensors if key.startswith("net.")]
    learner = run.work.learners.rebuilt(2, state)
    assert differing(bits(learner.net.backbone), bits(backbone)) == []
    assert record.results["ledger"][1]["public"] == state.references[0].bytes
    with torch.no_grad():
        next(learner.net.backbone.buffers()).add_(1)
    with pytest.raises(Exception, match="was modified"):
        learner.state()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"anchor": -1.0}, r"strategy.anchor of ecotta_cil is -1.0; it must be 0 or more"),
        ({"anchor": math.inf}, r"strategy.anchor of ecotta_cil is inf"),
        ({"kernel": 2}, r"strategy.kernel is 2; it must be odd"),
        ({"consolidation": 1.0}, r"strategy.consolidation of ecotta_cil is 1.0; it must be below 1"),
        ({"scope": "all"}, r"strategy.scope of ecotta_cil is 'all' without exemplars"),
        ({"sharing": "per_task", "rehearsal": True}, r"strategy.sharing of ecotta_cil is 'per_task'"),
        ({"grad_path": "half"}, r"strategy.grad_path of ecotta_cil is 'half'; allowed: full, lean, stop"),
        ({"parts": 99}, r"strategy.parts is 99; this network has 6 residual blocks"),
        ({"parts": "four"}, r"strategy.parts is 'four'"),
        ({"train_first": "yes"}, r"strategy.train_first is 'yes'"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        learner_of(2, **options)
