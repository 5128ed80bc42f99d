"""DyTox: a token and a classifier an experience, old ones frozen, one encoder for all, tuned on a balanced set."""

import math
from dataclasses import replace

import pytest
import torch
from small_runs import ONE_STEP, PIXELS, Fixed, bare, batch, bits, differing, observed, regrouped, signatures

from cil.api import plan
from cil.cli.build import build
from cil.cli.compose import compose
from cil.errors import ConfigError
from cil.memory import Budget, herd
from cil.models import count_parameters, extract
from cil.strategies.dytox import DyTox
from cil.streams import Experience, Stream
from cil.streams.base import ExperienceData
from cil.testing import toy_stream
from cil.testing.toy import toy_factory

LOG = math.log
D = 32  # numbers of a toy token


class Given(Fixed):
    token_dim = 2


class FixedHead(torch.nn.Module):
    """Weights (outputs, 2) on an embedding of two numbers."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, embedding):
        return embedding @ self.weight.T


def three_classes(**hyperparameters):
    """Two old classes and a new one, one image: logits (0, log 3, -log 3), so sigmoids 1/2, 3/4, 1/4."""
    learner = bare("dytox", **hyperparameters)
    learner.old_classes, learner.num_classes, learner.old_share = 2, 3, 2 / 3
    learner.net = Given([[0.0, LOG(3), -LOG(3)]], [[50.0, 70.0, 1.0, 0.0]])
    return learner


# the loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slot", "by_hand"), [
    (0, (LOG(2) + LOG(4) + LOG(4 / 3)) / 3),
    (1, (LOG(2) + LOG(4 / 3) + LOG(4 / 3)) / 3),
    (2, (LOG(2) + LOG(4) + LOG(4)) / 3),
])  # fmt: skip
def test_classes_are_learned_by_binary_cross_entropy_averaged_over_images_and_outputs(slot, by_hand):
    terms = three_classes().loss(batch(slot))
    assert terms.keys() == {"classes"}
    assert terms["classes"].item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(("kd_mean", "factor"), [("outputs", 1 / 2), ("batch", 1.0)])
def test_with_a_teacher_the_share_of_old_classes_weighs_the_terms(kd_mean, factor):
    """l = 2/3. The old outputs (0, log 3) are (1/4, 3/4) by softmax, the teacher's (log 4, 0) are (4/5, 1/5)."""
    learner = three_classes(kd_mean=kd_mean)
    alone = learner.loss(batch(1))["classes"].item()
    learner.teacher = Fixed([[LOG(4), 0.0]])
    terms = learner.loss(batch(1))
    assert terms.keys() == {"classes", "distillation"}
    assert terms["classes"].item() == pytest.approx(alone / 3, abs=1e-6)
    kd = -(0.8 * LOG(1 / 4) + 0.2 * LOG(3 / 4))
    assert terms["distillation"].item() == pytest.approx(2 / 3 * kd * factor, abs=1e-6)


def test_the_temperature_softens_teacher_and_student():
    learner = three_classes(temperature=2.0)
    learner.net = Given([[0.0, 2 * LOG(3), 9.0]])
    learner.teacher = Fixed([[2 * LOG(4), 0.0]])
    kd = -(0.8 * LOG(1 / 4) + 0.2 * LOG(3 / 4))
    assert learner.loss(batch(1))["distillation"].item() == pytest.approx(2 / 3 * kd / 2, abs=1e-6)


def test_the_distillation_has_no_gradient_where_the_student_is_the_teacher():
    learner = three_classes()
    learner.teacher = Fixed([[0.0, LOG(3)]])
    (gradient,) = torch.autograd.grad(learner.loss(batch(1))["distillation"], learner.net.logits)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("slots", "by_hand"), [
    # the newest embedding (1, 0) gives the logits (0, log 3), so sigmoids 1/2 and 3/4; output 0 is for all old classes
    ((0,), (LOG(2) + LOG(4)) / 2),
    ((1,), (LOG(2) + LOG(4)) / 2),
    ((2,), (LOG(2) + LOG(4 / 3)) / 2),
])  # fmt: skip
def test_the_divergence_head_sees_the_newest_embedding_and_one_class_for_all_old_ones(slots, by_hand):
    learner = three_classes(divergence=0.25)
    learner.divergence_head = FixedHead([[0.0, 9.0], [LOG(3), 9.0]])
    terms = learner.loss(batch(*slots))
    assert terms.keys() == {"classes", "divergence"}
    assert terms["divergence"].item() == pytest.approx(0.25 * by_hand, abs=1e-6)
    (gradient,) = torch.autograd.grad(terms["divergence"], learner.net.features)
    assert not gradient[:, :2].any() and gradient[:, 2:].all()


def test_the_second_phase_knows_no_divergence_and_distils_only_where_it_is_asked_to():
    for asked, expected in ((False, {"classes"}), (True, {"classes", "distillation"})):
        learner = three_classes(tuning_teacher=asked)
        learner.teacher, learner.divergence_head = Fixed([[LOG(4), 0.0]]), FixedHead([[0.0, 9.0], [LOG(3), 9.0]])
        terms = learner.tuning_loss(batch(1))
        assert terms.keys() == expected
        full = (LOG(2) + LOG(4 / 3) + LOG(4 / 3)) / 3
        assert terms["classes"].item() == pytest.approx(full / 3 if asked else full, abs=1e-6)


def test_the_first_experience_is_binary_cross_entropy_alone():
    learner = bare("dytox", classes=[2])
    learner.prepare(Experience(signatures([2])[0], None))
    assert learner.divergence_head is None and learner.loss(batch(0, 1)).keys() == {"classes"}


def test_the_divergence_head_has_an_output_for_each_new_class_and_one_for_the_old():
    learner = bare("dytox", classes=[2, 3])
    learner.prepare(Experience(signatures([2, 3])[1], None))
    assert learner.divergence_head(torch.zeros(1, D)).shape == (1, 4)
    assert learner.loss(batch(0, 4)).keys() == {"classes", "divergence"}


# what is frozen, and when -------------------------------------------------------------------------------------------


def watched(seen, **more):
    """DyTox, with the network noted before, between and after the phases."""

    class Watched(DyTox):
        def phases(self, experience):
            for phase in super().phases(experience):
                seen[experience.index, phase.name, "start"] = bits(self.net)
                yield phase
                seen[experience.index, phase.name, "end"] = bits(self.net)

    for name, value in more.items():
        setattr(Watched, name, value)
    return Watched


def parts(names):
    return {
        ".".join(name.split(".")[:2]) if name.startswith(("tokens", "heads")) else name.split(".")[0] for name in names
    }


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_old_tokens_and_classifiers_never_move_and_the_encoder_only_in_the_first_phase(learn, stream):
    seen = {}
    learn(watched(seen), stream)
    for index in range(3):
        newest = {f"tokens.{index}", f"heads.{index}"}
        first = differing(seen[index, "main", "start"], seen[index, "main", "end"])
        assert parts(first) == {"encoder", "attention"} | newest
        assert {"encoder.embed.weight", "encoder.position", "encoder.blocks.0.attention.gate"} <= set(first)
        if index:
            second = differing(seen[index, "tuning", "start"], seen[index, "tuning", "end"])
            assert parts(second) == {"attention"} | newest
        else:
            assert (0, "tuning", "start") not in seen


def test_a_new_token_leaves_old_logits_as_they_were(learn):
    images, before = batch(*range(6)).images, {}

    def see(when, learner, experience):
        if not experience.index:
            return
        learner.net.eval()
        logits = learner.net(images).logits.detach()
        if when == "before":
            before["logits"] = logits
        elif when == "prepared":
            torch.testing.assert_close(logits[:, : learner.old_classes], before["logits"], rtol=1e-4, atol=1e-5)
            assert logits.shape[1] == learner.old_classes + 2
            before["seen"] = experience.index

    learn(observed("dytox", see))
    assert before["seen"] == 2


def test_the_second_phase_has_equally_many_images_of_each_class(learn):
    found = {}

    class Watched(DyTox):
        def phases(self, experience):
            for phase in super().phases(experience):
                if phase.name == "tuning":
                    found[experience.index] = phase.data.counts(), phase
                yield phase

    learn(Watched)
    assert {index: counts for index, (counts, _) in found.items()} == {1: dict.fromkeys(range(4), 5),
                                                                       2: dict.fromkeys(range(6), 2)}  # fmt: skip
    phase = found[1][1]
    assert (phase.epochs, phase.lr, phase.schedule, phase.main) == (2, 5e-5, "constant", False)
    assert DyTox(toy_factory(toy_stream(), seed=0, model=DyTox.toy_model), Budget()).tuning_epochs == 20


def test_without_exemplars_there_is_no_second_phase(learn):
    done = learn("dytox", budget=Budget(exemplars=0), recipe=ONE_STEP)
    lines = [line["values"] for line in done.record.lines() if line["kind"] == "epoch"]
    assert len(lines) == 3


def test_no_tuning_epochs_is_the_first_phase_alone_bit_for_bit(learn):
    class Plain(DyTox):
        def phases(self, experience):
            yield next(iter(super().phases(experience)))

    none, plain, full = learn("dytox", hyperparameters={"tuning_epochs": 0}), learn(Plain), learn("dytox")
    for index in range(3):
        assert differing(dict(none.state(index).tensors), dict(plain.state(index).tensors)) == []
        assert bool(differing(none.net(index), full.net(index))) == (index > 0)


def test_no_divergence_is_training_without_the_head_bit_for_bit(learn):
    class Without(DyTox):
        def loss(self, batch):
            return {name: term for name, term in super().loss(batch).items() if name != "divergence"}

        def tuning_loss(self, batch):
            return super().tuning_loss(batch)["classes"]

    none, without, full = learn("dytox", hyperparameters={"divergence": 0.0}), learn(Without), learn("dytox")
    for index in range(3):
        assert differing(none.net(index), without.net(index)) == []
        assert bool(differing(none.net(index), full.net(index))) == (index > 0)
        assert not [name for name in none.trained_with(index) if name.startswith("divergence")]


def test_the_teacher_is_used(learn):
    class Untaught(DyTox):
        def before_experience(self, experience):
            pass

    assert differing(learn(Untaught).net(1), learn("dytox").net(1))


def test_the_configured_encoder_is_the_one_that_is_trained():
    """The factory keys its backbones by seed: the first one is the encoder."""
    factory = toy_factory(toy_stream(), seed=0, model=DyTox.toy_model)
    expected = bits(toy_factory(toy_stream(), seed=0, model=DyTox.toy_model).backbone())
    assert differing(bits(DyTox(factory, Budget()).net.encoder), expected) == []


def test_images_are_normalised_as_the_stream_says():
    learner = bare("dytox", classes=[2])
    seen = []
    learner.net.encoder.embed.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    images = batch(0, 1).images
    learner.predict(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (toy_stream().mean, toy_stream().std))
    torch.testing.assert_close(seen[0], (images - mean) / std)


# exemplars, tasks and bytes -----------------------------------------------------------------------------------------


def test_exemplars_are_chosen_with_the_network_that_is_carried(learn):
    done = learn("dytox")
    for index in range(3):
        learner = done.learner(index)
        for slot in done.stream.signatures[index].new_slots:
            images = done.stream[index].train.of_class(slot)
            features = extract(learner.net, images)
            assert features.shape[1] == D * (index + 1)
            chosen = images[herd(features / features.norm(dim=1, keepdim=True), 10 // learner.num_classes)]
            assert torch.equal(learner.memory.of_class(slot).pixels, chosen.pixels)


@pytest.mark.parametrize(("stream", "classes"), [("toy", [2, 2, 2]), ("uneven", [3, 1, 2])])
def test_carried_bytes_are_those_of_the_formula(learn, stream, classes):
    """4 (shared + D T + sum_i (2 D + (D + 1) |Y_i|)), no buffers, and the exemplars with their labels."""
    done = learn("dytox", stream)
    empty = DyTox(toy_factory(done.stream, seed=0, model=DyTox.toy_model), Budget())
    shared = count_parameters(empty.net)
    for index in range(3):
        held, t = done.record.results["exemplars"][index], index + 1
        weights = shared + D * t + sum(2 * D + (D + 1) * count for count in classes[:t])
        assert done.ledger(index) == {"parameters": 4 * weights, "exemplars": PIXELS * held, "labels": held}
        survey = done.record.results["ledger"][index]["totals"]["survey"]
        assert survey["total"] == 4 * (shared + D * t) + PIXELS * held
        assert 0 < held <= 10


def test_teacher_and_divergence_head_are_billed_in_training_and_not_carried(learn):
    done = learn("dytox")
    for index in range(3):
        assert not [name for name in done.state(index).tensors if name.startswith(("teacher", "divergence"))]
        lines = done.trained_with(index)
        head = sum(size for name, size in lines.items() if name.startswith("divergence_head"))
        teacher = sum(size for name, size in lines.items() if name.startswith("teacher"))
        assert head == (4 * (2 * D + 3 * (D + 1)) if index else 0)
        assert teacher == (done.ledger(index - 1)["parameters"] if index else 0)


def test_an_experience_without_new_classes_adds_no_token_and_moves_none(learn):
    done = learn("dytox", regrouped_without_new(), recipe=ONE_STEP)
    tokens = [sum(name.startswith("net.tokens.") for name in done.net(index)) for index in range(3)]
    assert tokens == [1, 2, 2]
    moved = differing(done.net(1), done.net(2))
    assert moved and not [name for name in moved if name.startswith(("net.tokens", "net.heads"))]
    assert done.record.results["class_counts"][:4] == [8] * 4


def regrouped_without_new():
    """Classes 0 and 1; 2 and 3; 0 and 2 again."""
    stream = regrouped((0, 1), (2, 3))
    again = stream[0].train[stream[0].train.slots == 0] + stream[1].train[stream[1].train.slots == 2]
    signature = replace(stream.signatures[1], index=2, new_slots=(), present=(0, 2), counts=again.counts())
    last = ExperienceData(lambda: again, lambda: stream.test(0)[torch.arange(0)])
    return Stream(
        name="again", classes=stream.classes[:4], order=stream.order[:4], signatures=[*stream.signatures, signature],
        parts=[*stream._parts, last], fingerprint="again", augment=stream.augment, mean=stream.mean, std=stream.std,
    )  # fmt: skip


def test_the_share_of_old_classes_is_that_of_classes_without_data_here():
    learner = bare("dytox", classes=[2, 3])
    assert learner.old_share == pytest.approx(2 / 5)
    learner.grow(replace(signatures([5])[0], index=2, new_slots=(), present=(0, 2)))
    assert learner.old_share == pytest.approx(3 / 5)
    assert bare("dytox", classes=[3]).old_share == 0


def test_old_images_that_come_back_count_as_old_for_the_divergence_head():
    learner = three_classes(divergence=1.0)
    learner.divergence_head = FixedHead([[0.0, 9.0], [LOG(3), 9.0]])
    learner.first_slot = 0
    assert learner.loss(batch(1))["divergence"].item() == pytest.approx((LOG(2) + LOG(4)) / 2, abs=1e-6)


# what is refused ----------------------------------------------------------------------------------------------------


def test_another_model_is_refused_before_training(tmp_path):
    run = plan("dytox", toy_stream(), "smallconv", recipe=ONE_STEP, run_dir=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"^strategy dytox needs the patches of a ConViT, not a SmallConvNet: .*model=convit"
    ):
        run.execute()


def test_the_surveys_recipe_is_adamw_with_five_epochs_of_warm_up_and_a_cosine(tmp_path):
    run = build(compose(["strategy=dytox", "recipe=survey", "stream=split_digits"]), root=tmp_path)
    optimizer = run.work.recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (1.25e-4, 1e-6)
    assert (run.work.recipe.epochs, run.work.recipe.batch_size) == (500, 128)
    schedule, rates = run.work.recipe.scheduler(optimizer, 500), []
    for _ in range(500):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-6) and rates[5] == pytest.approx(1.25e-4) == max(rates)
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[5 + 248] == pytest.approx(6.75e-5, rel=0.01) and rates[-1] == pytest.approx(1e-5, rel=1e-2)
