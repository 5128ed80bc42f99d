"""Operations and updates are counted wherever they are made, and counting changes no bit."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from recount import recount
from toys import Hidden, Interrupt, Learner, factory, plain, small_run

from cil.data import ArrayStore, Augment, Batch, Samples
from cil.engine import step_kinds
from cil.errors import ContractError
from cil.memory import Budget, Flops
from cil.strategies import Phase
from cil.strategies.replay import Replay
from cil.testing.toy import toy_run, toy_stream

GIVEN = {"recipe": plain(epochs=10, log_every=1), "make_factory": partial(factory, Hidden)}  # 40 steps an experience
HIDDEN = 5  # steps at a time


class Training(Learner):
    """Trains by itself on the images it saw last."""

    def loss(self, batch):
        self.batch = batch
        return super().loss(batch)

    def train_more(self, batch):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        with torch.enable_grad():
            for _ in range(HIDDEN):
                optimizer.zero_grad()
                F.cross_entropy(self.net(batch.images).logits, batch.slots).backward()
                optimizer.step()
        optimizer.zero_grad()


class AfterStep(Training):
    """After each step."""

    def after_step(self, batch):
        self.train_more(batch)


class FromTheThird(Training):
    """In the loss, when the first steps are over."""

    def loss(self, batch):
        if self.progress.step >= 3:
            self.train_more(batch)
        return super().loss(batch)


class OnceInAWhile(Training):
    """Every seventh step."""

    def after_step(self, batch):
        if self.progress.step % 7 == 6:
            self.train_more(batch)


class BeforeThePhase(Training):
    """When modules are put into training mode."""

    def before_experience(self, experience):
        BeforeThePhase.batch = experience.train

    def train_mode(self):
        super().train_mode()
        self.train_more(self.batch)


class Loading(Training):
    """When it is rebuilt to be trained, on noise."""

    images, slots = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64)
    transductive = True  # else it is asked again
    evaluated = False

    def load_state(self, state):
        super().load_state(state)
        Loading.evaluated = not Loading.evaluated  # the one who is evaluated comes first
        if not Loading.evaluated:
            self.train_more(self)


class WhileItIsTold(Training):
    """In properties and setters that the engine reads and sets, and what a phase is made of."""

    def before_experience(self, experience):
        WhileItIsTold.batch = Batch(experience.train.pixels.float() / 255, experience.train.slots)
        self.left = ["trainable", "parameters", "progress", "diagnostics"]

    def trained(self, what):
        if what in self.__dict__.get("left", ()):
            self.left.remove(what)
            self.train_more(WhileItIsTold.batch)

    def trainable(self):
        self.trained("trainable")
        return super().trainable()

    def phases(self, experience):
        def parameters():
            self.trained("parameters")
            yield from self.net.parameters()

        yield Phase("main", self.training_set(experience), self.loss, parameters())

    @property
    def progress(self):
        return self.__dict__["now"]

    @progress.setter
    def progress(self, now):
        self.__dict__["now"] = now
        self.trained("progress")

    @property
    def diagnostics(self):
        self.trained("diagnostics")
        return {}

    @diagnostics.setter
    def diagnostics(self, given):
        pass


class FromItsOwnSource(Training):
    """Where images are read that are no arrays in memory, which is done ahead of time."""

    def training_set(self, experience):
        class Source(ArrayStore):
            in_memory = False

            def pixels(store, rows):
                pixels = super().pixels(rows)
                self.train_more(Batch(pixels.float() / 255, experience.train.slots[rows]))
                return pixels

        return Samples(Source(experience.train.pixels), experience.train.slots)


class WhileItAugments(Training):
    """In an augmentation of its own."""

    def phases(self, experience):
        class Own(Augment):
            def bind(own, pixels, slots):
                augmented = super().bind(pixels, slots)

                def trained(rows, generator):
                    images = augmented(rows, generator)
                    self.train_more(Batch(images, slots[rows]))
                    return images

                return trained

        yield Phase("main", self.training_set(experience), self.loss, augment=Own())


class WhenItIsSaved(Training):
    """In what a snapshot asks for: one inside each experience, and one at the end of its phase."""

    def full_state(self):
        self.train_more(self.batch)
        return super().full_state()


@pytest.mark.parametrize(
    ("cheat", "updates"),
    [
        (FromItsOwnSource, [40 * HIDDEN] * 3),
        (WhileItAugments, [40 * HIDDEN] * 3),
        (AfterStep, [40 * HIDDEN] * 3),
        (FromTheThird, [37 * HIDDEN] * 3),
        (OnceInAWhile, [5 * HIDDEN] * 3),
        (BeforeThePhase, [HIDDEN] * 3),
        (Loading, [0, HIDDEN, HIDDEN]),
        (WhileItIsTold, [4 * HIDDEN] * 3),
    ],
)
def test_training_that_is_hidden_in_a_hook_is_counted(tmp_path, cheat, updates):
    found = recount(small_run(cheat, tmp_path, **GIVEN))
    assert found.told == found.counted
    assert found.record.results["own_updates"] == updates


def test_training_that_is_hidden_in_a_snapshot_is_counted(tmp_path):
    given = {**GIVEN, "recipe": replace(GIVEN["recipe"], snapshot_steps=25)}
    found = recount(small_run(WhenItIsSaved, tmp_path, **given))
    assert found.told == found.counted
    assert found.record.results["own_updates"] == [2 * HIDDEN] * 3


def test_the_honest_one_takes_no_steps_by_itself(tmp_path):
    found = recount(small_run(Learner, tmp_path, **GIVEN))
    assert found.told == found.counted
    assert "own_updates" not in found.record.results


def test_work_that_cannot_be_seen_is_found_by_steps_that_are_drawn(tmp_path, monkeypatch):
    class Unseen(Learner):
        def after_step(self, batch):
            if self.progress.step > 5:
                for _ in range(30):
                    torch.ones(5, 7) @ torch.ones(7, 3)

    monkeypatch.setattr(step_kinds, "LEAST", 8)  # of 40 steps
    found = recount(small_run(Unseen, tmp_path, **GIVEN))
    assert sum(found.told) == pytest.approx(sum(found.counted), rel=0.25)


@pytest.mark.parametrize("cheat", [AfterStep, FromTheThird])
def test_hidden_steps_are_held_to_the_budget(tmp_path, cheat):
    record = small_run(cheat, tmp_path, budget=Budget(updates=20), **GIVEN).execute()
    for each in record.results["compute"]:
        assert 20 <= each["updates"]["spent"] <= 20 + HIDDEN + 1
    honest = small_run(Learner, tmp_path / "honest", **GIVEN).execute().results["flops"]["training"][0]
    record = small_run(cheat, tmp_path / "flops", budget=Budget(flops=honest), **GIVEN).execute()
    spent = record.results["compute"][0]["flops"]
    assert honest <= spent["spent"] < 1.2 * honest and record.results["own_updates"][0] < 40 * HIDDEN / 3


def test_training_in_an_evaluation_is_refused(tmp_path):
    class Answering(Training):
        def predict(self, images):
            with torch.inference_mode(False):
                copy = images.clone()
                optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
                optimizer.step()
            return super().predict(copy)

    with pytest.raises(ContractError, match=r"Answering takes 1 steps? of an optimizer in the evaluation after exp"):
        small_run(Answering, tmp_path).execute()


def by_hand(learner):
    """A few updates of a network on its exemplars, without an optimizer."""
    weights = learner.trainable()
    for batch in learner.memory.samples().batches(8, learner.device):
        loss = F.cross_entropy(learner.net(batch.images).logits, batch.slots)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data.sub_(0.05 * gradient)


def test_training_by_hand_in_an_evaluation_is_refused(tmp_path):
    class WhenLoaded(Replay):
        """Only where it is evaluated: what it costs in training is billed."""

        def load_state(self, state):
            super().load_state(state)
            frame, names = sys._getframe(), set()
            while frame is not None:
                names.add(frame.f_code.co_name)
                frame = frame.f_back
            if "evaluate" in names:
                by_hand(self)

    class WhenAsked(Replay):
        asked = False

        def predict(self, images):
            if not self.asked:
                self.asked = True
                with torch.inference_mode(False), torch.enable_grad():
                    by_hand(self)
            return super().predict(images)

    for kind in (WhenLoaded, WhenAsked):
        with pytest.raises(ContractError, match=f"{kind.__name__} goes backward in the evaluation after experience 0"):
            toy_run(kind, toy_stream(), tmp_path / kind.__name__).execute()


def test_no_part_of_a_bill_takes_the_name_of_the_engines(tmp_path):
    class Named(Replay):
        def before_experience(self, experience):
            with self.context.part("training"):
                pass

    class Behind(Replay):
        def before_experience(self, experience):
            self.context.parts["training"] = Flops()

    with pytest.raises(ContractError, match=r"context.part\('training'\): the engine bills this part itself"):
        toy_run(Named, toy_stream(), tmp_path / "named").execute()
    plain, behind = (toy_run(kind, toy_stream(), tmp_path / kind.__name__).execute() for kind in (Replay, Behind))
    assert behind.results["flops"]["training"] == plain.results["flops"]["training"]


def test_counting_changes_no_bit(tmp_path, monkeypatch):
    states = []
    for share, first in ((0.0, 0), (1.0, 2)):  # no step is counted, and all are
        monkeypatch.setattr(step_kinds, "SPARSE", share)
        monkeypatch.setattr(step_kinds, "LEAST", 0)
        monkeypatch.setattr(step_kinds, "FIRST", first)
        monkeypatch.setattr(step_kinds, "PATIENCE", 0)
        run = small_run(AfterStep, tmp_path / str(first), **GIVEN)
        run.execute()
        states.append(run.checkpoints.state(2).tensors)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_an_interrupted_run_is_billed_as_a_straight_one(tmp_path):
    given = {**GIVEN, "recipe": plain(epochs=10, log_every=1, snapshot_steps=3)}
    told = small_run(OnceInAWhile, tmp_path / "straight", **given).execute().results
    for line in (2, 8, 50):
        with pytest.raises(KeyboardInterrupt):
            small_run(OnceInAWhile, tmp_path / str(line), loggers=[Interrupt(line)], **given).execute()
        again = small_run(OnceInAWhile, tmp_path / str(line), **given).execute().results
        assert again["flops"] == told["flops"] and again["own_updates"] == told["own_updates"]
