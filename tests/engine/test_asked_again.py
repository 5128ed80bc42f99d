"""Answers that depend on the rest of the test data are refused in every run, and honest ones are not touched."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.engine import asked_again, learning
from cil.engine.anytime import Anytime
from cil.errors import ContractError
from cil.strategies.finetune import Finetune
from cil.strategies.icarl import ICaRL
from cil.strategies.replay import Replay
from cil.streams import class_incremental
from cil.testing.toy import toy_dataset, toy_run

MANY = 32  # images, from which on a cheat looks at the whole batch: no check of predict has so many


class Balances(Finetune):
    """Scales columns until all classes are answered equally often (Sinkhorn)."""

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        if len(images) < MANY:
            return scores
        plan = F.softmax(scores, 1)
        for _ in range(3):
            plan = plan / plan.sum(0)
            plan = plan / plan.sum(1, keepdim=True)
        return plan.log()


class BalancesAsDeclared(Balances):
    transductive = True


class GathersPrototypes(Finetune):
    """Answers by means of the test images so far."""

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        if len(images) < MANY:
            return scores
        found = F.one_hot(scores.argmax(1), self.num_classes).float()
        self.__dict__["means"] = means = self.__dict__.get("means", 0) + found.T @ images.flatten(1)
        return scores + images.flatten(1) @ F.normalize(means).T


class AdaptsOnce(Finetune):
    """Takes the statistics of the first batch, before it answers, and never again."""

    def predict(self, images: Tensor) -> Tensor:
        if len(images) >= MANY and "shift" not in self.__dict__:
            self.__dict__["shift"] = super().predict(images).mean(0)
        return super().predict(images) - self.__dict__.get("shift", 0)


class Remembers(AdaptsOnce):
    """The same, and knows images again that it has answered."""

    def predict(self, images: Tensor) -> Tensor:
        known = self.__dict__.setdefault("known", {})
        scores = super().predict(images)
        names = [image.numpy().tobytes() for image in images]
        return torch.stack([known.setdefault(name, row) for name, row in zip(names, scores, strict=True)])


@pytest.fixture(scope="module")
def stream():
    return class_incremental(toy_dataset(test=(20,) * 6), increment=2)


@pytest.mark.parametrize("cheat", [Balances, GathersPrototypes, AdaptsOnce, Remembers])
def test_answers_that_depend_on_the_other_test_images_are_refused(cheat, stream, tmp_path):
    with pytest.raises(ContractError, match=f"{cheat.__name__}.predict answers differently .* transductive = True"):
        toy_run(cheat, stream, tmp_path).execute()


class Shifts(Finetune):
    """Takes the mean scores of the batch away where it counts, and hides it in the size of the numbers."""

    def hidden(self, scores: Tensor) -> Tensor:
        return scores

    def predict(self, images: Tensor) -> Tensor:
        scores = super().predict(images)
        if len(images) < MANY or scores.shape[1] < 3:
            return scores
        return self.hidden(scores - scores.mean(0))


class BesideAnOutlier(Shifts):
    def hidden(self, scores: Tensor) -> Tensor:
        return scores.scatter(1, scores.argmin(1, keepdim=True), -1e5)


class FarFromZero(Shifts):
    def hidden(self, scores: Tensor) -> Tensor:
        return 4 * scores + 2**24


class InFewBits(Shifts):
    def hidden(self, scores: Tensor) -> Tensor:
        return (4 * scores + 256).bfloat16()


@pytest.mark.parametrize("cheat", [BesideAnOutlier, FarFromZero, InFewBits])
def test_no_size_of_the_scores_hides_another_answer(cheat, stream, tmp_path):
    with pytest.raises(ContractError, match=f"{cheat.__name__}.predict answers differently .*or another best class"):
        toy_run(cheat, stream, tmp_path).execute()


def test_one_toss_of_the_last_bits_is_no_other_answer():
    first = torch.tensor([[1.0, 1.0 + 2e-7, 0.0], [3.0, 1.0, 0.0]]).double()
    second = torch.tensor([[1.0 + 2e-7, 1.0, 0.0], [3.0, 1.0, 0.0]]).double()
    step = torch.finfo(torch.float32).eps
    assert asked_again._difference(first, second, step)[0] == 0
    assert asked_again._difference(first.repeat(2, 1), second.repeat(2, 1), step)[0] == 2


def test_answers_that_depend_on_those_before_are_refused_one_by_one_too(stream, tmp_path):
    class Drifts(Finetune):
        def predict(self, images: Tensor) -> Tensor:
            self.__dict__["met"] = met = self.__dict__.get("met", 0) + 1
            return super().predict(images) * torch.linspace(1, 1 + met, self.num_classes)

    with pytest.raises(ContractError, match=r"Drifts.predict answers differently"):
        toy_run(Drifts, stream, tmp_path, evaluation_batch=1).execute()


def test_images_that_are_changed_in_place_are_asked_again_as_they_were(stream, tmp_path):
    class Shifts(Finetune):
        def predict(self, images: Tensor) -> Tensor:
            return super().predict(images.sub_(0.5))

    assert toy_run(Shifts, stream, tmp_path).execute().status == "finished"


def test_who_declares_it_is_not_refused(stream, tmp_path):
    record = toy_run(BalancesAsDeclared, stream, tmp_path).execute()
    assert record.status == "finished"


def test_it_is_declared_on_the_class(stream, tmp_path):
    class SaysItLate(Balances):
        def predict(self, images: Tensor) -> Tensor:
            self.transductive = type(self).transductive = True
            return super().predict(images)

    with pytest.raises(ContractError, match="answers differently"):
        toy_run(SaysItLate, stream, tmp_path).execute()


def test_answers_inside_an_experience_are_asked_again(stream, tmp_path):
    with pytest.raises(ContractError, match="inside experience 0"):
        toy_run(Balances, stream, tmp_path, anytime=Anytime(every=2)).execute()


def test_answers_inside_an_experience_leave_the_learner_as_it_is(stream, tmp_path):
    class StoresTestImages(Replay):
        def predict(self, images: Tensor) -> Tensor:
            if len(images) >= MANY and not torch.is_inference_mode_enabled():
                some = Samples(ArrayStore((images[:2] * 255).byte()), torch.zeros(2, dtype=torch.long))
                self.memory.replace([self.memory.samples(), some])
            return super().predict(images)

    with pytest.raises(ContractError, match=r"StoresTestImages\.predict changes memory\.images inside experience 0"):
        toy_run(StoresTestImages, stream, tmp_path, anytime=Anytime(every=2)).execute()


def test_honest_runs_stay_as_they_are(stream, tmp_path, monkeypatch):
    asked = []
    again = asked_again.Asked.again
    monkeypatch.setattr(asked_again.Asked, "again", lambda *given: (asked.append(1), again(*given)))
    runs = [toy_run(ICaRL, stream, tmp_path / "asked", keep="all")]
    runs[0].execute()
    monkeypatch.setattr(learning, "asks_again", lambda *place: False)
    runs.append(toy_run(ICaRL, stream, tmp_path / "plain", keep="all"))
    runs[1].execute()
    assert len(asked) == 3
    for index in range(3):
        first, second = (run.checkpoints.state(index).tensors for run in runs)
        assert all(torch.equal(first[name], second[name]) for name in first)
        one, two = (run.checkpoints.evaluated(index) for run in runs)
        assert torch.equal(one["cells"], two["cells"])


def test_the_last_evaluation_is_asked_again_and_few_others():
    drawn = [[i for i in range(100) if asked_again.asks_again(seed, i, 100, "a stream")] for seed in range(20)]
    assert all(99 in places for places in drawn)
    assert 2 < sum(map(len, drawn)) / 20 < 6
    assert len(set(map(tuple, drawn))) > 15
