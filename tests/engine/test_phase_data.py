"""What the loss of a phase closes over, and images of a phase that are not the stream's."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Learner, Rehearse, plain, small_run

from cil.data import Samples
from cil.errors import BudgetExceeded, ContractError
from cil.memory import Budget
from cil.strategies import Phase

NUMBERS = 100


class ClosesOverATeacher(Learner):
    """Distils from a copy of its network that is a variable of ``phases``."""

    def phases(self, experience):
        teacher = deepcopy(self.net).eval().requires_grad_(False)

        def loss(batch):
            return F.mse_loss(self.net(batch.images).logits, teacher(batch.images).logits)

        yield Phase("main", self.training_set(experience), loss)


class ClosesOverData(Learner):
    """Weights of classes, a module that learns nothing, its own network and samples."""

    def phases(self, experience):
        weight, table, layer = torch.ones(NUMBERS), np.ones(NUMBERS, np.float32), nn.Linear(4, 1, bias=False)
        one = torch.ones(())
        both, data = nn.Sequential(self.net), experience.train

        def loss(batch):
            logits = both(batch.images).logits
            return (
                F.cross_entropy(logits, batch.slots, weight[: logits.shape[1]])
                + 0 * (table[0] + len(data) + one)
                + (0 * layer(batch.images.flatten(1)).mean().detach())
            )

        yield Phase("main", self.training_set(experience), loss)


def test_a_teacher_that_a_loss_closes_over_is_refused(tmp_path):
    """Under ``libcontinual``, which charges teachers, it was free; and the peak of training bytes lacked it."""
    for budget in (Budget(exemplars=3), Budget(limits=[10_000], convention="libcontinual")):
        with pytest.raises(ContractError, match=r"closes over a frozen copy of net: that is a teacher.*self\.keep"):
            small_run(ClosesOverATeacher, tmp_path / budget.convention, budget=budget).execute()


def test_what_a_loss_closes_over_is_held_in_training(tmp_path):
    own, plain = (small_run(kind, tmp_path / kind.__name__).execute().results for kind in (ClosesOverData, Learner))
    entries = own["ledger"][-1]["entries"]
    lines = [entry["bytes"] for entry in entries if entry["kind"] == "temporary"]
    assert lines == [4 * (2 * NUMBERS + 4 + 1)]  # neither the network nor images of the experience
    assert own["ledger"][-1]["totals"]["exact"] == plain["ledger"][-1]["totals"]["exact"]


class TakenOut(Learner):
    """Has a copy of its network as a part of it while it trains."""

    def before_experience(self, experience):
        self.net.copy = deepcopy(self.net)

    def after_experience(self, experience):
        del self.net.copy


def test_parts_of_a_network_that_are_taken_out_again_were_held_in_training(tmp_path):
    record = small_run(TakenOut, tmp_path).execute()
    lines = [
        {entry["name"]: entry["bytes"] for entry in ledger["entries"] if entry["kind"] == "temporary"}
        for ledger in record.results["ledger"]
    ]
    head = [4 * (4 * classes + classes) for classes in (0, 2, 4)]  # of the network before each experience
    assert [line.get("parts.temporary", 0) for line in lines] == head


class TwoInOne(Rehearse):
    """Stores two images of four bits in the place of one."""

    def training_set(self, experience):
        packed = self.memory.samples()
        if not len(packed):
            return experience.train
        pixels = torch.cat([packed.pixels & 240, packed.pixels << 4])
        return experience.train + Samples.from_arrays(pixels, packed.slots.repeat(2))


def test_images_of_a_phase_that_are_not_the_streams_are_told(tmp_path):
    """Whatever they were made of: of exemplars that are two in one, or a public set that was read on import."""
    own = small_run(TwoInOne, tmp_path / "own", budget=Budget(exemplars=4)).execute().results
    assert own["exemplars"][0] == 4 and own["own_images"][:2] == [0, 8]
    plain = small_run(Rehearse, tmp_path / "plain", budget=Budget(exemplars=4)).execute().results
    assert "own_images" not in plain


class ClosesOverViews(Learner):
    """Weights of its own network, detached and cut: views, not copies."""

    def phases(self, experience):
        weight, first = self.net.head.weight.detach(), self.net.head.weight.data[:1]

        def loss(batch):
            return F.cross_entropy(self.net(batch.images).logits, batch.slots) + 0 * (weight.sum() + first.sum())

        yield Phase("main", self.training_set(experience), loss)


def test_views_of_what_is_kept_are_not_held_twice(tmp_path):
    entries = small_run(ClosesOverViews, tmp_path).execute().results["ledger"][-1]["entries"]
    assert not [entry for entry in entries if entry["kind"] == "temporary"]


class WeighsBy(Learner):
    """Multiplies by numbers that backward needs: of its phase, or made anew in each step."""

    of_phase = True

    def phases(self, experience):
        weight = torch.ones(NUMBERS)

        def own(batch):
            return (self.net(batch.images).logits.sum() * weight).mean()

        def anew(batch):
            return (self.net(batch.images).logits.sum() * torch.ones(NUMBERS)).mean()

        yield Phase("main", self.training_set(experience), own if self.of_phase else anew)


class WeighsAnew(WeighsBy):
    of_phase = False


def test_what_a_loss_closes_over_is_held_once_also_where_backward_needs_it(tmp_path):
    peaks = [
        small_run(kind, tmp_path / kind.__name__).execute().results["peak_training_bytes"]
        for kind in (WeighsBy, WeighsAnew)
    ]
    assert peaks[0] == peaks[1]


def test_what_a_loss_closes_over_is_in_the_step_that_is_measured_before_training(tmp_path):
    allowed = small_run(ClosesOverData, tmp_path / "any").execute().results["peak_training_bytes"]
    small_run(ClosesOverData, tmp_path / "fits", budget=Budget(training_bytes=allowed)).execute()
    with pytest.raises(BudgetExceeded, match=r"in a step of 4 images .*temporary [\d,]+"):
        small_run(ClosesOverData, tmp_path / "less", budget=Budget(training_bytes=allowed - 1)).execute()
    with pytest.raises(ContractError, match="closes over a frozen copy of net"):
        small_run(LateTeacher, tmp_path / "late", budget=Budget(training_bytes=10**6)).execute()
    assert not (tmp_path / "late" / "checkpoint" / "experience-000.json").exists()


class LateTeacher(Learner):
    """The same teacher, from the second experience on."""

    def phases(self, experience):
        kind = ClosesOverATeacher if experience.index else Learner
        return kind.phases(self, experience)


PAST: list[Samples] = []


class KeepsThePast(Rehearse):
    """Trains on images of earlier experiences, which a variable of the module holds."""

    def training_set(self, experience):
        data = super().training_set(experience)
        for past in PAST:
            data = data + past
        return data

    def after_experience(self, experience):
        PAST.append(experience.train)


def test_images_of_an_experience_that_is_over_are_told(tmp_path):
    """They counted as images of the experience in hand, so that nothing told them."""
    PAST.clear()
    results = small_run(KeepsThePast, tmp_path, budget=Budget(exemplars=4)).execute().results
    assert results["own_images"][0] == 0 < results["own_images"][1] < results["own_images"][2]
    PAST.clear()
    with pytest.raises(ContractError, match=r"neither experience\.train nor exemplars"):
        small_run(KeepsThePast, tmp_path / "looks", recipe=plain(looks=9)).execute()
