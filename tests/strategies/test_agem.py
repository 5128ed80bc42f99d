"""A-GEM: the gradient is bent where it goes against that of a batch of exemplars."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import bare, batch, bits, differing

from cil.data import Samples
from cil.memory import Budget
from cil.strategies.agem import AGEM, project
from cil.strategies.finetune import Finetune


class AllOutputs(Finetune):
    """Finetune with the cross-entropy over all outputs."""

    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


def projected(gradient, reference):
    """``project`` on a gradient of two parts."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in gradient]
    for weight, value in zip(weights, gradient, strict=True):
        weight.grad = torch.tensor([value])
    project(weights, [torch.tensor([value]) for value in reference])
    return [weight.grad.item() for weight in weights]


def test_the_gradient_loses_what_goes_against_the_reference():
    assert projected([1.0, -2.0], [1.0, 1.0]) == [1.5, -1.5]
    assert projected([-1.0, 0.0], [2.0, 0.0]) == [0.0, 0.0]


def test_a_gradient_that_goes_along_or_across_stays():
    assert projected([1.0, 2.0], [1.0, 1.0]) == [1.0, 2.0]
    assert projected([1.0, -1.0], [1.0, 1.0]) == [1.0, -1.0]


def test_a_reference_of_zeros_changes_nothing():
    assert projected([1.0, -2.0], [0.0, 0.0]) == [1.0, -2.0]


def with_exemplars(seed=0, **hyperparameters):
    learner = bare("agem", classes=[2, 2], **hyperparameters)
    pixels = torch.randint(0, 256, (6, 3, 12, 12), generator=torch.Generator().manual_seed(seed)).byte()
    learner.memory.replace([Samples.from_arrays(pixels, torch.tensor([0, 0, 0, 1, 1, 1]))])
    learner.net.eval()  # so that gradients can be taken again
    return learner


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def reference_of(learner):
    """The gradient of all exemplars: as many as are drawn, so each is."""
    exemplars = learner.memory.samples()
    loss = F.cross_entropy(learner.net(exemplars.images).logits, exemplars.slots)
    return flat(torch.autograd.grad(loss, learner.trainable()))


def test_after_a_violation_the_gradient_is_orthogonal_to_that_of_the_exemplars():
    learner = with_exemplars(reference=6)
    learner.loss(batch(2, 3, 2, 3)).backward()
    before = flat(p.grad for p in learner.trainable())
    reference = reference_of(learner)
    assert before @ reference < 0
    learner.adjust_gradients(batch(2, 3, 2, 3))
    after = flat(p.grad for p in learner.trainable())
    expected = before - (before @ reference) / reference.square().sum() * reference
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)
    assert abs(float(after @ reference)) < 1e-4 * float(after.norm() * reference.norm())
    assert after.norm() < before.norm()


def test_without_a_violation_the_gradient_stays_bit_for_bit():
    learner = with_exemplars(reference=6)
    exemplars = learner.memory.samples()
    F.cross_entropy(learner.net(exemplars.images).logits, exemplars.slots).backward()
    before = [p.grad.clone() for p in learner.trainable()]
    learner.adjust_gradients(batch(2, 3))
    assert all(torch.equal(p.grad, old) for p, old in zip(learner.trainable(), before, strict=True))


def test_so_many_exemplars_are_drawn_as_asked_for_else_as_many_as_there_are_new_images():
    for given, expected in ({"reference": 5}, 5), ({}, 2), ({"reference": 50}, 6):
        learner = with_exemplars(**given)
        learner.loss(batch(2, 3)).backward()
        counts = []
        learner.net.register_forward_hook(lambda net, images, output, counts=counts: counts.append(len(images[0])))
        learner.adjust_gradients(batch(2, 3))
        assert counts == [expected]


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_without_exemplars_it_is_finetune_over_all_outputs_and_so_is_the_first_experience(learn, stream):
    none, plain = learn("agem", stream, budget=Budget(exemplars=0)), learn(AllOutputs, stream)
    assert [differing(none.net(index), plain.net(index)) for index in range(3)] == [[]] * 3
    bent = learn("agem", stream)
    assert differing(bent.net(0), plain.net(0)) == [] and differing(bent.net(1), plain.net(1))


def test_exemplars_are_drawn_anew_at_every_step_and_never_trained_on(learn):
    losses, drawn = [], []

    class Looking(AGEM):
        def loss(self, batch):
            (drawn if self.bending else losses).append(set(batch.slots.tolist()))
            return super().loss(batch)

        def before_experience(self, experience):
            self.bending = False

        def adjust_gradients(self, batch):
            self.bending = True
            super().adjust_gradients(batch)
            self.bending = False

    learn(Looking)
    assert len(losses) == 18 and len(drawn) == 12  # from the second experience on, at every step
    assert all(slots <= {4, 5} for slots in losses[12:]) and all(slots <= {0, 1} for slots in drawn[:6])
    assert set().union(*drawn[6:]) == {0, 1, 2, 3}


@pytest.mark.parametrize(("stream", "counts"), [("toy", [[5] * 2, [2] * 4, [1] * 6]), ("uneven", [[3] * 3, [2] * 4])])
def test_it_keeps_floor_m_over_c_exemplars_of_each_class(learn, stream, counts):
    done = learn("agem", stream)
    for index, expected in enumerate(counts):
        assert list(done.learner(index).memory.counts().values()) == expected
        assert done.ledger(index)["labels"] == sum(expected)


def test_the_other_gradients_and_the_weights_are_not_touched():
    learner = with_exemplars()
    learner.loss(batch(2, 3)).backward()
    before = bits(learner.net)
    exemplars = bits_of(learner)
    learner.adjust_gradients(batch(2, 3))
    assert differing(before, bits(learner.net)) == [] and torch.equal(exemplars, bits_of(learner))


def test_the_gradient_of_the_exemplars_is_billed_in_training(learn):
    done = learn("agem")
    for index in range(3):
        lines = done.trained_with(index)
        own = sum(size for name, size in lines.items() if name.startswith("of_exemplars"))
        assert own == (lines["main.gradients"] if index else 0)


def bits_of(learner):
    return learner.memory.samples().pixels.clone()
