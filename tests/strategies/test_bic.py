"""BiC: distilled rehearsal, then two numbers for the new outputs, learned on images that were left out."""

import math

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures

from cil.data import Samples
from cil.engine.recipe import Recipe
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Budget
from cil.models.base import count_parameters
from cil.strategies.bic import BiasLayers, BiC
from cil.streams import Experience, Signature
from cil.testing import rules, uneven_stream
from cil.testing.toy import toy_factory

HALF = {"split": 0.5}  # of the few exemplars of a toy class: 2 of 5, 1 of 2


def layers(*pairs, counts):
    made = BiasLayers()
    for count in counts:
        made.grow(count)
    for pair, values in zip(made.pairs, pairs, strict=False):
        pair.data.copy_(torch.tensor(values))
    return made


def between_experiences(**hyperparameters):
    learner = bare("bic", classes=[2, 1], **hyperparameters)
    learner.net, learner.teacher = Fixed([[2.0, 0.0, 3.0]]), Fixed([[2.0, 0.0]])
    return learner


# the layers ---------------------------------------------------------------------------------------------------------


def test_a_fresh_layer_leaves_logits_as_they_are():
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layers(counts=[2, 1, 3])(logits), logits)


def test_each_task_has_its_own_two_numbers_and_a_teacher_with_fewer_passes_its_own():
    made = layers([2.0, 1.0], [-1.0, 0.5], [3.0, 0.0], counts=[2, 1, 3])
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    assert made(logits).tolist() == [[3.0, 5.0, -2.5, 12.0, 15.0, 18.0]]
    assert made(logits[:, :3]).tolist() == [[3.0, 5.0, -2.5]]


def test_a_task_has_the_outputs_of_its_new_classes_whatever_comes_back():
    learner = bare("bic", classes=[2])
    learner.grow(type(signatures([1])[0])(1, (2,), (0, 1, 2), {0: 4, 1: 4, 2: 4}, (3, 12, 12), 3))
    assert learner.bias.counts == [2, 1]


def test_within_a_task_the_ranking_stays_while_alpha_is_positive():
    logits = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    found = layers([1.0, 0.0], [0.2, -3.0], counts=[2, 3])(logits)
    assert torch.equal(found[:, 2:].argsort(1), logits[:, 2:].argsort(1))
    assert not torch.equal(found.argmax(1), logits.argmax(1))


# the first stage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new", "share"), [(2, 1, 2 / 3), (10, 10, 0.5), (90, 10, 0.9), (50, 10, 5 / 6)])
def test_both_terms_share_by_old_and_all_classes(old, new, share):
    learner = between_experiences()
    learner.old_classes, learner.num_classes = old, old + new
    terms = learner.loss(batch(0))
    assert terms["classes"].item() == pytest.approx((1 - share) * 1.349012, abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(share * 0.582203, abs=1e-5)
    assert terms.keys() == {"classes", "distillation"}


@pytest.mark.parametrize(("name", "given"), [("bic", {}), ("wa", {"strength": "balanced"})])
def test_an_experience_without_new_classes_is_learned_by_its_share_of_all_that_came(name, given):
    learner = bare(name, classes=[2], **given)
    for index in (1, 2):
        learner.grow(Signature(index, (), (0, 1), {0: 12, 1: 12}, (3, 12, 12), 2))
    learner.net, learner.teacher = Fixed([[2.0, 0.0]]), Fixed([[2.0, 0.0]])
    terms = learner.loss(batch(0))
    assert terms["classes"].item() == pytest.approx(0.126928 / 3, abs=1e-5)  # log(1 + e^-2)
    assert terms["distillation"].item() == pytest.approx(0.582203 * 2 / 3, abs=1e-5)


def test_student_and_teacher_are_corrected_by_the_old_layers():
    learner = between_experiences()
    learner.bias.pairs[0].data.copy_(torch.tensor([0.5, 1.0]))  # (2, 0) becomes (2, 1)
    terms = learner.loss(batch(0))
    assert terms["classes"].item() == pytest.approx((math.log(math.exp(2) + math.e + math.exp(3)) - 2) / 3, abs=1e-5)
    p = 1 / (1 + math.exp(-0.5))  # softmax of (2, 1) at temperature 2
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert terms["distillation"].item() == pytest.approx(2 / 3 * entropy, abs=1e-5)


def test_the_first_experience_is_cross_entropy_alone():
    learner = bare("bic", classes=[3])
    learner.net = Fixed([[0.0, 0.0, 3.0]])
    terms = learner.loss(batch(0))
    assert terms.keys() == {"classes"}
    assert terms["classes"].item() == pytest.approx(3.094923, abs=1e-5)


def test_without_validation_images_it_is_balanced_distillation_without_alignment_bit_for_bit(learn):
    given = {"strength": "balanced", "align": False}
    for stream in ("toy", "uneven"):
        balanced, plain = learn("wa", stream, hyperparameters=given), learn("bic", stream, hyperparameters={"split": 0})
        for index in range(3):
            assert differing(balanced.net(index), plain.net(index)) == []
            one, other = balanced.state(index).tensors, plain.state(index).tensors
            assert torch.equal(one["memory.images"], other["memory.images"])
        assert balanced.record.results["accuracy_matrix"] == plain.record.results["accuracy_matrix"]


def test_the_teacher_is_the_network_of_the_last_boundary_under_its_own_corrections(learn):
    seen, kept = [], {}

    def see(when, learner, experience):
        if experience.index == 0:
            assert learner.teacher is None
        elif when == "prepared":
            learner.net.eval()
            old = learner.bias(learner.teacher(experience.train.images).logits)
            loss = learner.loss(type(batch(0))(experience.train.images, experience.train.slots))["distillation"]
            p = (old / 2).softmax(1)
            share = learner.old_classes / learner.num_classes
            assert loss.item() == pytest.approx(-share * (p * p.log()).sum(1).mean().item(), abs=1e-6)
            kept["teacher"] = bits(learner.teacher)
            seen.append(not torch.equal(old, learner.teacher(experience.train.images).logits))
        elif when == "done":
            assert differing(kept["teacher"], bits(learner.teacher)) == []

    learn(observed("bic", see), hyperparameters=HALF)
    assert seen == [False, True]  # after the second experience there is something to correct


# the validation set -------------------------------------------------------------------------------------------------


def filled(old, held, new, images):
    """A learner with so many exemplars of each old class, and an experience of new ones; images differ in value."""
    learner = bare("bic", classes=[old, new])
    total = old * held + new * images
    pixels = torch.arange(total, dtype=torch.int32)[:, None].view(torch.uint8)[:, :3].reshape(-1, 3, 1, 1).contiguous()
    learner.memory.replace([Samples.from_arrays(pixels[: old * held], torch.arange(old).repeat_interleave(held))])
    slots = torch.arange(old, old + new).repeat_interleave(images)
    return learner, Experience(signatures([old, new])[1], Samples.from_arrays(pixels[old * held :], slots))


def numbers(samples):
    pixels = samples.pixels.flatten(1).int()
    return (pixels * torch.tensor([1, 256, 65536])).sum(1).tolist()


@pytest.mark.parametrize(("old", "held", "count"), [(10, 200, 20), (90, 22, 2), (10, 10, 1), (10, 9, 0), (2, 70, 7)])
def test_a_tenth_of_an_old_classs_exemplars_of_every_class_is_left_out(old, held, count):
    learner, experience = filled(old, held, 10, 300)
    train, validation = learner.stages(experience)
    assert validation.counts() == (dict.fromkeys(range(old + 10), count) if count else {})
    assert train.counts() == {slot: (held if slot < old else 300) - count for slot in range(old + 10)}
    assert sorted(numbers(train) + numbers(validation)) == list(range(old * held + 3000))
    assert len(list(learner.phases(experience))) == (2 if count else 1)


def test_validation_images_are_drawn_at_random_by_experience_and_the_same_when_asked_again():
    learner, experience = filled(4, 30, 2, 300)
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(len(purpose))
    first, again = (numbers(learner.stages(experience)[1]) for _ in range(2))
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(99)
    other = numbers(learner.stages(experience)[1])
    assert first == again != other
    assert first[:3] != [0, 1, 2] and other[:3] != [0, 1, 2]


def test_a_class_of_few_images_keeps_one_for_the_first_stage(learn):
    done = learn("bic", "uneven", hyperparameters={"split": 0.9}, budget=Budget(exemplars=40))
    learner, experience = done.learner(1), done.stream[2]
    learner.grow(experience.signature)
    train, validation = learner.stages(experience)  # old classes hold 6, 6, 5 and 9: eight of each are asked for
    assert validation.counts() == {0: 5, 1: 5, 2: 4, 3: 8, 4: 1, 5: 6}
    assert min(train.counts().values()) == 1


def test_nothing_is_left_out_without_new_classes_or_exemplars():
    learner, experience = filled(4, 30, 2, 10)
    again = Experience(type(experience.signature)(2, (), (4, 5), {4: 10, 5: 10}, (3, 1, 1), 6), experience.train)
    assert len(list(learner.phases(again))) == 1 and not len(learner.stages(again)[1])
    learner.memory.shrink(0)
    assert len(list(learner.phases(experience))) == 1


# the second stage ---------------------------------------------------------------------------------------------------


def test_its_loss_is_cross_entropy_of_corrected_logits_or_of_their_softmax():
    learner = between_experiences()
    learner.bias.pairs[1].data.copy_(torch.tensor([0.5, -1.5]))  # (2, 0, 3) becomes (2, 0, 0)
    assert learner.bias_loss(batch(0)).item() == pytest.approx(math.log(math.exp(2) + 2) - 2, abs=1e-5)
    learner = between_experiences(second_stage="survey")
    learner.bias.pairs[1].data.copy_(torch.tensor([0.5, -1.5]))
    p, q = math.exp(2) / (math.exp(2) + 2), 1 / (math.exp(2) + 2)
    expected = math.log(math.exp(p) + 2 * math.exp(q)) - p
    assert learner.bias_loss(batch(0)).item() == pytest.approx(expected, abs=1e-5)


class Noted(BiC):
    """Notes all that is held before the phases, and after each."""

    noted: list[list[dict]]
    seen: list[list]

    def phases(self, experience):
        notes = [self._bits()]
        type(self).noted.append(notes)
        for phase in super().phases(experience):
            yield phase
            notes.append(self._bits())

    def _bits(self):
        return bits(self.net) | bits(self.bias)

    def loss(self, batch):
        assert self.net.training and not any(pair.requires_grad for pair in self.bias.pairs)
        return super().loss(batch)

    def bias_loss(self, batch):
        assert self.net.training == self.as_survey
        assert [p.requires_grad for p in self.bias.parameters()] == [False] * (len(self.bias.pairs) - 1) + [True]
        assert not any(p.requires_grad for p in self.net.parameters())
        type(self).seen[-1].append(batch)
        return super().bias_loss(batch)

    def after_experience(self, experience):
        assert not any(pair.requires_grad for pair in self.bias.pairs)
        super().after_experience(experience)

    def before_experience(self, experience):
        type(self).seen.append([])
        super().before_experience(experience)


@pytest.mark.parametrize("second_stage", ["paper", "survey"])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_it_changes_two_numbers_and_as_in_the_surveys_code_running_statistics(learn, stream, second_stage):
    Noted.noted, Noted.seen = [], []
    learn(Noted, stream, hyperparameters=HALF | {"second_stage": second_stage}, budget=Budget(exemplars=24))
    assert [len(notes) for notes in Noted.noted] == [2, 3, 3]
    for index, (start, main, *rest) in enumerate(Noted.noted):
        assert not [name for name in differing(start, main) if name.startswith("pairs")]
        for end in rest:
            moved = {name.rpartition(".")[2] for name in differing(main, end) if not name.startswith("pairs")}
            statistics = {"running_mean", "running_var"}
            assert moved == (statistics if second_stage == "survey" else set())
            assert [name for name in differing(main, end) if name.startswith("pairs")] == [f"pairs.{index}"]
            assert main[f"pairs.{index}"].tolist() == [1.0, 0.0]
            assert (end[f"pairs.{index}"] != main[f"pairs.{index}"]).all()
    assert not Noted.seen[0] and Noted.seen[1] and Noted.seen[2]


def test_the_numbers_of_earlier_tasks_stay_and_the_first_task_has_none_to_learn(learn):
    done = learn("bic", hyperparameters=HALF)
    pairs = [done.state(index).tensors for index in range(3)]
    assert pairs[0]["bias.pairs.0"].tolist() == pairs[2]["bias.pairs.0"].tolist() == [1.0, 0.0]
    assert torch.equal(pairs[1]["bias.pairs.1"], pairs[2]["bias.pairs.1"])
    assert pairs[1]["bias.pairs.1"].tolist() != [1.0, 0.0]


def test_answers_are_corrected_logits(learn):
    done = learn("bic", hyperparameters=HALF)
    learner = done.learner(2)
    learner.net.eval()
    images = done.stream.test(0).images
    logits, (alpha, beta) = learner.net(images).logits, learner.bias.pairs[1].tolist()
    scores = done.run.work.learners.scores(learner, images)
    torch.testing.assert_close(scores[:, 2:4], alpha * logits[:, 2:4] + beta)
    assert torch.equal(scores[:, :2], logits[:, :2])


def test_on_logits_that_favour_new_classes_it_learns_to_hold_them_back():
    learner = bare("bic", classes=[1, 1])
    learner.net = Fixed([[0.0, 4.0], [0.0, 6.0]])  # both classes look new, the second one more so
    pair = learner.bias.pairs[1].requires_grad_(True)
    optimizer = torch.optim.SGD([pair], lr=0.1)
    for _ in range(3000):
        optimizer.zero_grad()
        learner.bias_loss(batch(0, 1)).backward()
        optimizer.step()
    corrected = learner.predict(batch(0, 1).images)
    assert corrected.argmax(1).tolist() == [0, 1] and pair[0] > 0 > pair[1]


def phases_of(done, index):
    """Name of each phase of an experience: its epochs and first learning rate."""
    lines = [line for line in done.record.lines() if line["kind"] == "epoch" and line["experience"] == index]
    return {
        name: (len(own), own[0]["values"]["lr"])
        for name in ("main", "bias")
        if (own := [line for line in lines if line["phase"] == name])
    }


def test_both_stages_are_equally_long_unless_it_says_otherwise(learn):
    recipe = Recipe(epochs=3, batch_size=8, first={"epochs": 4, "lr": 0.05})
    same = learn("bic", hyperparameters=HALF, recipe=recipe)
    assert phases_of(same, 0) == {"main": (4, 0.05)}
    assert phases_of(same, 1) == {"main": (3, 0.1), "bias": (3, 0.1)}
    own = learn("bic", hyperparameters=HALF | {"bias_epochs": 5, "bias_lr": 0.01}, recipe=recipe)
    assert phases_of(own, 2) == {"main": (3, 0.1), "bias": (5, 0.01)}


def test_exemplars_are_chosen_from_all_images_those_left_out_too(learn):
    left_out = []

    def see(when, learner, experience):
        if when == "trained" and experience.index:
            left_out.extend(numbers_of(learner.stages(experience)[1]))
        if when == "done" and experience.index:
            chosen.update(numbers_of(learner.memory.samples()))

    def numbers_of(samples):
        return [row.numpy().tobytes() for row in samples.pixels]

    chosen = set()
    learn(observed("bic", see), hyperparameters=HALF, budget=Budget(exemplars=24))
    assert chosen & set(left_out)


# what it costs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_eight_bytes_a_task_are_carried_beside_what_replay_carries(learn, stream):
    replay, done = learn("replay", stream), learn("bic", stream, hyperparameters=HALF)
    backbone = count_parameters(toy_factory(done.stream, seed=0).backbone())
    for index in range(3):
        c = done.stream.signatures[index].num_classes
        ledger = done.ledger(index)
        assert ledger["parameters"] == 4 * (backbone + 33 * c) + 8 * (index + 1)
        assert ledger == replay.ledger(index) | {"parameters": ledger["parameters"]}
        survey = done.record.results["ledger"][index]["totals"]["survey"]["total"]
        assert survey == replay.record.results["ledger"][index]["totals"]["survey"]["total"]
        teacher = sum(size for name, size in done.trained_with(index).items() if name.startswith("teacher."))
        assert teacher == (sum(replay.ledger(index - 1)[kind] for kind in ("parameters", "buffers")) if index else 0)


@pytest.mark.parametrize(
    "rule",
    [
        rules.a_resumed_run_ends_where_the_straight_run_ends,
        rules.processes_make_no_difference,
        rules.hooks_keep_to_themselves,
    ],
    ids=lambda rule: rule.__name__,
)
def test_the_contract_holds_with_a_second_stage(rule, with_a_second_stage):
    rule(with_a_second_stage)


@pytest.fixture(scope="module")
def with_a_second_stage():
    return StrategySubject("bic", HALF)


def test_a_run_that_is_interrupted_in_either_stage_goes_on(learn):
    rules.a_resumed_run_ends_where_the_straight_run_ends(StrategySubject("bic", HALF, uneven_stream()))
