"""What strategies have in common: first experiences, teachers, quotas, and the bill before training."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import pytest
import torch
from small_runs import DISTILLING, LINEAR, ONE_STEP, PIXELS, REHEARSAL, STREAMS, bits, differing, observed

from cil import strategies
from cil.engine.dry_run import dry_run
from cil.memory import CONVENTIONS, Budget, herd
from cil.models import extract
from cil.models.base import count_parameters
from cil.strategies import find
from cil.strategies.parts import distillation
from cil.testing.toy import toy_factory

NAMES = [name for name in strategies.built_in() if not find(name).takes_task]  # of the others: test_task_learners
ITEM = PIXELS + 1  # bytes of a toy exemplar and its label


# the first experience -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
def test_after_the_first_experience_all_methods_have_the_same_weights(learn, stream):
    expected = learn("finetune", stream).net(0)
    for name in LINEAR:
        found = learn(name, stream).net(0)
        found = {key.replace("net.branches.0.", "net.backbone."): value for key, value in found.items()}
        assert differing(found, expected) == [], name


def test_after_the_second_they_differ(learn):
    nets = [learn(name).net(1) for name in LINEAR if name != "der"]
    assert all(differing(one, other) for i, one in enumerate(nets) for other in nets[:i])


# what it costs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_is_every_operation_of_the_training(learn, name):
    found = learn(name).recount
    if name == "moe_adapters":  # how many images meet experts that are frozen is up to the router: a mean of samples
        assert found.told == pytest.approx(found.counted, rel=2e-3)
    else:
        assert found.told == found.counted


@pytest.mark.parametrize("name", NAMES)
def test_who_keeps_exemplars_answers_by_head_and_by_their_nearest_mean(learn, name):
    done = learn(name)
    answers, learner = done.record.results["answers"], done.learner(2)
    by_head = {"foster": "student"}.get(name, "head")
    if learner.memories() and not learner.bound:
        assert {by_head, "nearest_mean"} <= answers.keys()
        assert None not in answers["nearest_mean"]["accuracy_curve"]
    else:
        assert list(answers) == [learner.answers_by]


# teachers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTILLING)
def test_the_teacher_is_the_network_of_the_last_boundary_and_never_changes(learn, name):
    seen = {}

    def see(when, learner, experience):
        if experience.index == 0:
            assert learner.teacher is None
        elif when == "before":
            seen["teacher"] = bits(learner.teacher)
            assert differing(seen["teacher"], bits(learner.net)) == []
            assert learner.teacher.num_classes == learner.num_classes
        else:
            assert differing(seen["teacher"], bits(learner.teacher)) == []
            assert not learner.teacher.training
            assert not any(p.requires_grad or p.grad is not None for p in learner.teacher.parameters())
            assert differing(seen["teacher"], bits(learner.net))

    learn(observed(name, see))
    assert seen


@pytest.mark.parametrize("name", DISTILLING)
def test_when_an_experience_begins_there_is_nothing_to_distil(learn, name):
    """Divergence 0 and no gradient on old logits, both networks in evaluation mode."""
    checked = []

    def see(when, learner, experience):
        if when != "prepared" or not experience.index:
            return
        learner.net.eval()
        images = experience.train.images
        old = learner.teacher(images).logits
        logits = learner.net(images).logits.detach().requires_grad_()
        loss = distillation(logits[:, : learner.old_classes], old)
        loss.backward()
        p = (old / 2).softmax(1)
        assert loss.item() == pytest.approx(-(p * p.log()).sum(1).mean().item(), abs=1e-6)
        assert logits.grad.abs().max() < 1e-6
        checked.append(experience.index)

    learn(observed(name, see))
    assert checked == [1, 2]


@pytest.mark.parametrize("name", DISTILLING)
def test_a_teacher_is_billed_in_training_at_the_size_of_the_old_network_and_not_carried(learn, name):
    done = learn(name)
    for index in range(3):
        billed = sum(size for line, size in done.trained_with(index).items() if line.startswith("teacher."))
        carried = done.ledger(index - 1) if index else {"parameters": 0, "buffers": 0}
        pairs = 8 * index if name == "bic" else 0  # old ones never change, so the teacher has none of its own
        assert billed == carried["parameters"] + carried.get("buffers", 0) - pairs
        assert done.learner(index).teacher is None


# exemplars ----------------------------------------------------------------------------------------------------------

ENOUGH = Budget(exemplars=25)
QUOTAS = {
    ("toy", 10): [[5] * 2, [2] * 4, [1] * 6],
    ("toy", 25): [[12] * 2, [6] * 4, [4] * 6],  # floor(25 / 2) = 12, floor(25 / 4) = 6, floor(25 / 6) = 4
    ("uneven", 10): [[3] * 3, [2] * 4, [1] * 6],
    ("uneven", 25): [[6, 6, 5], [6, 6, 5, 6], [4, 4, 4, 4, 2, 4]],  # 8, 6 and 4, and small classes whole
}


@pytest.mark.parametrize(("stream", "slots"), QUOTAS)
@pytest.mark.parametrize("name", REHEARSAL)
def test_each_class_has_floor_m_over_c_exemplars_or_all_its_images(learn, name, stream, slots):
    done = learn(name, stream) if slots == 10 else learn(name, stream, budget=ENOUGH, recipe=ONE_STEP)
    for index, expected in enumerate(QUOTAS[stream, slots]):
        counts = done.learner(index).memory.counts()
        assert [counts[slot] for slot in range(len(expected))] == expected
        assert done.record.results["exemplars"][index] == sum(expected) <= slots


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", REHEARSAL)
def test_exemplars_are_herded_when_their_class_arrives_and_kept_as_a_prefix(learn, name, stream):
    done = learn(name, stream, budget=ENOUGH, recipe=ONE_STEP)
    for index in range(3):
        learner = done.learner(index)
        for slot in done.stream.signatures[index].new_slots:
            images = done.stream[index].train.of_class(slot)
            features = extract(learner.net, images)
            unit = features / features.norm(dim=1, keepdim=True)
            chosen = images[herd(unit, ENOUGH.exemplars // learner.num_classes)].pixels
            for later in range(index, 3):
                kept = done.learner(later).memory.of_class(slot).pixels
                assert torch.equal(kept, chosen[: len(kept)])


# the bill before training -------------------------------------------------------------------------------------------


def bytes_of(name, stream, reserve, convention="exact"):
    """What the learner needs at the end, and room for eleven exemplars."""
    factory = partial(toy_factory, stream, seed=0, meta=True, model=find(name).toy_model)
    last = dry_run(partial(find(name), **find(name).toy), factory, stream.signatures, Budget(exemplars=0))[-1]
    item = ITEM if convention == "exact" else PIXELS
    return Budget(limits=[last.fixed[convention] + 11 * item + item - 1], reserve=reserve, convention=convention)


BUDGETS = {
    "exemplars": lambda name, stream: Budget(exemplars=25),
    "bytes": lambda name, stream: bytes_of(name, stream, "now"),
    "bytes, reserved": lambda name, stream: bytes_of(name, stream, "final"),
}


BILLED = [("uneven", "exemplars"), ("toy", "bytes"), ("uneven", "bytes, reserved")]


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_before_training_is_the_ledger_after_it(learn, name):
    """Under each budget; who carries no exemplars has one size."""
    plain = learn(name)
    assert_billed(plain, name, "toy, plain", None)
    for stream, kind in BILLED if plain.learner(2).memories() else BILLED[:1]:
        budget = BUDGETS[kind](name, STREAMS[stream]())
        assert_billed(learn(name, stream, budget=budget, recipe=ONE_STEP), name, f"{stream}, {kind}", budget.limits)


def assert_billed(done, name, which, limits):
    results = done.record.results
    for index, bill in enumerate(results["bills"]):
        assert bill["by_kind"] == done.ledger(index), which
        assert bill["exemplars"] == results["exemplars"][index], which
        for convention in CONVENTIONS:
            assert bill["total"][convention] == results["ledger"][index]["totals"][convention]["total"], which
        if name != "joint":
            assert results["over_budget"][index] is None, which
            assert limits is None or bill["total"]["exact"] <= limits[-1], which


@pytest.mark.parametrize("name", REHEARSAL)
def test_reserved_bytes_hold_the_same_number_of_exemplars_all_along(learn, name):
    """Eleven fit beside the final size: 5 a class, 2, 1. Beside the size now more fit early on, as many at the end."""
    held = {
        kind: learn(name, "toy", budget=BUDGETS[kind](name, STREAMS["toy"]()), recipe=ONE_STEP).record.results[
            "exemplars"
        ]
        for kind in ("bytes", "bytes, reserved")
    }
    assert held["bytes, reserved"] == [10, 8, 6]
    assert held["bytes"][0] > 10 and held["bytes"][2] == 6


@pytest.mark.parametrize("name", REHEARSAL)
def test_under_the_surveys_convention_eleven_images_of_pixels_fit_beside_the_backbones(learn, name):
    budget = bytes_of(name, STREAMS["toy"](), "final", "survey")
    done = learn(name, "toy", budget=budget, recipe=ONE_STEP)
    assert done.record.results["exemplars"] == [10, 8, 6]
    assert [bill["total"]["survey"] for bill in done.record.results["bills"]] == [
        ledger["totals"]["survey"]["total"] for ledger in done.record.results["ledger"]
    ]


def test_the_bill_holds_where_the_limit_rises_faster_than_the_classes(learn):
    fixed = bytes_of("replay", STREAMS["toy"](), "now").limits[-1] - 12 * ITEM + 1
    budget = Budget(limits=[fixed + 4 * ITEM, fixed + 40 * ITEM, fixed + 72 * ITEM])
    done = learn("replay", "toy", budget=budget, recipe=ONE_STEP)
    assert [bill["exemplars"] for bill in done.record.results["bills"]] == done.record.results["exemplars"]


# carried bytes, by formula -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
def test_carried_bytes_are_those_of_the_formulas(learn, name):
    """P weights of a backbone, B statistics, d features, C classes, T backbones: 4 (T P + T d C + C) and 4 T B."""
    done = learn(name)
    backbone = toy_factory(done.stream, seed=0).backbone()
    p, b, d = count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers()), 32
    assert b == 2 * (16 + 32)  # two per channel
    images = list(accumulate(sum(signature.counts.values()) for signature in done.stream.signatures))
    for index in range(3):
        c, t = 2 * (index + 1), index + 1 if name == "der" else 1
        weights = 4 * (t * p + t * d * c + c)
        pairs = 8 * (index + 1) if name == "bic" else 0
        held = images[index] if name == "joint" else [10, 8, 6][index] if name in REHEARSAL else 0
        expected = {"parameters": weights + pairs, "buffers": 4 * t * b}
        expected |= {"exemplars": PIXELS * held, "labels": held} if held else {}
        expected |= {"statistics": weights} if name == "ewc" else {"statistics": 4 * p} if name in ("si", "mas") else {}
        assert done.ledger(index) == expected
        survey = done.record.results["ledger"][index]["totals"]["survey"]
        assert survey["total"] == 4 * t * p + PIXELS * held
