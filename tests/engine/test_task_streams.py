"""Runs on streams that tell the task: what is asked after each event, resuming after any, and what the record says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import Interrupt

from cil import metrics
from cil.engine.recipe import Recipe
from cil.engine.scoring import scored
from cil.errors import BudgetExceeded, ConfigError, ContractError
from cil.memory import Budget, Flops
from cil.models import NetFactory, build_backbone
from cil.testing import toy_run, toy_tasks
from cil.testing.compare import demand_same

RECIPE = Recipe(epochs=1, batch_size=8, log_every=1, snapshot_steps=1)


def asked(reevaluate="all_seen", splits=("dev_test", "test")):
    stream = toy_tasks(reevaluate=reevaluate)
    stream.splits = splits
    return stream


def run_of(folder, stream=None, **options):
    return toy_run("previous", stream or asked(), folder, keep="all", **{"recipe": RECIPE, **options})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("tasks"))
    return run, run.execute()


# what is asked ------------------------------------------------------------------------------------------------------


def test_after_each_event_its_task_is_asked_or_all_that_were_seen(done, tmp_path):
    matrix = np.array(done[1].results["accuracy_matrix"], dtype=float)
    assert (~np.isnan(matrix) == np.tri(4, dtype=bool)).all()
    assert (matrix[3, 0], matrix[3, 3]) == (matrix[3, 3],) * 2  # the same data set twice
    alone = run_of(tmp_path, asked("none")).execute().results
    own = np.array(alone["accuracy_matrix"], dtype=float)
    assert (~np.isnan(own) == np.eye(4, dtype=bool)).all()
    assert np.diag(own).tolist() == np.diag(matrix).tolist()
    assert alone["forgetting"] is None and done[1].results["forgetting"] is not None


def test_earlier_tasks_are_asked_again_after_every_third_event_and_the_last(done, tmp_path):
    results = run_of(tmp_path, asked("every_3")).execute().results
    matrix, whole = (np.array(found["accuracy_matrix"], dtype=float) for found in (results, done[1].results))
    wanted = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    assert (~np.isnan(matrix) == wanted).all() and matrix[wanted].tolist() == whole[wanted].tolist()
    assert results["errors_at_end"] == done[1].results["errors_at_end"]
    assert results["backward_transfer"] == done[1].results["backward_transfer"] and results["forgetting"] is None


def test_a_search_without_dev_images_is_refused_before_training(tmp_path):
    stream = asked()
    events = [replace(stream.events[2], counts={**stream.events[2].counts, "dev": 0})]
    stream.events = (*stream.events[:2], *events, stream.events[3])
    with pytest.raises(ConfigError, match=rf"no dev images judge them in {events[0].id}; .*strategy.search.trials=0"):
        run_of(tmp_path, stream).execute()
    assert not any(tmp_path.iterdir())


def test_scores_are_those_of_the_learner_that_was_carried(done):
    run, record = done
    for index, event in enumerate(record.results["events"]):
        learner = run.work.learners.rebuilt(index + 1, run.checkpoints.state(index))
        for split in run.work.stream.splits:
            samples, task = run.work.stream.test(index, split), run.work.stream.signatures[index].task
            scores = run.work.learners.scores(learner, samples.images, task)
            if task.multilabel:
                expected = metrics.mean_average_precision(scores.numpy(), samples.targets.numpy()).mean
                assert event["splits"][split]["metrics"]["mAP"] == pytest.approx(expected, abs=0.01)
            else:
                expected = 100 * float((scores.argmax(1) + task.first == samples.slots).float().mean())
                assert event["splits"][split]["metrics"]["accuracy"] == pytest.approx(expected)
            assert event["splits"][split]["error"] == pytest.approx(100 - expected, abs=0.01)
            assert event["splits"][split]["count"] == len(samples)


def test_predict_is_told_the_task_and_nothing_else_of_the_stream(done, tmp_path):
    from cil.strategies import find

    told = []

    class Noting(find("previous")):
        def predict(self, images, task):
            told.append(task)
            return super().predict(images, task)

    toy_run(Noting, asked(), tmp_path, recipe=RECIPE).execute()
    assert set(told) == {signature.task for signature in done[0].work.stream.signatures}


def test_a_run_keeps_a_few_small_training_images_of_each_task(done):
    run, record = done
    kept = record.arrays()
    assert sorted(kept) == [f"thumbnails.{index}" for index in range(4)]
    for index in range(4):
        images, train = kept[f"thumbnails.{index}"], run.work.stream[index].train
        assert images.dtype == np.uint8 and images.shape == (min(6, len(train)), *train.shape[1:], 3)
        pixels = train.pixels if train.shape[0] == 3 else train.pixels[:, :1].expand(-1, 3, -1, -1)
        known = {tuple(image.permute(1, 2, 0).flatten().tolist()) for image in pixels}
        assert all(tuple(image.flatten().tolist()) in known for image in images)


def test_images_that_are_kept_are_no_larger_than_thumbnails():
    from cil.data import Samples
    from cil.streams.show import thumbnails

    pixels = torch.arange(10).view(-1, 1, 1, 1).expand(10, 1, 64, 48).to(torch.uint8)
    small = thumbnails(Samples.from_arrays(pixels, torch.arange(10)), wanted=5)
    assert small.shape == (5, 32, 24, 3) and small.dtype == torch.uint8
    assert small[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9]  # spread evenly over the classes


# numbers ------------------------------------------------------------------------------------------------------------


def test_the_record_has_errors_their_means_and_the_area(done):
    results, events = done[1].results, done[1].results["events"]
    for split in ("dev_test", "test"):
        errors = [event["splits"][split]["error"] for event in events]
        assert results["errors"][split] == pytest.approx(errors)
        assert results["mean_error"][split] == pytest.approx(sum(errors) / 4)
        by = results["mean_error_by"][split]
        assert by["multilabel"] == pytest.approx(errors[1])
        assert by["multiclass"] == pytest.approx((errors[0] + errors[2] + errors[3]) / 3)
        assert by["development"] == pytest.approx(sum(errors[:3]) / 3) and by["final"] == pytest.approx(errors[3])
        running = [sum(errors[: n + 1]) / (n + 1) for n in range(4)]
        assert results["area_under_errors"][split] == pytest.approx(sum(running) / 4)
    assert results["last_accuracy"] == pytest.approx(100 - results["mean_error"]["dev_test"])
    assert results["average_incremental_accuracy"] == pytest.approx(100 - results["area_under_errors"]["dev_test"])
    matrix = np.array(results["accuracy_matrix"], dtype=float)
    assert results["errors_at_end"]["dev_test"] == pytest.approx((100 - matrix[3]).tolist())


def test_an_event_says_what_a_timeline_and_a_front_need(done):
    event = done[1].results["events"][1]
    assert event.keys() == {
        "index", "event", "task", "year", "domain", "kind", "final", "classes", "repeat", "splits", "flops",
        "flops_so_far", "updates", "peak_parameters", "carried_bytes", "search", "findings", "compute",
    }  # fmt: skip
    assert (event["event"], event["task"], event["year"], event["kind"]) == ("b-1", "b", 2001, "multilabel")
    assert [e["repeat"] for e in done[1].results["events"]] == [False, False, False, True]


def test_errors_stand_beside_those_of_a_guess(done):
    """Of several labels it is the mean share of positives."""
    run, record = done
    for index, event in enumerate(record.results["events"]):
        for split, said in event["splits"].items():
            task, targets = run.work.stream.signatures[index].task, run.work.stream.test(index, split).targets
            guess = 1 / task.classes if targets is None else float(targets[:, targets.any(0)].mean())
            assert said["chance_error"] == pytest.approx(100 * (1 - guess))


def test_operations_by_part_add_up(done):
    results = done[1].results
    flops, events = results["flops"], results["events"]
    for index, event in enumerate(events):
        assert event["flops"] == {
            name: values[index] - (values[index - 1] if index else 0)
            for name, values in flops.items()
            if name != "total"
        }
        assert event["flops"]["search"] == sum(trial["flops"] for trial in event["search"])
    assert events[-1]["flops_so_far"] == flops["total"] - flops["evaluation"][-1]
    assert flops["total"] == sum(values[-1] for name, values in flops.items() if name != "total")


def test_dashboards_show_errors_bytes_and_events(done):
    run, record = done
    tables = {table.name: table for table in run.work.panels(record)}
    assert list(tables) == ["ledger", "held_in_training", "spent", "error", "events"]
    assert tables["error"].columns == ["experience", *record.results["errors"]]
    assert [row[1] for row in tables["error"].rows] == list(record.results["errors"][tables["error"].columns[1]])
    assert [row[1] for row in tables["events"].rows] == [event["task"] for event in record.results["events"]]


def test_the_headline_split_is_the_first(tmp_path):
    one = run_of(tmp_path / "one", asked(splits=("test", "dev_test"))).execute().results
    assert one["last_accuracy"] == pytest.approx(100 - one["mean_error"]["test"])


# resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", range(4))
def test_resumed_after_any_event_it_ends_as_the_straight_run(done, events, tmp_path):
    straight, expected = done
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, loggers=[Interrupt(events, ("boundary",))]).execute()
    run = run_of(tmp_path)
    demand_same(f"straight and interrupted at boundary {events}", straight, expected, run, run.execute())


@pytest.mark.parametrize("name", ["dynamic", "task_replay"])
def test_resumed_in_the_middle_of_a_search_it_ends_as_the_straight_run(name, tmp_path):
    straight = toy_run(name, asked(), tmp_path / "straight", keep="all", recipe=RECIPE)
    expected = straight.execute()
    for line in (2, 8, 15, 21):
        folder = tmp_path / str(line)
        with pytest.raises(KeyboardInterrupt):
            toy_run(name, asked(), folder, keep="all", recipe=RECIPE, loggers=[Interrupt(line)]).execute()
        run = toy_run(name, asked(), folder, keep="all", recipe=RECIPE)
        demand_same(f"straight and interrupted at step {line}", straight, expected, run, run.execute())


# parts --------------------------------------------------------------------------------------------------------------


def answers(scores):
    """Scores by the first pixel of an image, which is its row."""
    return lambda images: scores[(images[:, 0, 0, 0] * 255).round().long()]


def rows(count, **more):
    from cil.data import Samples

    pixels = torch.arange(count).view(-1, 1, 1, 1).expand(count, 1, 2, 2).byte()
    slots = more.pop("slots", torch.zeros(count, dtype=torch.int64))
    return Samples.from_arrays(pixels, slots, **more)


def test_scores_by_hand():
    device, order = torch.device("cpu"), torch.Generator().manual_seed(0)
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 5.0]])
    found = scored(answers(scores), rows(4, slots=torch.tensor([7, 8, 8, 8])), 2, 7, order, device, 3)
    assert (found.value, found.error, found.count) == (75.0, 25.0, 4)
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.9, 0.0], [0.7, 0.2, 0.0], [0.6, 0.3, 0.0]])
    targets = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]])
    found = scored(answers(scores), rows(4, targets=targets), 3, 0, order, device, 3)
    assert found.value == pytest.approx(100 * (0.833333 + 1) / 2, abs=1e-3) and found.skipped == 1


@pytest.mark.parametrize(
    ("scores", "says"),
    [(torch.zeros(4, 3), r"shape \(3, 3\) for 3 images and 2 classes"), (torch.full((4, 2), math.nan), "not numbers")],
)
def test_bad_answers_are_refused(scores, says):
    with pytest.raises(ContractError, match=says):
        scored(answers(scores), rows(4), 2, 0, torch.Generator(), torch.device("cpu"), 3)


def test_training_memory_is_told_before_the_first_step(tmp_path):
    for name in ("previous", "dynamic", "task_replay", "cumulative"):
        run = toy_run(name, toy_tasks(), tmp_path / name, budget=Budget(exemplars=10, training_bytes=10**9))
        told = run.execute().results["training_bill"]
        assert 0 < told["total"] < 10**9


def test_a_pass_of_resnet_34_at_64_pixels_costs_what_arithmetic_says():
    """NEVIS'22's network: 3x3 stem, stride 1, no pool, stages of 3, 4, 6 and 3 blocks; two operations a multiply-add.

    The paper gives no number; the specification, section 7, derives about 4.64 billion multiply-adds an image.
    """
    macs = 64**2 * 3 * 64 * 9 + 512 * 10  # stem and head
    for blocks, width, side, before in ((3, 64, 64, 64), (4, 128, 32, 64), (6, 256, 16, 128), (3, 512, 8, 256)):
        shortcut = side**2 * before * width if before != width else 0
        macs += side**2 * 9 * width * (before + (2 * blocks - 1) * width) + shortcut
    net = NetFactory(lambda: build_backbone("resnet34", 3, (64, 64), stem="3x3"), meta=True)()
    net.grow(10)
    flops = Flops()
    with torch.no_grad(), flops.counting():
        net(torch.empty(1, 3, 64, 64, device="meta"))
    assert flops.count == 2 * macs and macs / 1e9 == pytest.approx(4.64, abs=0.01)


def test_operations_of_two_layers_by_hand():
    """Convolution 3 -> 4 of 3 x 3 on 8 x 8, then linear 4 -> 5; backward twice forward, less the gradient of images."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 5)
    )
    convolution, linear = 2 * 8 * 8 * 4 * 3 * 9, 2 * 4 * 5
    forward, whole = Flops(), Flops()
    images = torch.rand(2, 3, 8, 8)
    with forward.counting():
        net(images)
    with whole.counting():
        net(images).sum().backward()
    assert forward.count == 2 * (convolution + linear)
    assert whole.count == 2 * (2 * convolution + 3 * linear)


def test_a_step_that_needs_too_much_says_where_a_task_learner_sets_its_batch(tmp_path):
    run = toy_run("previous", toy_tasks(order="ab"), tmp_path, budget=Budget(training_bytes=400_000))
    with pytest.raises(BudgetExceeded, match=r"strategy\.search\.batch_size=7 is the largest that fits"):
        run.execute()
