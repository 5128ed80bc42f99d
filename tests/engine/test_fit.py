"""The training loop: a phase is what a plain PyTorch loop would do, and stops, logs and costs what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from toys import (
    PLAIN,
    Hidden,
    Interrupt,
    Learner,
    Normed,
    TwoStages,
    factory,
    fit_of,
    grown,
    plain,
    small_run,
    small_stream,
    some_samples,
)

from cil.data import Batch
from cil.engine.keys import key
from cil.engine.recipe import Recipe, constant, cosine, multistep
from cil.errors import ConfigError, ContractError, TrainingError
from cil.strategies import Phase
from cil.testing import toy_run, toy_stream
from cil.testing.compare import demand_same
from cil.testing.toy import toy_factory


def _keyed(*parts) -> torch.Generator:
    return torch.Generator().manual_seed(key(0, "phase", 0, 0, "", *parts))


def _losses(fit, resume=None) -> list[tuple[str, dict, dict]]:
    lines = []
    fit.on_log = lambda kind, values, axes: lines.append((kind, values, axes))
    fit.run(resume)
    return lines


# what is computed ---------------------------------------------------------------------------------------------------


def test_a_phase_equals_a_loop_written_by_hand_bit_for_bit(tmp_path):
    stream, epochs, size = toy_stream(), 3, 7  # 24 images: batches of 7, 7, 7 and 3, flipped at random
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    run = toy_run("finetune", stream, tmp_path, recipe=Recipe(epochs, size, optimizer), keep="all")
    run.execute()

    train = stream[0].train
    net = toy_factory(stream, seed=0)()
    torch.manual_seed(key(0, "grow", 0))
    net.grow(2)
    net.train()
    sgd = optimizer(net.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs)
    for epoch in range(epochs):
        order = torch.randperm(24, generator=_keyed("order", epoch))
        for step, rows in enumerate(order.split(size)):
            images = stream.augment(train.pixels[rows], _keyed("augment", epoch, step))
            loss = F.cross_entropy(net(images).logits, train.slots[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        schedule.step()

    learned = run.checkpoints.state(0).tensors
    for name, tensor in net.state_dict().items():
        assert torch.equal(learned[f"net.{name}"], tensor), name


def test_a_draw_in_a_hook_shifts_nothing_elsewhere():
    class Draws(Learner):
        drawn = 0

        def loss(self, batch):
            return super().loss(replace(batch, images=F.dropout(batch.images, 0.5)))

        def after_step(self, batch):
            torch.rand(self.drawn)

    weights = []
    for drawn in (0, 5):
        learner = grown(Draws)
        learner.drawn = drawn
        fit_of(learner, Phase("main", some_samples(8), learner.loss), plain(batch_size=2)).run()
        weights.append(learner.net.head.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("count", [7, 8, 10, 12])  # 7 and 10: a last batch of one joins the one before
def test_two_batches_accumulated_are_one_of_twice_the_size(count):
    data, weights = some_samples(count), []
    for accumulate, size in ((2, 3), (1, 6)):
        learner = grown()
        fit_of(
            learner, Phase("main", data, learner.loss), plain(epochs=3, accumulate=accumulate, batch_size=size)
        ).run()
        weights.append(learner.net.head.weight.detach())
    assert torch.allclose(*weights, atol=1e-6)


def test_gradients_are_scaled_down_to_the_norm():
    learner = grown()
    before = torch.cat([p.detach().flatten() for p in learner.trainable()])
    far = partial(torch.optim.SGD, lr=1.0)
    phase = Phase("main", some_samples(4), lambda batch: 100 * learner.loss(batch))
    fit_of(learner, phase, plain(optimizer=far, clip_norm=0.25)).run()
    moved = torch.cat([p.detach().flatten() for p in learner.trainable()]) - before
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("max_steps", "accumulate", "losses", "steps"),
    [
        (None, 1, 10, 10),  # 2 epochs of 5 batches
        (3, 1, 3, 3),
        (7, 1, 7, 7),
        (99, 1, 10, 10),
        (None, 2, 10, 6),  # an epoch: 2 + 2 + 1 batches, so three steps
        (2, 2, 4, 2),
        (3, 2, 5, 3),
        (4, 2, 7, 4),
    ],
)
def test_max_steps_caps_the_steps_of_the_optimizer(max_steps, accumulate, losses, steps):
    taken = []

    class Counting(Learner):
        def after_step(self, batch):
            taken.append(len(batch))

    learner = grown(Counting)
    fit = fit_of(
        learner,
        Phase("main", some_samples(10), learner.loss),
        plain(epochs=2, batch_size=2, max_steps=max_steps, accumulate=accumulate),
    )
    fit.run()
    assert len(learner.log) == losses
    assert len(taken) == fit.cost.steps == steps


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({"epochs": 1}, [0.25, 0.375, 0.5, 0.375, 0.125]),  # two of warm-up, then 0.5 (1 + cos(pi e / 3)) / 2
        ({"epochs": 2, "max_steps": 5}, [0.25, 0.375, 0.5, 0.375, 0.125]),
        ({"epochs": 2, "accumulate": 3}, [0.25, 0.375, 0.5, 0.25]),  # 3 + 2 batches an epoch: two steps
    ],
)
def test_a_schedule_may_count_steps(given, rates):
    seen = []

    class Noting(Learner):
        def after_step(self, batch):
            seen.append(fit._optimizer.param_groups[0]["lr"])

    learner = grown(Noting)
    recipe = plain(batch_size=2, schedule_by="step", scheduler=partial(cosine, warmup=2, warmup_factor=0.5), **given)
    fit = fit_of(learner, Phase("main", some_samples(10), learner.loss), recipe)
    fit.run()
    assert seen == pytest.approx(rates)


def test_phases_with_a_schedule_of_their_own_count_epochs_and_those_of_so_many_steps_count_steps():
    by_step, samples = plain(schedule_by="step"), some_samples(4)
    make = partial(Phase, "main", samples, lambda batch: None)
    given = [{}, {"schedule": "cosine"}, {"milestones": [1]}, {"steps": 3}, {"steps": 3, "schedule": "cosine"}]
    assert [by_step.of(make(**own), 1).schedule_by for own in given] == ["step", "epoch", "epoch", "step", "step"]
    assert [plain().of(make(**own), 1).schedule_by for own in given] == ["epoch", "epoch", "epoch", "step", "step"]


def test_a_schedule_by_steps_goes_on_after_an_interruption(tmp_path):
    recipe = plain(scheduler=cosine, schedule_by="step", log_every=1, snapshot_steps=2)
    expected = small_run(Learner, tmp_path / "straight", recipe=recipe, keep="all")
    record = expected.execute()
    with pytest.raises(KeyboardInterrupt):
        small_run(Learner, tmp_path / "two", recipe=recipe, keep="all", loggers=[Interrupt(2)]).execute()
    run = small_run(Learner, tmp_path / "two", recipe=recipe, keep="all")
    demand_same("straight and interrupted", expected, record, run, run.execute())


def test_gradients_are_adjusted_and_steps_followed_once_for_each_step_of_the_optimizer():
    class Noting(Learner):
        def adjust_gradients(self, batch):
            self.log.append(("adjust", self.net.head.weight.grad is not None))
            self.old_weight = self.net.head.weight.detach().tolist()

        def after_step(self, batch):
            self.log.append(("after", self.net.head.weight.detach().tolist() != self.old_weight))

    learner = grown(Noting)
    fit_of(learner, Phase("main", some_samples(6), learner.loss), plain(batch_size=2, accumulate=2)).run()
    step = [("adjust", True), ("after", True)]
    assert learner.log == [("loss", 2), ("loss", 2), *step, ("loss", 2), *step]


def test_what_a_hook_does_to_gradients_is_what_the_optimizer_takes():
    class Still(Learner):
        def adjust_gradients(self, batch):
            for parameter in self.trainable():
                parameter.grad.zero_()

    learner = grown(Still)
    before = learner.net.head.weight.detach().clone()
    fit_of(learner, Phase("main", some_samples(8), learner.loss), plain()).run()
    assert torch.equal(learner.net.head.weight, before)


def test_a_phase_trains_the_parameters_it_names_and_no_others():
    learner = grown(backbone=Hidden)
    before = {name: tensor.clone() for name, tensor in learner.net.state_dict().items()}
    groups = [{"params": learner.net.head.parameters(), "lr": 0.1}]  # an iterator: it can be read once
    fit_of(learner, Phase("main", some_samples(8), learner.loss, parameters=groups), plain()).run()
    after = learner.net.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_what_a_phase_does_not_train_has_no_gradient_and_has_one_again_afterwards():
    class Looking(Learner):
        def adjust_gradients(self, batch):
            self.log.append(self.net.backbone.layer.weight.grad)

    learner = grown(Looking, backbone=Hidden)
    phase = Phase("head", some_samples(4), learner.loss, parameters=learner.net.head.parameters())
    fit = fit_of(learner, phase, plain())
    fit.run()
    assert learner.log == [("loss", 4), None]
    assert fit.cost.flops == 4 * (36 + 12)  # forward, and the gradient of the head
    assert learner.net.backbone.layer.weight.requires_grad


def test_progress_says_where_training_stands():
    class Looking(Learner):
        def loss(self, batch):
            progress = self.progress
            self.log.append((progress.epoch, progress.epochs, progress.step, progress.steps, progress.share))
            return super().loss(batch)

    learner = grown(Looking)
    fit_of(learner, Phase("main", some_samples(8), learner.loss), plain(epochs=2)).run()
    seen = [entry for entry in learner.log if len(entry) == 5]
    assert seen == [(0, 2, 0, 4, 0.0), (0, 2, 1, 4, 0.25), (1, 2, 2, 4, 0.5), (1, 2, 3, 4, 0.75)]
    assert learner.progress.share == 1.0


# schedules and recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant, [1, 1, 1, 1]),
        (partial(constant, warmup=2), [0.1, 0.55, 1, 1]),
        (partial(constant, warmup=1, warmup_factor=0.5), [0.5, 1, 1, 1]),
        (cosine, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        (partial(cosine, minimum=0.2), [1, 0.6 + 0.8 * math.sqrt(0.125), 0.6, 0.6 - 0.8 * math.sqrt(0.125)]),
        (partial(cosine, warmup=2), [0.1, 0.55, 1, 0.5]),
        (partial(multistep, milestones=[1, 3]), [1, 0.1, 0.1, 0.01]),
        (multistep, [1, 1, 0.1, 0.01]),  # at half and three quarters of the epochs
        (partial(multistep, milestones=[0.5], gamma=0.5), [1, 1, 0.5, 0.5]),
        (partial(multistep, milestones=[3], warmup=2), [0.1, 0.55, 1, 0.1]),
        (partial(multistep, milestones=[0.1]), [1, 0.1, 0.1, 0.1]),  # not before the first epoch
    ],
)
def test_the_learning_rate_of_each_epoch(schedule, expected):
    learner = grown()
    recipe = plain(epochs=4, scheduler=schedule, optimizer=partial(torch.optim.SGD, lr=1.0))
    lines = _losses(fit_of(learner, Phase("main", some_samples(4), learner.loss), recipe))
    assert [values["lr"] for kind, values, _ in lines if kind == "epoch"] == pytest.approx(expected)


def test_what_a_phase_says_goes_before_the_first_experience_which_goes_before_the_rest():
    recipe = Recipe(epochs=10, batch_size=8, first={"epochs": 3, "batch_size": None})
    data = some_samples(2)

    def lengths(index, **own):
        found = recipe.of(Phase("main", data, lambda batch: batch, **own), index)
        return found.epochs, found.batch_size

    assert lengths(0) == (3, 8)
    assert lengths(1) == (10, 8)
    assert lengths(0, epochs=2, batch_size=4) == lengths(1, epochs=2, batch_size=4) == (2, 4)
    assert lengths(0, main=False, epochs=7) == (7, 8)


def test_the_first_experience_may_have_its_own_rate_decay_and_schedule():
    recipe = Recipe(epochs=4, first={"lr": 1.0, "weight_decay": 0.0, "milestones": [1], "schedule": None})
    data = some_samples(2)

    def rates(index, **own):
        found = recipe.of(Phase("main", data, lambda batch: batch, **own), index)
        optimizer = found.optimizer([torch.nn.Parameter(torch.zeros(1))])
        schedule, seen = found.scheduler(optimizer, found.epochs), []
        for _ in range(3):
            seen.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return optimizer.param_groups[0]["weight_decay"], seen

    assert rates(0) == (0.0, pytest.approx([1, 0.1, 0.1]))
    assert rates(0, schedule="constant") == (0.0, [1, 1, 1])  # what a phase says of its schedule is all of it
    assert rates(0, main=False, epochs=4) == rates(1) == (5e-4, pytest.approx([0.1, 0.0853553, 0.05]))
    assert rates(1, fresh=True, lr=2.0) == (0.0, pytest.approx([2, 0.2, 0.2]))


def test_learning_rate_decay_and_milestones_of_a_phase_replace_those_of_the_recipe():
    recipe = Recipe(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.5, weight_decay=1e-3))
    phase = Phase("late", some_samples(2), lambda batch: batch, lr=0.02, weight_decay=0.0, milestones=[1])
    own = recipe.of(phase, 1)
    optimizer = own.optimizer([torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.5, 0.0)
    schedule = own.scheduler(optimizer, 2)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.002])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epochs": 0}, "trainer.epochs is 0; it must be a whole number of 1 or more"),
        ({"batch_size": 0}, "trainer.batch_size is 0"),
        ({"accumulate": 0}, "trainer.accumulate is 0"),
        ({"max_steps": 0}, "trainer.max_steps is 0; it must be a whole number of 1 or more, or null"),
        ({"first": {"rate": 1}}, "trainer.first has no key ['rate']; it has: epochs, batch_size, lr, weight_decay"),
        ({"first": {"schedule": "cosine", "milestones": [60]}}, "trainer.first.milestones is [60]; each is a whole"),
        ({"optimizer": partial(torch.optim.SGD, lr=math.nan)}, "optimizer.lr is nan; it must be finite"),
        ({"optimizer": partial(torch.optim.SGD, lr=-0.1)}, "optimizer.lr is -0.1; it must be a number of 0 or more"),
        ({"optimizer": partial(torch.optim.Adam, betas=(0.9, math.inf))}, "optimizer.betas is (0.9, inf)"),
        ({"scheduler": partial(cosine, minimum=math.inf)}, "scheduler.minimum is inf; it must be finite"),
        ({"first": {"lr": math.nan}}, "trainer.first.lr is nan; it must be finite"),
        ({"first": {"weight_decay": -1.0}}, "trainer.first.weight_decay is -1.0; it must be a number of 0 or more"),
        ({"first": {"schedule": "linear"}}, "trainer.first.schedule is 'linear'; did you mean 'cosine'?"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(given, says):
    with pytest.raises(ConfigError) as refused:
        Recipe(**given)
    assert says in str(refused.value)


def test_epochs_of_a_phase_may_be_a_share_of_the_recipes():
    found = [
        Recipe(epochs=epochs).of(Phase("late", some_samples(2), lambda batch: batch, main=False, epochs=share), 1)
        for epochs, share in ((170, 0.765), (10, 0.25), (3, 0.1), (10, 7))
    ]
    assert [recipe.epochs for recipe in found] == [130, 2, 1, 7]


def test_a_second_stage_must_say_its_epochs():
    with pytest.raises(ConfigError, match="phase 'late' is not a main one, so it must say its epochs"):
        Recipe().of(Phase("late", some_samples(2), lambda batch: batch, main=False), 0)


# what goes wrong ----------------------------------------------------------------------------------------------------


def _breaking(learner, at, value):
    """The learner's loss, times ``value`` in one batch of an epoch of five."""

    def loss(batch):
        here = divmod(len(learner.log), 5) == at
        return learner.loss(batch) * (value if here else 1.0)

    return loss


@pytest.mark.parametrize("log_every", [1, 4, 50])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [(0, 0), (0, 4), (1, 2)])
def test_a_loss_that_is_no_number_is_named_with_its_place(at, value, log_every):
    learner = grown()
    phase = Phase("main", some_samples(10), _breaking(learner, at, value))
    with pytest.raises(TrainingError) as stopped:
        fit_of(learner, phase, plain(epochs=2, batch_size=2, log_every=log_every), experience=3).run()
    assert str(stopped.value) == (
        f"the loss is {value} in experience 3, phase 'main', epoch {at[0]}, step {at[1]}; lower optimizer.lr or set "
        f"trainer.clip_norm"
    )


def test_the_place_is_right_where_max_steps_cut_the_epoch():
    learner = grown()
    phase = Phase("main", some_samples(10), _breaking(learner, (0, 1), math.nan))
    with pytest.raises(TrainingError, match="epoch 0, step 1;"):
        fit_of(learner, phase, plain(batch_size=2, max_steps=3)).run()


def test_the_place_is_right_after_an_interruption():
    kept = []
    for at in ((9, 9), (0, 2)):
        learner = grown()
        learner.log = ["loss"] * (2 if kept else 0)
        phase = Phase("main", some_samples(10), _breaking(learner, at, math.nan))
        fit = fit_of(learner, phase, plain(batch_size=2, snapshot_steps=2, max_steps=2 if not kept else None))
        fit.on_snapshot = lambda tensors, content: kept.append((tensors, content))
        if len(kept):
            with pytest.raises(TrainingError, match="epoch 0, step 2;"):
                fit.run(kept[0])
        else:
            fit.run()
    assert len(kept) == 1


def test_a_snapshot_is_not_made_of_a_loss_that_is_no_number():
    learner, kept = grown(), []
    phase = Phase("main", some_samples(10), _breaking(learner, (0, 0), math.nan))
    fit = fit_of(learner, phase, plain(batch_size=2, snapshot_steps=1))
    fit.on_snapshot = lambda tensors, content: kept.append(content)
    with pytest.raises(TrainingError, match="step 0;"):
        fit.run()
    assert not kept


def test_a_phase_with_nothing_to_train_is_refused():
    learner = grown()
    learner.net.requires_grad_(False)
    with pytest.raises(ConfigError, match="phase 'main' has nothing to train: no kept parameter requires a gradient"):
        fit_of(learner, Phase("main", some_samples(4), learner.loss), plain()).run()


def test_a_loss_for_each_image_is_refused():
    learner = grown()
    phase = Phase("main", some_samples(4), lambda batch: learner.net(batch.images).logits.sum(1))
    with pytest.raises(ContractError, match=r"the loss of phase 'main' has shape \(4,\); it must be one number"):
        fit_of(learner, phase, plain()).run()


def test_an_optimizer_that_cannot_be_made_is_refused():
    learner = grown()
    with pytest.raises(ConfigError, match=r"the optimizer cannot be made: .*'nesterow'"):
        fit_of(
            learner,
            Phase("main", some_samples(4), learner.loss),
            plain(optimizer=partial(torch.optim.SGD, lr=1.0, nesterow=True)),
        ).run()


def test_a_phase_without_data_takes_no_step():
    learner = grown()
    fit = fit_of(learner, Phase("main", some_samples(4)[:0], learner.loss), plain())
    fit.run()
    assert not learner.log
    assert fit.cost.flops == fit.cost.steps == 0


# several phases, several streams ------------------------------------------------------------------------------------


def test_a_phase_may_depend_on_the_one_before_and_is_resumed_at_every_step(tmp_path):
    recipe = plain(
        optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9), batch_size=8, log_every=1, snapshot_steps=2
    )
    two = partial(
        small_run, TwoStages, stream=small_stream(2), recipe=recipe, keep="all", make_factory=partial(factory, Normed)
    )
    straight = two(tmp_path / "straight")
    expected = straight.execute()
    steps = [line for line in expected.lines() if line["kind"] == "step"]
    assert [line["phase"] for line in steps] == 2 * (2 * ["main"] + 4 * ["head"])
    for stop in range(len(steps)):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            two(folder, loggers=[Interrupt(stop)]).execute()
        run = two(folder)
        record = run.execute()
        demand_same(f"straight and interrupted at step {stop}", straight, expected, run, record)
        assert [*record.lines()] == [*expected.lines()]


def test_the_second_phase_starts_where_the_first_ended_and_trains_the_head_alone(tmp_path):
    class FirstOnly(TwoStages):
        def phases(self, experience):
            yield next(super().phases(experience))

    one, two = (
        small_run(kind, tmp_path / kind.__name__, make_factory=partial(factory, Hidden), keep="all")
        for kind in (FirstOnly, TwoStages)
    )
    one.execute()
    two.execute()
    before, after = one.checkpoints.state(0).tensors, two.checkpoints.state(0).tensors
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"net.head.weight", "net.head.bias"}


def test_the_network_is_in_training_mode_within_phases_and_not_between_them(tmp_path):
    seen = []

    class Looks(TwoStages):
        def loss(self, batch):
            seen.append(self.net.training)
            return super().loss(batch)

        def phases(self, experience):
            first, second = super().phases(experience)
            seen.append(f"before: {self.net.training}")
            yield first
            seen.append(f"between: {self.net.training}")
            yield second

    make = partial(factory, Normed)
    small_run(Looks, tmp_path, small_stream(1), make_factory=make, recipe=plain(batch_size=16)).execute()
    assert seen == ["before: False", True, "between: False", True, True]


def _streams(learner, counts, epochs=1, size=2):
    """Rows that a phase with the streams ``new`` and ``memory`` draws, one pair a batch."""
    seen = []

    def loss(batch):
        memory = batch.memory.rows.tolist() if "memory" in batch.streams else None
        seen.append((batch.new.rows.tolist(), memory))
        assert torch.equal(batch.new.images, batch.images)
        assert len(batch.new) == len(batch)
        return learner.loss(batch)

    data = {name: some_samples(count, seed=k) for k, (name, count) in enumerate(counts.items())}
    fit = fit_of(learner, Phase("main", data, loss), plain(epochs=epochs, batch_size=size))
    fit.run()
    return seen, fit


def test_the_first_stream_sets_the_steps_and_the_second_goes_round_and_round():
    seen, fit = _streams(grown(), {"new": 8, "memory": 3}, epochs=2)
    assert len(seen) == 8
    for epoch in (seen[:4], seen[4:]):
        assert sorted(row for new, _ in epoch for row in new) == list(range(8))
    memory = [row for _, rows in seen for row in rows]  # 16 draws: five permutations of three, and one more
    rounds = [memory[start : start + 3] for start in range(0, 15, 3)]
    assert [sorted(round_) for round_ in rounds] == [[0, 1, 2]] * 5
    assert len({tuple(round_) for round_ in rounds}) > 1
    assert fit.cost.flops == 32 * 8 * 2  # the loss looks at the first stream alone


def test_a_second_stream_smaller_than_a_batch_gives_all_it_has():
    seen, _ = _streams(grown(), {"new": 8, "memory": 1}, size=4)
    assert [memory for _, memory in seen] == [[0], [0]]


def test_a_second_stream_that_is_empty_is_not_there():
    seen, fit = _streams(grown(), {"new": 4, "memory": 0})
    assert [memory for _, memory in seen] == [None, None]
    assert fit.cost.flops == 32 * 4


def test_asking_a_batch_for_a_stream_it_lacks_names_those_it_has():
    learner = grown()
    phase = Phase("main", {"new": some_samples(4)}, lambda batch: learner.loss(batch.old))
    with pytest.raises(AttributeError, match="a batch has no stream 'old'; it has: new"):
        fit_of(learner, phase, plain()).run()


# the log ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 2, 50])
def test_an_epoch_has_one_line_with_the_mean_of_its_losses(log_every):
    learner, losses = grown(), []

    def loss(batch):
        loss = learner.loss(batch)
        losses.append(loss.item())
        return loss

    lines = _losses(fit_of(learner, Phase("main", some_samples(8), loss), plain(batch_size=2, log_every=log_every)))
    (epoch,) = [values for kind, values, _ in lines if kind == "epoch"]
    assert epoch["loss"] == pytest.approx(sum(losses) / 4)
    steps = [values["loss"] for kind, values, _ in lines if kind == "step"]
    groups = [losses[start : start + log_every] for start in range(0, 4, log_every) if start + log_every <= 4]
    assert steps == pytest.approx([sum(group) / len(group) for group in groups])


def test_a_term_is_averaged_over_the_steps_that_have_it():
    learner = grown()

    def loss(batch):
        terms = {"classes": learner.loss(batch)}
        return terms | ({"extra": terms["classes"] * 0 + 6.0} if len(learner.log) == 2 else {})

    (line,) = _losses(fit_of(learner, Phase("main", some_samples(8), loss), plain(batch_size=2)))
    values = line[1]
    assert values["extra"] == 6.0
    assert values["loss"] == pytest.approx(values["classes"] + 6.0 / 4)


def test_the_steps_of_a_run_are_those_of_the_optimizer_and_never_go_back(tmp_path):
    recipe = plain(epochs=2, batch_size=3, accumulate=2, log_every=1)  # 16 images: batches of 3 3 3 3 4, 3 steps
    record = small_run(Learner, tmp_path, recipe=recipe).execute()
    steps = [line["step"] for line in record.lines() if line["kind"] == "step"]
    assert steps == list(range(1, 19))
    everything = [line["step"] for line in record.lines()]
    assert all(a <= b for a, b in pairwise(everything))
    boundaries = [line for line in record.lines() if line["kind"] == "boundary"]
    assert [line["step"] for line in boundaries] == [6, 12, 18]


# what it costs ------------------------------------------------------------------------------------------------------


def test_the_operations_of_a_linear_network_are_counted():
    learner = grown()
    fit = fit_of(learner, Phase("main", some_samples(8), learner.loss), plain(epochs=3, batch_size=4))
    fit.run()
    # 4 inputs, 2 outputs: 2 * 4 * 2 forward and as many for the gradient of the weights; images need none
    assert fit.cost.flops == 32 * 24


@pytest.mark.parametrize(("frozen", "each"), [(False, 36 + 24 + 12 + 12), (True, 36 + 12)])
def test_a_frozen_layer_costs_no_backward(frozen, each):
    learner = grown(backbone=Hidden)  # 4 -> 3 -> 2: 2 * 12 + 2 * 6 operations forward
    learner.net.backbone.requires_grad_(not frozen)
    fit = fit_of(learner, Phase("main", some_samples(8), learner.loss), plain())
    fit.run()
    assert fit.cost.flops == 8 * each


def test_operations_of_several_streams_are_those_of_all_their_images():
    learner = grown()
    data = {"new": some_samples(4), "memory": some_samples(4, seed=1)}
    phase = Phase("main", data, lambda batch: learner.loss(batch.new) + learner.loss(batch.memory))
    fit = fit_of(learner, phase, plain(batch_size=2))
    fit.run()
    assert fit.cost.flops == 32 * 8


class Late(torch.optim.SGD):
    """Leaves its first steps out, as a loss scale does that is still too large."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        return super().step(closure) if self.taken > 3 else None


def test_what_a_loss_counts_itself_is_billed_as_it_is_and_not_as_a_share_of_each_image():
    class NowAndThen(Learner):
        def loss(self, batch):
            if self.progress.step in (1, 4):
                with self.context.flops.counting():
                    torch.ones(5, 7) @ torch.ones(7, 3)  # 210 operations
            return super().loss(batch)

    costs = []
    for kind in (Learner, NowAndThen):
        learner = grown(kind)
        fit = fit_of(learner, Phase("main", some_samples(8), learner.loss), plain(epochs=3))
        fit.run()
        costs.append(fit.cost)
    assert costs[0].steps == costs[1].steps == 6
    assert costs[1].flops == costs[0].flops + 420
    assert costs[1].kinds.flops == costs[0].kinds.flops


def test_an_optimizer_that_has_no_state_at_first_is_billed_too():
    learner = grown()
    recipe = plain(epochs=3, batch_size=4, optimizer=partial(Late, lr=0.1, momentum=0.9))
    fit = fit_of(learner, Phase("main", some_samples(8), learner.loss), recipe)
    fit.run()
    assert [entry.bytes for entry in fit.cost.entries if entry.kind == "optimizer"] == [4 * 10]


def test_what_is_replayed_from_the_second_step_on_is_counted():
    learner, met = grown(), []

    def loss(batch):
        replayed = sum(learner.loss(old) for old in met[:1])  # as an online memory, empty at first
        met.append(batch)
        return learner.loss(batch) + replayed

    fit = fit_of(learner, Phase("main", some_samples(8), loss), plain(epochs=3, batch_size=4))
    fit.run()
    assert fit.cost.flops == 32 * (4 + 5 * 8)
    assert {e.kind: e.bytes for e in fit.cost.entries}["activations"] == 2 * (4 * 4 * 4 + 4 * 2 * 4 + 4 * 8 + 4)


def test_extra_gradients_are_billed_by_their_operations_and_by_the_largest_of_their_graphs():
    learner = grown()
    batches = [Batch(part.images, part.slots) for part in map(some_samples, (20, 8))]
    learner.adjust_gradients = lambda batch: [learner.gradient(learner.loss(old)) for old in batches]
    fit = fit_of(learner, Phase("main", some_samples(8), learner.loss), plain(batch_size=8))
    fit.run()
    assert fit.cost.flops == 32 * (8 + 28)
    assert {e.kind: e.bytes for e in fit.cost.entries}["activations"] == 20 * 4 * 4 + 20 * 2 * 4 + 20 * 8 + 4


@pytest.mark.parametrize(
    ("optimizer", "held"),
    [
        (PLAIN, 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 4 * 10),  # one float beside each of 4 * 2 + 2 parameters
        (partial(torch.optim.AdamW, lr=0.1), 2 * 4 * 10 + 2 * 4),  # two moments, and a step for weight and bias
    ],
)
def test_gradients_optimizer_and_activations_are_billed(optimizer, held):
    learner = grown()
    fit = fit_of(learner, Phase("main", some_samples(8), learner.loss), plain(batch_size=8, optimizer=optimizer))
    fit.run()
    bytes_of = {entry.kind: entry.bytes for entry in fit.cost.entries}
    assert bytes_of["gradients"] == 4 * 10
    assert bytes_of["optimizer"] == held
    # a batch of 8: the images (8, 4), log-probabilities (8, 2), their int64 targets, and the sum of class weights
    assert bytes_of["activations"] == 8 * 4 * 4 + 8 * 2 * 4 + 8 * 8 + 4
    assert {entry.lifetime for entry in fit.cost.entries} == {"training"}
    assert [entry.name for entry in fit.cost.entries] == ["main.gradients", "main.activations", "main.optimizer"]
