"""EWC: importance by squared gradients, merged by share of classes, and a quadratic pull."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures
from torch import Tensor, nn

from cil.data import Augment, Samples
from cil.memory import Budget
from cil.models import LinearHead, NetFactory, Output, build_backbone
from cil.strategies.ewc import EWC
from cil.streams import Experience, Signature
from cil.testing import toy_stream


class Linear(nn.Module):
    """W (x + shift) + c on the two pixels of an image, all zero to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))
        self.head = LinearHead(2)

    def forward(self, images: Tensor) -> Output:
        features = images.flatten(1) + self.shift
        return Output(self.head(features), features)

    def grow(self, count: int) -> None:
        self.head.grow(count)
        nn.init.zeros_(self.head.weight)


def linear(*classes: int, **hyperparameters) -> EWC:
    learner = EWC(Linear, Budget(), **{"cap": 1.0, **hyperparameters})  # type: ignore[arg-type]
    for signature in signatures(classes):
        learner.grow(signature)
    return learner


def data(*points: tuple[int, int, int]) -> Experience:
    """Each point: two pixels, 0 or 1, and a slot."""
    pixels = torch.tensor([[x, y] for x, y, _ in points], dtype=torch.uint8).reshape(-1, 1, 1, 2) * 255
    return Experience(signatures([1])[0], Samples.from_arrays(pixels, torch.tensor([slot for *_, slot in points])))


TWO = ((1, 0, 0), (0, 1, 1))  # with W = 0 both classes have p = 1/2, so gradients are +-1/2 times the pixels


# the Fisher ---------------------------------------------------------------------------------------------------------


def test_with_batches_of_one_the_fisher_is_the_mean_squared_gradient_of_a_sample():
    learner = linear(2, batch_size=1)
    learner.after_experience(data(*TWO))
    assert learner.fisher["head.weight"].tolist() == [[0.125, 0.125], [0.125, 0.125]]  # (1/4 + 0) / 2
    assert learner.fisher["head.bias"].tolist() == [0.25, 0.25]
    assert learner.fisher["shift"].tolist() == [0.0, 0.0]  # W is 0


def test_with_one_batch_it_is_the_square_of_the_mean_gradient():
    learner = linear(2, batch_size=2)
    learner.after_experience(data(*TWO))
    assert learner.fisher["head.weight"].tolist() == [[0.0625, 0.0625], [0.0625, 0.0625]]  # (1/2 + 0) / 2, squared
    assert learner.fisher["head.bias"].tolist() == [0.0, 0.0]


def test_every_mini_batch_counts_the_same_whatever_its_size():
    learner = linear(2, batch_size=2)
    learner.after_experience(data((1, 0, 0), (1, 0, 0), (0, 1, 1)))
    # {1, 2} then {3}: ((1/2)^2 + (1/2)^2) / 2, or a mixed pair, whose biases cancel, and one alone: (0 + (1/2)^2) / 2
    assert learner.fisher["head.bias"].tolist() in ([0.25, 0.25], [0.125, 0.125])
    first = learner.fisher["head.weight"][0].tolist()
    assert first in ([0.125, 0.125], [pytest.approx((0.0625 + 0.25) / 2), pytest.approx(0.0625 / 2)])


def test_at_weights_that_are_not_zero_the_fisher_is_that_of_softmax_regression():
    learner = linear(2, batch_size=1)
    with torch.no_grad():
        learner.net.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        learner.net.shift.copy_(torch.tensor([0.5, -0.25]))
    learner.after_experience(data((1, 0, 0), (1, 1, 1)))
    weight, bias, shift = torch.zeros(2, 2), torch.zeros(2), torch.zeros(2)
    for x, slot in ((torch.tensor([1.5, -0.25]), 0), (torch.tensor([1.5, 0.75]), 1)):
        wrong = torch.tensor([x[0], 2 * x[1]]).softmax(0)  # p - y
        wrong[slot] -= 1
        weight += (wrong[:, None] * x).square() / 2
        bias += wrong.square() / 2
        shift += (wrong * torch.tensor([1.0, 2.0])).square() / 2  # W' (p - y), W diagonal
    torch.testing.assert_close(learner.fisher["head.weight"], weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(learner.fisher["head.bias"], bias, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(learner.fisher["shift"], shift, rtol=1e-5, atol=1e-7)


def test_the_fisher_is_over_all_outputs_with_true_labels():
    learner = linear(1, 2, batch_size=2)
    learner.after_experience(data((1, 0, 1), (0, 1, 2)))
    # p = 1/3 each; mean gradients of the biases: 1/3, (1/3 - 2/3) / 2, the same. Of the old one 2/3 is new, 1/3 was 0
    assert learner.fisher["head.bias"].tolist() == pytest.approx([2 / 3 / 9, 1 / 36, 1 / 36], abs=1e-6)


def test_the_cap_is_on_the_mean_and_not_on_a_batch():
    learner = linear(2, batch_size=1, cap=0.2)
    learner.after_experience(data(*TWO))
    assert learner.fisher["head.weight"].tolist() == [[0.125, 0.125], [0.125, 0.125]]  # of 0.25 and 0
    assert learner.fisher["head.bias"].tolist() == pytest.approx([0.2, 0.2])  # of 0.25 and 0.25


def test_fishers_are_merged_by_share_of_classes_and_new_rows_take_the_new_one():
    learner = linear(1, 3, batch_size=1)
    for value in learner.fisher.values():
        value.fill_(0.4)
    learner.after_experience(data((1, 0, 1), (1, 0, 2), (1, 0, 3)))
    # p = 1/4; of the old output 1/16 for each sample; of a new one (9 + 1 + 1) / 16 / 3
    new, share = 11 / 48, 1 / 4
    assert learner.fisher["head.weight"][:, 0].tolist() == pytest.approx([share * 0.4 + 0.75 / 16, new, new, new])
    assert learner.fisher["head.weight"][:, 1].tolist() == pytest.approx([share * 0.4, 0, 0, 0])
    assert learner.fisher["head.bias"].tolist() == pytest.approx([share * 0.4 + 0.75 / 16, new, new, new])
    assert learner.fisher["shift"].tolist() == pytest.approx([share * 0.4, share * 0.4])


def test_without_new_classes_experiences_count_alike():
    learner = linear(2, batch_size=1)
    for index, merged in ((1, 0.4 / 2 + 0.25 / 2), (2, 0.4 * 2 / 3 + 0.25 / 3)):
        learner.grow(Signature(index, (), (0, 1), {0: 1, 1: 1}, (1, 1, 2), 2))
        for value in learner.fisher.values():
            value.fill_(0.4)
        learner.after_experience(data(*TWO))
        assert learner.fisher["head.bias"].tolist() == pytest.approx([merged, merged])


def test_growing_keeps_the_fisher_of_old_rows_and_gives_new_rows_none():
    learner = linear(2)
    learner.fisher["head.weight"].fill_(0.3)
    learner.grow(signatures([2, 1])[1])
    assert learner.fisher["head.weight"].tolist() == [[pytest.approx(0.3)] * 2] * 2 + [[0.0, 0.0]]
    assert {name: value.shape for name, value in learner.fisher.items()} == {
        name: value.shape for name, value in learner.net.named_parameters()
    }


def test_in_a_run_every_entry_lies_between_0_and_the_cap_and_some_are_capped(learn):
    done = learn("ewc")
    for index in range(3):
        fisher = torch.cat([t.flatten() for name, t in done.state(index).tensors.items() if name.startswith("fisher")])
        assert fisher.min() >= 0 and fisher.max() <= 1e-4 and fisher.count_nonzero() > 0.5 * len(fisher)
        assert (fisher == torch.tensor(1e-4)).any()


def test_the_fisher_is_taken_in_evaluation_mode_and_moves_no_statistics(learn):
    seen = {}

    def see(when, learner, experience):
        seen[when] = bits(learner.net)
        if when == "done":
            assert differing(seen["trained"], seen["done"]) == []

    learn(observed("ewc", see))
    assert differing(seen["prepared"], seen["trained"])


def test_in_training_mode_the_fisher_is_that_of_augmented_batches_and_statistics_move():
    """By hand: the squared gradient of one batch of augmented images in training mode."""
    learner = bare("ewc", classes=[2], fisher_mode="training", cap=1.0)
    learner.context.augment = Augment(flip=True, brightness=0.5)
    experience = Experience(signatures([2])[0], toy_stream()[0].train)
    before, twin = bits(learner.net), deepcopy(learner.net).train()
    learner.after_experience(experience)
    assert {name.rpartition(".")[2] for name in differing(before, bits(learner.net))} == {
        "running_mean", "running_var",
    }  # fmt: skip
    generator = learner.generator("fisher")
    rows = torch.randperm(len(experience.train), generator=generator)
    images = learner.context.augment(experience.train[rows].pixels, generator)
    nn.functional.cross_entropy(twin(images).logits, experience.train.slots[rows]).backward()
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(learner.fisher[name], weight.grad.square(), rtol=1e-4, atol=1e-9)


class Normed(Linear):
    """The same behind a batch norm, which has no statistics of a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, images: Tensor) -> Output:
        features = self.norm(images.flatten(1)) + self.shift
        return Output(self.head(features), features)


def test_in_training_mode_a_last_image_joins_the_batch_before_it():
    found = []
    for size in (2, 3):
        learner = EWC(Normed, Budget(), cap=1.0, batch_size=size, fisher_mode="training")  # type: ignore[arg-type]
        learner.grow(signatures([2])[0])
        learner.after_experience(data((1, 0, 0), (0, 1, 1), (1, 1, 1)))
        found.append(learner.fisher["head.bias"].tolist())
    assert found == [pytest.approx([1 / 36, 1 / 36])] * 2  # one batch of three each: (1/2 (1 - 2) / 3)^2


# the penalty --------------------------------------------------------------------------------------------------------


def test_a_parameter_of_importance_2e_5_that_moved_by_a_tenth_costs_1e_4():
    learner = linear(1, 1)
    learner.anchor = {"shift": torch.zeros(2)}
    learner.fisher["shift"].copy_(torch.tensor([2e-5, 1e-4]))
    with torch.no_grad():
        learner.net.shift[0] = 0.1
    images = torch.zeros(1, 1, 1, 2)
    terms = learner.loss(type(batch(1))(images, torch.tensor([1])))
    assert terms["penalty"].item() == pytest.approx(1000 / 2 * 2e-5 * 0.1**2, rel=1e-5)
    assert terms["penalty"].item() == pytest.approx(1e-4, rel=1e-5)
    terms["penalty"].backward()
    assert learner.net.shift.grad.tolist() == pytest.approx([1000 * 2e-5 * 0.1, 0.0])  # pulled back


def test_the_loss_is_new_cross_entropy_beside_the_penalty():
    learner = bare("ewc", classes=[2, 2], strength=10.0)
    learner.net = Fixed([[0.0, 0.0, 1.0, 3.0]])
    learner.anchor, learner.fisher = {"logits": torch.tensor([[1.0, 0.0]])}, {"logits": torch.full((1, 4), 0.5)}
    terms = learner.loss(batch(3))
    assert terms["new"].item() == pytest.approx(0.126928, abs=1e-5)
    assert terms["penalty"].item() == pytest.approx(10 / 2 * 0.5 * 1.0, abs=1e-5)
    learner.anchor = None
    assert learner.loss(batch(3)).keys() == {"new"}


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_penalty_and_gradient_are_exactly_zero_when_an_experience_begins(learn, stream):
    penalties = []

    def see(when, learner, experience):
        if when in ("prepared", "trained") and experience.index:
            assert {name: len(value) for name, value in learner.anchor.items() if "head" in name} == {
                "head.weight": learner.old_classes, "head.bias": learner.old_classes,
            }  # fmt: skip
            slot = learner.old_classes
            penalty = learner.loss(batch(slot, slot))["penalty"]
            penalties.append((penalty.item(), any(g.any() for g in learner.gradient(penalty))))

    learn(observed("ewc", see), stream)
    for start, end in zip(penalties[::2], penalties[1::2], strict=True):
        assert start == (0.0, False)
        assert end[0] > 0 and end[1]


def test_a_cosine_head_with_its_scale_is_held_back_too():
    backbone = partial(build_backbone, "smallconv", 3, 12)
    learner = EWC(NetFactory(backbone, head="cosine"), Budget())
    first, second = signatures([2, 2])
    learner.grow(first)
    learner.fisher["head.scale"] += 0.5
    learner.before_experience(Experience(first, Samples.from_arrays(torch.zeros(1, 3, 12, 12).byte(), torch.zeros(1))))
    learner.grow(second)
    with torch.no_grad():
        learner.net.head.scale.add_(0.1)
    assert learner.loss(batch(2, 3))["penalty"].item() == pytest.approx(1000 / 2 * 0.5 * 0.01, rel=1e-4)


# what it costs ------------------------------------------------------------------------------------------------------


def test_the_fisher_is_carried_at_the_size_of_the_weights_and_the_anchor_is_not(learn):
    done = learn("ewc")
    for index in range(3):
        ledger = done.ledger(index)
        assert set(ledger) == {"parameters", "buffers", "statistics"}
        assert ledger["statistics"] == ledger["parameters"]
        anchors = sum(size for name, size in done.trained_with(index).items() if name.startswith("anchor"))
        assert anchors == (done.ledger(index - 1)["parameters"] if index else 0)
