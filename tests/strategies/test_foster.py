"""FOSTER: a new backbone boosts the old network, and one student learns from both."""

import math

import pytest
import torch
from small_runs import Fixed, bare, batch, below, bits, differing, observed, signatures
from torch import nn

from cil.engine.recipe import Recipe
from cil.kinds.classes.rules import predict_scores_each_class_seen
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Budget
from cil.models import Output, extract
from cil.models.base import count_parameters
from cil.strategies.foster import FOSTER, balance_weights, balanced_distillation
from cil.strategies.parts import distillation
from cil.streams import Experience
from cil.testing import rules, toy_stream
from cil.testing.toy import toy_factory


def stages(learn, stream="toy", **hyperparameters):
    """A run, and what there was when the structure was ready, after each phase, and at the end of each experience."""
    notes = {}

    class Noted(FOSTER):
        def phases(self, experience):
            for phase in super().phases(experience):
                yield phase
                self.note(experience, phase.name)

        def after_experience(self, experience):
            super().after_experience(experience)
            self.note(experience, "end")

        def prepare(self, experience):
            super().prepare(experience)
            self.note(experience, "prepared")

        def note(self, experience, name):
            held = {"net": bits(self.net)}
            if self.boosted is not None:
                held |= {"boosted": bits(self.boosted), "extra": bits(self.extra_head)}
                held["weights"] = dict(enumerate(self.weights.clone()))
            notes[experience.index, name] = held

    return learn(Noted, stream, hyperparameters=hyperparameters), notes


# balance ------------------------------------------------------------------------------------------------------------


def test_balance_weights_by_hand():
    counts = [22] * 90 + [500] * 10
    for beta, old, new in ((0.96, 1.042465, 0.617817), (0.97, 1.053925, 0.514678)):
        weights = balance_weights(counts, beta)
        assert weights[:90].tolist() == pytest.approx([old] * 90, abs=1e-6)
        assert weights[90:].tolist() == pytest.approx([new] * 10, abs=1e-6)
        assert weights.sum().item() == pytest.approx(100, abs=1e-4)


def test_equal_counts_or_a_beta_of_0_weigh_all_classes_alike():
    assert torch.equal(balance_weights([7, 7, 7], 0.96), torch.ones(3))
    assert torch.equal(balance_weights([1, 30, 500], 0.0), torch.ones(3))


def test_the_fewer_images_the_larger_the_weight_and_none_count_as_one():
    weights = balance_weights([0, 1, 5, 50], 0.9).tolist()
    assert weights[0] == weights[1] > weights[2] > weights[3]
    assert all(map(math.isfinite, weights))


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_weights_come_from_the_images_that_are_there(learn, stream):
    done, notes = stages(learn, stream)
    for index in (1, 2):
        counts = done.learner(index - 1).memory.counts() | done.stream.signatures[index].counts
        assert len(counts) == done.stream.signatures[index].num_classes
        for row, beta in enumerate((0.96, 0.97)):
            raw = [(1 - beta) / (1 - beta ** counts[slot]) for slot in sorted(counts)]
            expected = [len(raw) * value / sum(raw) for value in raw]
            assert notes[index, "prepared"]["weights"][row].tolist() == pytest.approx(expected, rel=1e-5)


# losses -------------------------------------------------------------------------------------------------------------


class Two(Fixed):
    """Stands for the two backbones: one number each."""

    def forward(self, images):
        logits, features, _ = super().forward(images)
        return Output(1 * logits, 1 * features)


def boosting(weights=(1.0, 1.0, 1.0), **hyperparameters):
    """Three classes, two of them old: old logits (2, 0), boosted ones (2, 0, 3), extra shares 1/6, 2/6, 3/6."""
    learner = bare("foster", **hyperparameters)
    learner.num_classes, learner.old_classes = 3, 2
    learner.net = nn.Module()
    learner.net.feature_dim, learner.net.head = 1, nn.Linear(1, 3)
    learner.boosted, learner.extra_head = Two([[2.0, 0.0, 3.0]], [[2.0, 1.0]]), nn.Linear(1, 3)
    with torch.no_grad():
        learner.net.head.weight.copy_(torch.tensor([[1.0], [0.0], [9.0]]))
        learner.extra_head.weight.copy_(torch.tensor([[0.0], [math.log(2)], [math.log(3)]]))
        learner.net.head.bias.zero_()
        learner.extra_head.bias.zero_()
    learner.weights = torch.tensor([weights, (1.0, 1.0, 1.0)])
    return learner


def test_boosting_sums_three_terms():
    learner = boosting()
    terms = learner.loss(batch(0))
    assert terms.keys() == {"classes", "new_features", "distillation"}
    assert terms["classes"].item() == pytest.approx(1.349012, abs=1e-5)  # log(e^2 + 1 + e^3) - 2
    assert terms["new_features"].item() == pytest.approx(math.log(6), abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(0.582203, abs=1e-5)
    terms = learner.loss(batch(2))
    assert terms["classes"].item() == pytest.approx(0.349012, abs=1e-5)
    assert terms["new_features"].item() == pytest.approx(math.log(2), abs=1e-5)


def test_logits_are_divided_by_the_weights_in_the_classification_term_alone():
    learner = boosting(weights=(0.5, 1.0, 1.5))
    terms = learner.loss(batch(0))
    assert terms["classes"].item() == pytest.approx(math.log(1 + math.exp(-4) + math.exp(-2)), abs=1e-5)  # 4, 0, 2
    assert terms["new_features"].item() == pytest.approx(math.log(6), abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(0.582203, abs=1e-5)


def test_strength_and_temperature_are_those_of_the_distillation():
    learner = boosting(strength=0.25, temperature=1.0)
    share = 1 / (1 + math.exp(-2))
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert learner.loss(batch(0))["distillation"].item() == pytest.approx(0.25 * entropy, abs=1e-6)


def test_gradients_of_boosting_reach_neither_the_old_head_nor_by_the_extra_head_the_old_features():
    learner = boosting()
    terms = learner.loss(batch(0))
    given = [learner.net.head.weight, learner.boosted.features, learner.boosted.logits]
    for name, reached in (("classes", 2), ("new_features", 1), ("distillation", 2)):
        gradients = torch.autograd.grad(terms[name], given, allow_unused=True, retain_graph=True)
        assert [g is not None for g in gradients] == [False, reached == 1, reached == 2]
    (gradient,) = torch.autograd.grad(terms["new_features"], learner.boosted.features, retain_graph=True)
    assert gradient[0, 0] == 0 != gradient[0, 1]
    (gradient,) = torch.autograd.grad(terms["distillation"], learner.boosted.logits)
    assert gradient[0, 2] == 0


def test_balanced_distillation_by_hand():
    teacher = torch.tensor([[2.0, 0.0]])  # shares 0.731059 and 0.268941
    alike, skewed = torch.ones(2), torch.tensor([0.5, 1.5])  # skewed: 0.475369 and 0.524631
    assert balanced_distillation(torch.zeros(1, 2), teacher, alike).item() == pytest.approx(math.log(2), abs=1e-6)
    assert balanced_distillation(teacher, teacher, alike).item() == pytest.approx(0.582203, abs=1e-6)
    expected = 0.475369 * 0.313262 + 0.524631 * 1.313262
    assert balanced_distillation(teacher, teacher, skewed).item() == pytest.approx(expected, abs=1e-5)


def test_the_balanced_shares_sum_to_1_whatever_the_scale_of_the_weights():
    teacher = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 5.0]])
    logits = torch.tensor([[0.3, 0.2, 0.1], [1.0, -1.0, 0.0]], requires_grad=True)
    found = []
    for scale in (1.0, 10.0):
        loss = balanced_distillation(logits, teacher, scale * torch.tensor([0.2, 0.9, 1.9]))
        (gradient,) = torch.autograd.grad(loss, logits)  # (softmax - q') / (t n): sums to 0 where q' sums to 1
        assert gradient.sum(1).abs().max() < 1e-7
        found.append(loss.item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_beta2_of_0_is_plain_distillation():
    teacher, logits = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.3, 0.2, 0.1]])
    plain = distillation(logits, teacher, 2.0)
    torch.testing.assert_close(balanced_distillation(logits, teacher, balance_weights([3, 9, 500], 0.0)), plain)


def test_compression_teaches_the_student_by_the_weights_of_beta2():
    learner = boosting()
    learner.net = Fixed([[2.0, 0.0, 0.0]])
    learner.weights = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.5, 0.5]])
    shares = [weight * math.exp(z / 2) for weight, z in zip((2.0, 0.5, 0.5), (2.0, 0.0, 3.0), strict=True)]
    logs = [z - math.log(math.e + 2) for z in (1.0, 0.0, 0.0)]
    expected = -sum(share / sum(shares) * log for share, log in zip(shares, logs, strict=True))
    loss = learner.compression_loss(batch(0))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert learner.net.logits.grad.abs().sum() > 0 and learner.boosted.logits.grad is None


# what it equals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_the_first_experience_trains_what_finetune_trains(learn, stream):
    found, expected = learn("foster", stream), learn("finetune", stream)
    assert differing(found.net(0), expected.net(0)) == []
    assert differing(found.net(1), expected.net(1))


def test_a_strength_of_0_trains_as_without_distillation(learn):
    class Without(FOSTER):
        def loss(self, batch):
            found = super().loss(batch)
            return {k: v for k, v in found.items() if k != "distillation"} if isinstance(found, dict) else found

    zero, without, full = learn("foster", hyperparameters={"strength": 0.0}), learn(Without), learn("foster")
    for index in range(3):
        assert differing(zero.net(index), without.net(index)) == []
        assert bool(differing(zero.net(index), full.net(index))) == (index > 0)


# what moves, and from where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_boosting_starts_from_the_old_network_and_moves_the_new_backbone_and_the_heads_alone(learn, stream):
    done, notes = stages(learn, stream)
    for index in (1, 2):
        old = below(done.net(index - 1), "net.backbone")
        classes = done.stream.signatures[index - 1].num_classes
        before, after = notes[index, "prepared"], notes[index, "boosting"]
        for branch in ("branches.0", "branches.1"):
            assert differing(below(before["boosted"], branch), old) == []
        head = before["boosted"]["head.weight"]
        assert torch.equal(head[:classes, :32], done.net(index - 1)["net.head.weight"])
        assert torch.equal(before["boosted"]["head.bias"][:classes], done.net(index - 1)["net.head.bias"])
        assert head[:classes, 32:].abs().min() > 0 and head[classes:].abs().min() > 0  # fresh
        assert differing(below(after["boosted"], "branches.0"), old) == []
        new = below(before["boosted"], "branches.1"), below(after["boosted"], "branches.1")
        assert len(differing(*new)) == len(old)  # all of it, statistics too
        assert differing(before["extra"], after["extra"]) == ["bias", "weight"]
        assert differing(before["net"], after["net"]) == []  # the old head, and the student to be


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_compression_moves_the_student_alone_which_starts_as_the_old_network(learn, stream):
    done, notes = stages(learn, stream)
    for index in (1, 2):
        before, after = notes[index, "boosting"], notes[index, "compression"]
        classes = done.stream.signatures[index - 1].num_classes
        assert differing(below(before["net"], "backbone"), below(done.net(index - 1), "net.backbone")) == []
        assert torch.equal(before["net"]["head.weight"][:classes], done.net(index - 1)["net.head.weight"])
        for name in ("boosted", "extra", "weights"):
            assert differing(before[name], after[name]) == []
        same = after["net"].keys() - differing(before["net"], after["net"])
        assert same <= {f"backbone.stages.{k}.0.bias" for k in (0, 1)}  # in front of batch norm: no gradient, no decay
        assert differing(after["net"], below(done.net(index), "net")) == []  # what is carried


@pytest.mark.parametrize("old_features", ["zero", "trained"])
def test_new_rows_on_old_features_are_trained_or_kept_at_zero(learn, old_features):
    _, notes = stages(learn, old_features=old_features)
    for index in (1, 2):
        classes = 2 * index
        blocks = [notes[index, name]["boosted"]["head.weight"][classes:, :32] for name in ("prepared", "boosting")]
        if old_features == "zero":
            assert not any(block.any() for block in blocks)
        else:
            assert (blocks[0] != blocks[1]).all()
        rest = [notes[index, name]["boosted"]["head.weight"][:classes, :32] for name in ("prepared", "boosting")]
        assert not torch.equal(*rest)


@pytest.mark.parametrize("aligned", ["teacher", "student", None])
def test_alignment_is_of_the_one_asked_for(learn, aligned):
    _, notes = stages(learn, **({f"align_{aligned}": True} if aligned else {}))
    for index in (1, 2):
        trained = {"teacher": notes[index, "boosting"]["boosted"], "student": notes[index, "compression"]["net"]}
        end = {"teacher": notes[index, "end"]["boosted"], "student": notes[index, "end"]["net"]}
        for name in ("teacher", "student"):
            changed = ["head.weight"] if name == aligned else []
            assert differing(trained[name], end[name]) == changed
            if name == aligned:
                norms = end[name]["head.weight"].norm(dim=1)
                assert norms[2 * index :].mean().item() == pytest.approx(norms[: 2 * index].mean().item(), rel=1e-6)
                assert torch.equal(end[name]["head.weight"][: 2 * index], trained[name]["head.weight"][: 2 * index])
        if aligned == "teacher":  # before compression, which then sees it
            assert differing(notes[index, "compression"]["boosted"], end["teacher"]) == []


# phases -------------------------------------------------------------------------------------------------------------


def phases_of(**hyperparameters):
    learner = bare("foster", classes=[2, 2], **hyperparameters)
    stream = toy_stream()
    experience = Experience(signatures([2, 2])[1], stream[1].train)
    learner.prepare(experience)
    return learner, list(learner.phases(experience))


def test_compression_is_as_long_as_boosting_unless_it_says_otherwise_and_decays_no_weight():
    configured = Recipe(epochs=170, first={"epochs": 200, "weight_decay": 0.3})
    for epochs, expected in ((None, 170), (130, 130)):
        _, (boosting, compression) = phases_of(compression_epochs=epochs)
        assert [phase.name for phase in (boosting, compression)] == ["boosting", "compression"]
        first, second = configured.of(boosting, 1), configured.of(compression, 1)
        assert (first.epochs, second.epochs) == (170, expected)
        decays = [r.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["weight_decay"] for r in (first, second)]
        assert decays == [5e-4, 0.0]
    _, (_, compression) = phases_of(compression_decay=0.01)
    assert compression.weight_decay == 0.01


def test_the_first_experience_is_one_main_phase():
    learner = bare("foster", classes=[2])
    experience = Experience(signatures([2])[0], toy_stream()[0].train)
    learner.prepare(experience)
    (phase,) = learner.phases(experience)
    assert phase.main and phase.epochs is None and learner.boosted is None
    assert torch.is_tensor(learner.loss(batch(0, 1)))


def test_each_phase_optimises_its_own_parameters():
    learner, (boosting, compression) = phases_of()
    backbone = count_parameters(learner.net.backbone)
    sizes = [sum(p.numel() for p in phase.parameters) for phase in (boosting, compression)]
    assert sizes == [backbone + (64 + 1) * 4 + (32 + 1) * 4, backbone + (32 + 1) * 4]
    assert not any(p.requires_grad for p in learner.boosted.parameters())  # once compression was asked for
    learner.train_mode()
    assert not any(layer.training for layer in learner.boosted.modules())


# what is carried, and answers ---------------------------------------------------------------------------------------


def sizes_of(done):
    backbone = toy_factory(done.stream, seed=0).backbone()
    return count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers()), 32


def images_of(done):
    return torch.cat([done.stream.test(i).pixels for i in range(3)]).float() / 255


def test_the_student_alone_is_carried_and_charged_and_two_backbones_more_are_billed_in_training(learn):
    done = learn("foster")
    p, b, d = sizes_of(done)
    for index, held in enumerate([10, 8, 6]):
        c, old = 2 * (index + 1), 2 * index
        expected = {"parameters": 4 * (p + d * c + c), "buffers": 4 * b, "exemplars": 432 * held, "labels": held}
        assert done.ledger(index) == expected
        assert done.record.results["ledger"][index]["totals"]["survey"]["total"] == 4 * p + 432 * held
        lines = done.trained_with(index)
        billed = {kind: sum(v for k, v in lines.items() if k.startswith(kind)) for kind in ("boosted", "extra_head")}
        assert billed["boosted"] == (4 * (2 * (p + b) + (2 * d + 1) * c) if old else 0)
        assert billed["extra_head"] == (4 * (d + 1) * c if old else 0)


def test_the_student_answers(learn):
    done = learn("foster")
    learner = done.learner(2)
    learner.net.eval()
    with torch.no_grad():
        expected = learner.net(images_of(done)).logits
    assert torch.equal(done.run.work.learners.scores(learner, images_of(done)), expected)
    assert learner.boosted is None


def test_a_kept_teacher_answers_and_is_carried_with_the_student(learn):
    done = learn("foster", hyperparameters={"keep": "teacher"})
    p, b, d = sizes_of(done)
    for index, held in enumerate([10, 8, 6]):
        c = 2 * (index + 1)
        student, teacher = 4 * (p + (d + 1) * c), 4 * (2 * p + (2 * d + 1) * c) if index else 0
        expected = {"parameters": student + teacher, "buffers": 4 * b * (3 if index else 1)}
        assert done.ledger(index) == expected | {"exemplars": 432 * held, "labels": held}
        survey = done.record.results["ledger"][index]["totals"]["survey"]["total"]
        assert survey == 4 * p * (2 if index else 1) + 432 * held
    learner = done.learner(2)
    for net in (learner.net, learner.boosted):
        net.eval()
    with torch.no_grad():
        student, teacher = (net(images_of(done)).logits for net in (learner.net, learner.boosted))
    assert torch.equal(done.run.work.learners.scores(learner, images_of(done)), teacher)
    assert not torch.equal(student, teacher)


def test_what_answers_changes_nothing_that_is_learned(learn):
    student, teacher = learn("foster"), learn("foster", hyperparameters={"keep": "teacher"})
    _, notes = stages(learn)
    for index in range(3):
        assert differing(student.net(index), teacher.net(index)) == []
        if index:
            carried = below(dict(teacher.state(index).tensors), "boosted")
            assert differing(carried, notes[index, "end"]["boosted"]) == []


@pytest.mark.parametrize(
    "rule",
    [rules.state_survives_the_round_trip, rules.the_ledger_is_the_checkpoint,
     rules.a_resumed_run_ends_where_the_straight_run_ends, predict_scores_each_class_seen],
    ids=lambda rule: rule.__name__,
)  # fmt: skip
def test_the_contract_holds_with_a_kept_teacher_and_every_option_on(rule, with_every_option):
    rule(with_every_option)


@pytest.fixture(scope="module")
def with_every_option():
    options = {"keep": "teacher", "old_features": "zero", "align_teacher": True, "align_student": True}
    return StrategySubject("foster", options | {"compression_epochs": 1})


def test_exemplars_are_chosen_by_the_features_of_both_backbones(learn):
    seen = {}

    def see(when, learner, experience):
        if when == "done" and experience.index == 2:
            for slot in (4, 5):
                images = experience.train.of_class(slot)
                features = extract(learner.boosted, images)
                assert features.shape == (12, 64)
                unit = features / features.norm(dim=1, keepdim=True)
                nearest = (unit - unit.mean(0)).norm(dim=1).argsort()[:3]
                seen[slot] = torch.equal(learner.memory.of_class(slot).pixels, images[nearest].pixels)

    learn(observed("foster", see), hyperparameters={"selection": "closest_to_mean"}, budget=Budget(exemplars=18))
    assert seen == {4: True, 5: True}


def test_both_networks_answer_where_both_are_carried(learn):
    assert list(learn("foster").record.results["answers"]) == ["student", "nearest_mean"]
    done = learn("foster", hyperparameters={"keep": "teacher"})
    results, learner = done.record.results, done.learner(2)
    assert results["answer"] == "teacher" and list(results["answers"]) == ["teacher", "nearest_mean", "student"]
    images = done.stream.test(0).pixels.float() / 255
    learner.net.eval(), learner.boosted.eval()
    (found,) = learner.further_answers(images, learner.boosted(images)).values()
    assert torch.equal(found, learner.net(images).logits)
    assert torch.equal(learner.predict(images), learner.boosted(images).logits)
