"""Finetune: cross-entropy over the new outputs, and nothing else."""

from functools import partial

import pytest
import torch
from small_runs import Fixed, bare, batch, differing, observed

from cil.engine.recipe import Recipe, constant
from cil.memory import Budget


def test_the_first_experience_is_over_all_outputs_and_later_ones_over_the_new_ones():
    learner = bare("finetune", classes=[3])
    learner.net = Fixed([[0.0, 1.0, 3.0]])
    assert learner.loss(batch(1)).item() == pytest.approx(2.169846, abs=1e-5)  # log(1 + e + e^3) - 1
    learner = bare("finetune", classes=[1, 2])
    learner.net = Fixed([[0.0, 1.0, 3.0]])
    assert learner.loss(batch(2)).item() == pytest.approx(0.126928, abs=1e-5)  # log(1 + e^-2)


def test_rows_of_old_classes_get_exactly_no_gradient():
    learner = bare("finetune", classes=[2, 3])
    learner.loss(batch(2, 3, 4, 2)).backward()
    head = learner.net.head
    assert not head.weight.grad[:2].any() and not head.bias.grad[:2].any()
    assert head.weight.grad[2:].any(1).all() and head.bias.grad[2:].all()


def test_without_momentum_old_rows_shrink_by_weight_decay_alone(learn):
    lr, decay = 0.05, 0.1
    sgd = partial(torch.optim.SGD, lr=lr, weight_decay=decay)
    recipe = Recipe(epochs=2, batch_size=8, optimizer=sgd, scheduler=constant)
    heads = []

    def see(when, learner, experience):
        if when in ("prepared", "trained"):
            heads.append(learner.net.head.weight.detach().clone())

    learn(observed("finetune", see), recipe=recipe)
    steps = 2 * 3  # 24 images in batches of 8
    for before, after, old in zip(heads[::2], heads[1::2], (0, 2, 4), strict=True):
        shrunk = before[:old] * (1 - lr * decay) ** steps
        torch.testing.assert_close(after[:old], shrunk, rtol=1e-5, atol=1e-7)
        if old:
            assert (after[old:] - before[old:] * (1 - lr * decay) ** steps).abs().max() > 1e-3


def test_nothing_but_the_network_is_carried(learn):
    done = learn("finetune")
    for index in range(3):
        assert set(done.ledger(index)) == {"parameters", "buffers"}
        assert done.record.results["exemplars"][index] == 0
        assert done.trained_with(index).keys() == {"main.gradients", "main.activations", "main.optimizer"}


def test_old_classes_are_forgotten_where_rehearsal_and_joint_training_remember(learn):
    options = {"recipe": Recipe(epochs=10, batch_size=8), "budget": Budget(exemplars=30)}
    last = {name: learn(name, **options).record.results["last_accuracy"] for name in ("finetune", "replay", "joint")}
    assert last["finetune"] + 10 < last["replay"] <= last["joint"] + 5


@pytest.mark.parametrize("name", ["lwf", "ewc", "mas", "si"])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_a_regulariser_of_strength_0_is_finetune_bit_for_bit(learn, stream, name):
    without_decay = partial(torch.optim.SGD, lr=0.05, momentum=0.9)  # of which mas and si keep the rows of old classes
    recipe = Recipe(epochs=2, batch_size=8, optimizer=without_decay)
    plain = learn("finetune", stream, recipe=recipe)
    other = learn(name, stream, recipe=recipe, hyperparameters={"strength": 0})
    pulled = learn(name, stream, recipe=recipe)
    for index in range(3):
        assert differing(plain.net(index), other.net(index)) == []
    assert differing(plain.net(2), pulled.net(2)) and not differing(plain.net(0), pulled.net(0))
    assert plain.record.results["accuracy_matrix"] == other.record.results["accuracy_matrix"]
    extra = {"lwf": "teacher", "ewc": "anchor"}.get(name)
    assert not [entry for entry in other.trained_with(1) if extra and entry.startswith(extra)]
