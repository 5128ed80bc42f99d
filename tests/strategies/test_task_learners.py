"""Learners of task streams: where a task starts, what is kept and charged, and what they have in common."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from recount import recount

from cil import strategies
from cil.data import Batch, Samples
from cil.errors import ConfigError
from cil.memory import Budget, Flops
from cil.models import TaskNet, TaskNets, batch_statistics_features
from cil.strategies import find
from cil.strategies.parts.importance import quadratic_penalty
from cil.strategies.parts.knn_probe import agreement, neighbour_votes
from cil.strategies.parts.task_learner import TaskRecipe, task_batch, task_loss, weight_decay_groups
from cil.streams import TaskKey
from cil.testing import toy_run, toy_tasks
from cil.testing.toy import toy_factory

NAMES = [name for name in strategies.built_in() if find(name).takes_task]
ONE, TWO = TaskKey("a", 0, 2), TaskKey("b", 2, 3, True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(strategy, order="abca", **options)``: a run on toy tasks, executed once; run and record."""
    done = {}

    def run(name, order="abca", **options):
        key = repr((name, order, sorted(options.items())))
        if key not in done:
            folder = tmp_path_factory.mktemp("run")
            own = toy_run(name, toy_tasks(order=order), folder, keep="all", **options)
            done[key] = (own, own.execute())
        return done[key]

    return run


def state(run, index):
    return run.checkpoints.state(index).tensors


def learner(run, index):
    return run.work.learners.rebuilt(index + 1, run.checkpoints.state(index))


def same(a, b, prefix_a="net.", prefix_b="net."):
    """Names, without their prefixes, of tensors that are not the same bits."""
    one = {name.removeprefix(prefix_a): t for name, t in a.items() if name.startswith(prefix_a)}
    two = {name.removeprefix(prefix_b): t for name, t in b.items() if name.startswith(prefix_b)}
    assert one
    return [name for name in one.keys() | two.keys() if name not in one or name not in two or
            not torch.equal(one[name], two[name])]  # fmt: skip


# where a task starts ------------------------------------------------------------------------------------------------


def test_independent_ignores_what_came_before(made):
    """Two orders of earlier tasks; the third, at the same place, is learned to the same bits.

    At another place it has other draws: keys are of the place in the stream, not of the task, so errors of a whole
    permutation are equal in distribution alone.
    """
    one, first = made("independent", "abc")
    two, second = made("independent", "bac")
    name = one.work.stream.signatures[2].task.name
    assert name == two.work.stream.signatures[2].task.name
    assert same(state(one, 2), state(two, 2), f"net.nets.{name}.", f"net.nets.{name}.") == []
    for results in (first.results, second.results):
        assert results["events"][2]["splits"]["dev_test"] == first.results["events"][2]["splits"]["dev_test"]
    before, after = (made("previous", order)[0] for order in ("abc", "bac"))
    assert same(state(before, 2), state(after, 2), "net.backbone.", "net.backbone.")


@pytest.mark.parametrize("name", ["previous", "dynamic", "task_replay", "ewc_online", "pretrained_static"])
def test_on_one_task_all_are_independent(made, name):
    expected, found = (made(each, "a")[1].results for each in ("independent", name))
    assert found["events"][0]["search"] == expected["events"][0]["search"]
    assert found["errors"] == expected["errors"]


def test_previous_begins_where_the_last_task_ended(made):
    run, _ = made("previous", "ac", hyperparameters={"search": {"trials": 1, "steps": 1, "lr": [1e-12, 1e-12]}})
    tiny = {name: t for name, t in state(run, 0).items() if "backbone" in name and "running" not in name}
    assert all(torch.allclose(t, state(run, 1)[name], atol=1e-7) for name, t in tiny.items())


def test_with_one_stored_model_dynamic_is_previous(made):
    one, first = made("previous", "ac")
    two, second = made("dynamic", "ac")
    name = one.work.stream.signatures[1].task.name
    kept = {key: t for key, t in state(one, 1).items() if not key.startswith("net.heads.0.")}  # the old task's head
    assert same(kept, state(two, 1), "net.", f"net.nets.{name}.") == []
    assert second.results["events"][1]["findings"]["source"] == "a"
    assert first.results["errors"] == second.results["errors"]


def test_dynamic_starts_from_the_model_that_the_probe_likes_best(made):
    _, record = made("dynamic")
    for event in record.results["events"][1:]:
        scores = dict(event["findings"]["probe"])
        assert scores[event["findings"]["source"]] == max(scores.values())
    assert record.results["events"][0]["findings"] == {"source": None, "probe": {}}  # nothing to choose from
    assert record.results["flops"]["probe"][0] == 0
    assert [len(event["findings"]["probe"]) for event in record.results["events"]] == [0, 1, 2, 3]  # no random network


def test_the_bill_of_a_probe_is_features_and_distances_of_every_network(made):
    """Forward on all images of train and dev, and 2 Q N D for the distances; so the whole bill is the sum of parts."""
    run, record = made("dynamic")
    flops = record.results["flops"]
    net, before = learner(run, 0).net.of("0"), 0
    for index, networks in enumerate((0, 1, 2, 3)):  # those stored
        experience, forward = run.work.stream[index], Flops()
        with torch.no_grad(), forward.counting():
            net.features(experience.train[:1].images)
        train, dev = len(experience.train), len(experience.validation)
        each = (train + dev) * forward.count + 2 * dev * train * net.backbone.feature_dim
        assert flops["probe"][index] - before == networks * each
        before = flops["probe"][index]
    assert flops["total"] == sum(values[-1] for name, values in flops.items() if name != "total")
    assert {"search", "validation", "probe", "evaluation"} < flops.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_is_every_operation_of_the_training(tmp_path, name):
    found = recount(toy_run(name, toy_tasks(order="aca"), tmp_path))
    mixed = name == "cumulative"  # at random: of its batches some are counted, and stand for the others
    assert found.told == (pytest.approx(found.counted, rel=1e-5) if mixed else found.counted)


def test_a_repeat_inherits_its_head_and_changes_no_other(made):
    run, _ = made("previous")
    later = {name: t for name, t in state(run, 3).items() if name.startswith("net.heads.")}
    earlier = state(run, 2)
    changed = [name for name, t in later.items() if not torch.equal(t, earlier[name])]
    assert changed == ["net.heads.0.weight", "net.heads.0.bias"]


def test_static_learners_start_from_what_the_first_task_learned(made):
    run, _ = made("pretrained_static")
    for index in range(4):
        assert same(state(run, index), state(run, 0), "start.", "start.") == []
    assert same(state(run, 3), state(run, 0), "start.backbone.", "net.nets.0.backbone.") == []


def test_the_linear_probe_freezes_the_backbone_after_the_first_task(made):
    run, _ = made("task_linear_probe")
    assert same(state(run, 3), state(run, 0), "net.backbone.", "net.backbone.") == []
    assert not torch.equal(state(run, 3)["net.heads.0.weight"], state(run, 0)["net.heads.0.weight"])


# what is kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_before_training_is_the_ledger_after_it(made, name):
    _, record = made(name)
    for bill, ledger, count in zip(
        record.results["bills"], record.results["ledger"], record.results["exemplars"], strict=True
    ):
        assert bill["by_kind"] == {k: v for k, v in ledger["totals"]["exact"].items() if k != "total"}
        assert bill["exemplars"] == count
        for convention in ("exact", "survey"):
            assert bill["total"][convention] == ledger["totals"][convention]["total"]


def test_stored_models_are_charged(made):
    """Three data sets: independent and dynamic keep three networks, previous one."""
    kinds = {
        name: made(name)[1].results["ledger"][3]["totals"]["exact"] for name in ("independent", "dynamic", "previous")
    }
    assert kinds["independent"] == kinds["dynamic"]
    assert kinds["independent"]["buffers"] == 3 * kinds["previous"]["buffers"]
    heads = 4 * (32 + 1) * 8  # of eight outputs
    backbone = kinds["previous"]["parameters"] - heads
    assert kinds["independent"]["parameters"] == 3 * backbone + heads


def test_peak_parameters_are_those_of_all_networks_in_training(made):
    events = made("independent")[1].results["events"]
    counts = [event["peak_parameters"] for event in events]
    head = [33 * classes for classes in (2, 5, 8, 8)]
    backbone = counts[0] - head[0]
    assert counts == [backbone * nets + more for nets, more in zip((1, 2, 3, 3), head, strict=True)]


def test_a_pool_keeps_the_backbones_that_are_started_from(made):
    options = {"search": {"trials": 0, "steps": 2, "batch_size": 8}, "models": 2}
    run, record = made("dynamic_budgeted", "abca", hyperparameters=options)
    assert [len(learner(run, index).net.backbones) for index in range(4)] == [1, 2, 2, 2]
    findings = [event["findings"] for event in record.results["events"]]
    assert findings[1]["source"] == "a" and findings[1]["dropped"] is None
    assert findings[2]["dropped"] in ("a", "b") and len(findings[2]["probe"]) == 2
    net = learner(run, 2).net
    assert sorted(net.owners.tolist()) != [0, 2] and 5 in net.owners.tolist()
    gone = next(task for task in ("0", "2") if net.place(task) is None)
    assert not bool(net(torch.rand(3, 3, 12, 12), gone).logits.any())


def test_the_least_often_chosen_gives_way():
    from cil.models import TaskPool

    net = TaskPool()
    net.owners, net.chosen = torch.tensor([5, 0, 2]), torch.tensor([1, 1, 3])
    pool = find("dynamic_budgeted")(toy_factory(toy_tasks(), seed=0), Budget(), models=3)
    pool.net = net
    assert pool._place_to_free() == 1  # once as the first, and older


def test_cumulative_keeps_all_images_and_targets(made):
    run, record = made("cumulative")
    assert record.results["exemplars"] == [24, 60, 96, 96]
    past, stream = learner(run, 3), run.work.stream
    for index in range(1, 3):
        held, train = past.past(stream.signatures[index].task).samples(), stream[index].train
        kept = held.slots if train.targets is None else held.extras["targets"].float()
        true = train.slots if train.targets is None else train.targets
        assert labelled(held, kept) == labelled(train, true)


def test_a_batch_of_cumulative_is_of_all_tasks_and_each_image_weighs_the_same(made):
    run, _ = made("cumulative")
    held = learner(run, 2)
    train = run.work.stream[2].train
    batch = Batch(train.images[:16], train.slots[:16], None if train.targets is None else train.targets[:16])
    weights = dict.fromkeys(held.tasks, 1.0)
    parts = held.mixture(batch, weights)
    assert sum(len(part) for _, part in parts) == 16 and len(parts) > 1
    held.net.eval()  # statistics are fixed, so that parts do not touch each other
    settings = {"smoothing": 0.1}
    losses = held.losses_of(parts, settings)
    alone = [held.loss_of(task, part, settings) for task, part in parts]
    torch.testing.assert_close(torch.stack(losses), torch.stack(alone))
    held.prepare(run.work.stream[2])
    whole = held.loss_with(settings, batch)
    by_hand = sum(len(part) * loss for (_, part), loss in zip(parts, alone, strict=True)) / 16
    torch.testing.assert_close(whole, by_hand)  # the draw of a step is the same when asked again


def test_images_of_a_small_task_come_again_in_a_large_batch(made):
    held = learner(made("cumulative")[0], 2)
    small, new = held.tasks[0], held.task
    held.past(small).shrink(2)  # two a class
    batch = Batch(torch.rand(64, 3, 12, 12), torch.full((64,), new.first))
    parts = dict(held.mixture(batch, {small: 1.0, new: 1.0}))
    assert len(parts[small]) + len(parts[new]) == 64
    assert len(parts[small]) > 20 and len(parts[small].images.unique(dim=0)) == 4


def test_batch_norm_of_a_mixed_batch_has_the_statistics_of_the_mixture(made):
    held = learner(made("cumulative")[0], 2)
    norm = next(layer for layer in held.net.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda layer, inputs, output: seen.append(len(inputs[0])))
    one = Batch(torch.rand(3, 3, 12, 12), torch.full((3,), held.tasks[0].first))
    two = Batch(torch.rand(5, 3, 12, 12), torch.full((5,), held.tasks[2].first))
    held.losses_of([(held.tasks[0], one), (held.tasks[2], two)], {"smoothing": 0.0})
    assert seen == [8]


def test_cumulative_may_have_steps_in_proportion_to_the_tasks(made):
    options = {"search": {"trials": 1, "steps": 3, "batch_size": 8}, "growing": True}
    _, record = made("cumulative", hyperparameters=options)
    assert [event["updates"] for event in record.results["events"]] == [3, 6, 9, 9]  # the fourth is a repeat


def test_replay_keeps_so_many_of_each_task(made):
    options = {"search": {"trials": 1, "steps": 2, "batch_size": 8}, "examples": 7}
    run, record = made("task_replay", hyperparameters=options, budget=Budget(exemplars=15))
    sizes = [[len(memory) for memory in learner(run, index).memories().values()] for index in range(4)]
    assert sizes == [[6], [6, 7], [4, 5, 3], [4, 5, 3]]  # floor(7 / 2) a class; of three labels 7; then 5 each: 4, 5, 3
    assert record.results["exemplars"] == [sum(held) for held in sizes]


def test_replay_adds_the_loss_of_an_earlier_task_and_has_none_at_first(made):
    _, record = made("task_replay")
    first = [line for line in record.lines() if line["kind"] == "step" and line["experience"] == 0]
    later = [line for line in record.lines() if line["kind"] == "step" and line["experience"] > 0]
    assert all(line["values"].keys() >= {"new"} and "old" not in line["values"] for line in first)
    assert all(
        math.isclose(line["values"]["loss"], line["values"]["new"] + line["values"]["old"], rel_tol=1e-5)
        for line in later
    )


def test_old_images_are_mirrored_where_their_task_allows_it_whatever_the_new_one_does(made):
    run, _ = made("cumulative")
    held = learner(run, 2)
    for index, mirrored in ((0, True), (1, False)):
        task = run.work.stream.signatures[index].task
        batch, known = held.past_batch(task, 24), run.work.stream[index].train.images
        as_it_was = torch.stack([(known == image).flatten(1).all(1).any() for image in batch.images])
        turned = torch.stack([(known == image.flip(2)).flatten(1).all(1).any() for image in batch.images])
        assert bool((as_it_was | turned).all()) and task.mirrored == mirrored
        assert (0 < int(turned.sum()) < 24) if mirrored else bool(as_it_was.all())


# EWC ----------------------------------------------------------------------------------------------------------------


def test_without_strength_ewc_is_previous(made):
    options = {"search": {"trials": 2, "steps": 3, "batch_size": 8}, "strength": 0.0}
    one, _ = made("ewc_online", hyperparameters=options)
    two, _ = made("previous")
    assert same(state(one, 3), state(two, 3)) == []


def test_the_fisher_is_the_mean_squared_gradient_sample_by_sample_and_decays(made):
    options = {"search": {"trials": 1, "steps": 2, "batch_size": 8}, "examples": 5, "decay": 0.5, "cap": 1e9}
    run, _ = made("ewc_online", "aa", hyperparameters=options)
    held = learner(run, 1)
    rows = torch.randperm(24, generator=run_generator(run, 1, "fisher"))[:5]
    train = run.work.stream[1].train[rows]
    held.net.eval()
    weights = dict(held.net.backbone.named_parameters())
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for k in range(5):
        loss = F.cross_entropy(held.net(train.images[k : k + 1], "0").logits, train.slots[k : k + 1])
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            expected[name] += gradient.square() / 5
    before = {name.removeprefix("fisher."): t for name, t in state(run, 0).items() if name.startswith("fisher.")}
    for name, value in held.fisher.items():
        assert torch.allclose(value, 0.5 * before[name] + expected[name], rtol=1e-4, atol=1e-9)


def labelled(samples, labels):
    """Pairs of image and label, in no order."""
    return {(image.numpy().tobytes(), str(own)) for image, own in zip(samples.pixels, labels.tolist(), strict=True)}


def run_generator(run, index, purpose):
    from cil.engine.keys import generator

    return generator(run.work.seed, "strategy", index, purpose)


def test_the_penalty_is_the_weighted_distance():
    one, two = {"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])}
    assert float(100 / 2 * quadratic_penalty(one, two, {"w": torch.tensor([0.01, 5.0])})) == pytest.approx(2.0)


# parts --------------------------------------------------------------------------------------------------------------


def test_labels_are_smoothed_as_the_source_says():
    logits = torch.tensor([[2.0, 0.0]])
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([0]))
    target = torch.tensor([[0.9 + 0.05, 0.05]])  # y (1 - a) + a / C with a = 0.1
    expected = -(target * logits.log_softmax(1)).sum()
    assert float(task_loss(logits, batch, ONE, 0.1)) == pytest.approx(float(expected))
    several = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([2]), torch.tensor([[1.0, 0.0, 0.0]]))
    target = torch.tensor([[0.95, 0.05, 0.05]])  # y (1 - a) + a / 2
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    expected = F.binary_cross_entropy(logits.sigmoid(), target)
    assert float(task_loss(logits, several, TWO, 0.1)) == pytest.approx(float(expected))


@pytest.mark.parametrize(("images", "size"), [(1, 16), (12_799, 16), (12_800, 32), (35_000, 64), (10**7, 512)])
def test_the_batch_grows_with_the_data(images, size):
    assert task_batch(images) == size == min(512, max(16, 2 ** math.floor(math.log2(max(1, 0.0025 * images)))))


def test_weight_decay_is_for_matrices_alone():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    matrices, rest = weight_decay_groups(list(net.parameters()))
    assert [p.ndim for p in matrices["params"]] == [4] and "weight_decay" not in matrices
    assert [p.ndim for p in rest["params"]] == [1, 1, 1] and rest["weight_decay"] == 0


def test_neighbours_vote_each_alike():
    train = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    votes = neighbour_votes(train, torch.tensor([0, 1, 1, 2]), torch.tensor([[0.1], [9.0]]), 3, 3)
    assert torch.allclose(votes, torch.tensor([[1 / 3, 2 / 3, 0], [0, 2 / 3, 1 / 3]]))
    assert agreement(votes, torch.tensor([1, 2])) == 50.0
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    assert torch.allclose(neighbour_votes(train, labels, torch.tensor([[0.1]]), 2, 2), torch.tensor([[0.5, 0.5]]))


def test_agreement_of_several_labels_is_mean_average_precision():
    from cil.metrics import mean_average_precision

    generator = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 4, (20, 3), generator=generator) / 4
    true = torch.randint(0, 2, (20, 3), generator=generator).float()
    true[:, 2] = 0  # left out
    assert agreement(votes, true) == pytest.approx(mean_average_precision(votes.numpy(), true.numpy()).mean)


def test_a_probe_uses_the_statistics_of_batches_and_moves_none():
    net = TaskNet(toy_factory(toy_tasks(), seed=0)("linear"))
    samples = toy_tasks()[0].train
    before = {name: t.clone() for name, t in net.state_dict().items()}
    order = torch.arange(len(samples)).flip(0)
    found = batch_statistics_features(net, samples, order, size=12)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in before.items())
    net.train()
    with torch.no_grad():
        expected = torch.cat([net.features(part.images) for part in (samples[order[:12]], samples[order[12:]])])
    assert torch.allclose(found, expected, atol=1e-6)


def test_heads_are_by_task_and_networks_too():
    nets = TaskNets()
    make = toy_factory(toy_tasks(), seed=0)
    for name, outputs in (("0", 2), ("2", 3)):
        net = TaskNet(make("linear"))
        net.open(name, outputs)
        nets.put(name, net)
    images = torch.rand(4, 3, 12, 12)
    assert nets(images, "0").logits.shape == (4, 2) and nets(images, "2").logits.shape == (4, 3)
    assert nets.survey_parameters == 2 * nets.of("0").survey_parameters


# refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trails": 2}, "strategy.search.trails of previous is not known; did you mean 'trials'"),
        ({"trials": -1}, "strategy.search.trials of previous is -1"),
        ({"steps": 0}, "strategy.search.steps of previous is 0"),
        ({"lr": [0, 0.1]}, r"strategy.search.lr of previous is \[0, 0.1\]"),
        ({"lr": [0.1]}, r"strategy.search.lr of previous is \[0.1\]"),
        ({"lr": 0.1}, r"strategy.search.lr of previous is 0.1; it must be a range"),
        ({"trials": 1.5}, "strategy.search.trials of previous is 1.5; it must be a whole number from 0"),
        ({"steps": None}, "strategy.search.steps of previous is None; it must be a whole number from 1"),
        ({"batch_size": 0}, "strategy.search.batch_size of previous is 0"),
        ({"refit": "yes"}, "strategy.search.refit of previous is 'yes'; allowed: false, true"),
        (None, "strategy.search of previous is None; give its keys"),
        ({"smoothing": [0.2, 0.1]}, r"strategy.search.smoothing of previous is \[0.2, 0.1\]"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        TaskRecipe.of(given, "previous")


def test_the_two_kinds_of_strategies_and_streams_are_not_mixed(tmp_path):
    from cil.testing import toy_stream

    with pytest.raises(
        ConfigError, match=r"strategy Finetune answers without being told the task.*stream.heads=offset"
    ):
        toy_run("finetune", toy_tasks(), tmp_path).execute()
    with pytest.raises(ConfigError, match=r"strategy Previous must be told the task"):
        toy_run("previous", toy_stream(), tmp_path).execute()
    assert not list(tmp_path.iterdir())


def test_images_of_both_kinds_of_tasks_are_kept_apart():
    samples = toy_tasks()[1].train
    assert isinstance(samples, Samples) and samples.targets is not None
