"""MAS: importance by the gradient of the outputs' length, merged, and a quadratic pull."""

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures
from torch import Tensor, nn

from cil.data import Samples
from cil.models import Output
from cil.models.base import count_parameters
from cil.streams import Experience
from cil.testing.toy import toy_factory


class Scaled(nn.Module):
    """Two outputs, factor (scale * x + shift): weights whose gradients are found by hand."""

    def __init__(self, factor: float = 1.0, scale: tuple[float, float] = (0.5, -2.0), shift: float = 0.0) -> None:
        super().__init__()
        self.factor = factor
        self.scale = nn.Parameter(torch.tensor(scale))
        self.shift = nn.Parameter(torch.full((2,), shift))

    def forward(self, images: Tensor) -> Output:
        features = self.factor * (self.scale * images.flatten(1) + self.shift)
        return Output(features, features)


def data(*points: tuple[int, int], slots: tuple[int, ...] | None = None) -> Experience:
    """Each point: two pixels, 0 or 1."""
    pixels = torch.tensor(points, dtype=torch.uint8).reshape(-1, 1, 1, 2) * 255
    labels = torch.tensor(slots or (0,) * len(points))
    return Experience(signatures([1])[0], Samples.from_arrays(pixels, labels))


def importance(experience, net=None, **hyperparameters):
    learner = bare("mas", classes=[2], **hyperparameters)
    learner.net = net or Scaled()
    learner.after_experience(experience)
    return {name: value.tolist() for name, value in learner.importance.items()}


# importance ---------------------------------------------------------------------------------------------------------


def test_importance_is_the_mean_size_of_the_gradient_of_the_squared_length():
    # of scale: 2 scale x^2, so (1, 0) and (1, -4); of shift: 2 scale x, the same here
    assert importance(data((1, 0), (1, 1))) == {"scale": [1.0, 2.0], "shift": [1.0, 2.0]}


def test_by_the_norm_it_is_the_gradient_of_the_length():
    long = 4.25**0.5  # of (0.5, -2)
    expected = pytest.approx([(1 + 0.5 / long) / 2, (2 / long) / 2])
    assert importance(data((1, 0), (1, 1)), function="norm")["scale"] == expected


def test_at_outputs_of_0_the_norm_has_no_importance_instead_of_no_number():
    assert importance(data((0, 0)), function="norm") == {"scale": [0.0, 0.0], "shift": [0.0, 0.0]}


def test_what_cancels_in_a_batch_does_not_cancel_image_by_image():
    net = Scaled(scale=(1.0, 1.0), shift=-0.5)  # outputs +-1/2, whose gradients are +-1
    assert importance(data((1, 0), (0, 1)), net)["shift"] == pytest.approx([1.0, 1.0])
    assert importance(data((1, 0), (0, 1)), net, batch_size=2)["shift"] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_with_larger_batches_it_is_the_size_of_their_sums_over_the_number_of_images():
    # of shift: 2 scale x summed over three images, two of them (1, 1) and one (1, 0): (3, -8) / 3
    points = data((1, 1), (1, 0), (1, 1))
    for size in (1, 2, 3, 8):  # all of one sign
        assert importance(points, batch_size=size)["shift"] == pytest.approx([1.0, 8 / 3])


@pytest.mark.parametrize(("function", "power"), [("squared", 2), ("norm", 1)])
@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_outputs_scaled_by_a_scale_importance_by_a_squared_or_by_its_size(function, power, factor):
    points = data((1, 0), (1, 1), (0, 1))
    one, other = (importance(points, Scaled(a), function=function)["scale"] for a in (1.0, factor))
    assert other == pytest.approx([abs(factor) ** power * value for value in one], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_labels_play_no_part(learn, batch_size):
    done = learn("mas")
    learner = done.learner(1)
    learner.batch_size = batch_size
    train = done.stream[1].train
    found = [
        learner._importance_of(Experience(done.stream.signatures[1], train.with_slots(slots)))
        for slots in (train.slots, train.slots.flip(0), torch.zeros_like(train.slots))
    ]
    assert differing(found[0], found[1]) == differing(found[0], found[2]) == []
    assert all(value.min() >= 0 and value.isfinite().all() for value in found[0].values())
    assert max(value.max() for value in found[0].values()) > 0


def test_it_is_taken_in_evaluation_mode_and_moves_nothing(learn):
    seen = {}

    def see(when, learner, experience):
        seen[when] = bits(learner.net)
        if when == "trained":
            learner.net.train()  # whatever mode it is in
        if when == "done":
            assert differing(seen["trained"], seen["done"]) == []
            assert learner.net.training

    learn(observed("mas", see))


# merging ------------------------------------------------------------------------------------------------------------


def merged(merge, **hyperparameters):
    """Three old outputs and one new: importances of 4 before, and of 1 (and 2 for a row that is new) found now."""
    learner = bare("mas", classes=[3], merge=merge, heads=True, **hyperparameters)
    learner.before_experience(None)
    learner.grow(signatures([3, 1])[1])
    learner.importance = {name: torch.full_like(value, 4.0) for name, value in learner.importance.items()}
    found = {name: torch.ones_like(value) for name, value in learner.importance.items()}
    found["head.weight"][3:], found["head.bias"][3:] = 2.0, 2.0
    object.__setattr__(learner, "_importance_of", lambda experience: found)
    learner.after_experience(None)
    return learner.importance


@pytest.mark.parametrize(("merge", "expected"), [("half", 2.5), ("classes", 3 / 4 * 4 + 1 / 4), ("sum", 5.0)])
def test_old_and_new_importances_are_merged_and_new_rows_take_the_new_ones_whole(merge, expected):
    for name, value in merged(merge).items():
        rows = 3 if name.startswith("head") else len(value)
        torch.testing.assert_close(value[:rows], torch.full_like(value[:rows], expected))
        assert (value[rows:] == 2.0).all()


@pytest.mark.parametrize("merge", ["half", "classes", "sum"])
def test_the_first_experience_has_nothing_to_merge(merge):
    assert importance(data((1, 0), (1, 1)), merge=merge)["scale"] == [1.0, 2.0]


# the penalty --------------------------------------------------------------------------------------------------------


def test_the_loss_is_new_cross_entropy_and_lambda_times_the_pull_without_a_half():
    learner = bare("mas", classes=[2, 2], strength=10.0)
    learner.net = Fixed([[0.0, 0.0, 1.0, 3.0]])
    learner.anchor, learner.importance = {"logits": torch.tensor([[1.0, 0.0]])}, {"logits": torch.full((1, 4), 0.5)}
    terms = learner.loss(batch(3))
    assert terms["new"].item() == pytest.approx(0.126928, abs=1e-5)
    assert terms["penalty"].item() == pytest.approx(10 * 0.5 * 1.0, abs=1e-5)
    terms["penalty"].backward()
    assert learner.net.logits.grad.tolist() == [[pytest.approx(-10.0), 0.0, 0.0, 0.0]]  # pulled back up
    learner.anchor = None
    assert learner.loss(batch(3)).keys() == {"new"}


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_penalty_and_gradient_are_exactly_zero_when_an_experience_begins(learn, stream, heads):
    seen = []

    def see(when, learner, experience):
        if when in ("prepared", "trained") and experience.index:
            slot = learner.old_classes
            penalty = learner.loss(batch(slot, slot))["penalty"]
            seen.append((penalty.item() > 0, any(g.any() for g in learner.gradient(penalty))))

    learn(observed("mas", see), stream, hyperparameters={"heads": heads})
    assert seen == [(False, False), (True, True)] * 2


@pytest.mark.parametrize("method", ["mas", "si"])
def test_rows_of_old_classes_do_not_decay_and_new_ones_learn(learn, method):
    """FACIL keeps old heads from the optimizer; a head that is pulled back is left to it."""
    done = learn(method)
    for index, old in ((1, 2), (2, 4)):
        before, after = done.state(index - 1).tensors, done.state(index).tensors
        for name in ("net.head.weight", "net.head.bias"):
            assert torch.equal(before[name], after[name][:old])
            assert not torch.equal(after[name][old:], torch.zeros_like(after[name][old:]))
        assert not any(name.startswith("rows") for name in after)
    done = learn(method, hyperparameters={"heads": True})
    assert not torch.equal(done.net(0)["net.head.weight"], done.net(1)["net.head.weight"][:2])


def test_the_head_is_free_unless_it_is_held_back_too():
    for heads in (False, True):
        learner = bare("mas", classes=[2], heads=heads)
        assert any(name.startswith("head.") for name in learner.importance) == heads
        assert any(name.startswith("backbone.") for name in learner.importance)


def test_a_weight_that_does_not_learn_has_no_importance():
    learner = bare("mas")
    learner.net = Scaled()
    learner.net.shift.requires_grad_(False)
    learner.num_classes = 2
    learner.after_experience(data((1, 0), (1, 1)))
    assert {name: value.tolist() for name, value in learner.importance.items()} == {"scale": [1.0, 2.0]}


@pytest.mark.parametrize("heads", [False, True])
def test_importances_are_carried_at_the_size_of_the_backbone_or_of_all_weights(learn, heads):
    done = learn("mas", hyperparameters={"heads": heads})
    backbone = count_parameters(toy_factory(done.stream, seed=0).backbone())
    for index in range(3):
        outputs = 2 * (index + 1)
        assert set(done.ledger(index)) == {"parameters", "buffers", "statistics"}
        assert done.ledger(index)["statistics"] == 4 * (backbone + (33 * outputs if heads else 0))
        anchors = sum(size for name, size in done.trained_with(index).items() if name.startswith("anchor."))
        assert anchors == (4 * (backbone + (33 * (outputs - 2) if heads else 0)) if index else 0)
