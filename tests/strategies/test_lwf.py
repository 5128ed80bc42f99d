"""LwF: the new outputs learn, the old ones are distilled, on new data only."""

import pytest
import torch
from small_runs import Fixed, bare, batch


def between_experiences(**hyperparameters):
    """Old logits (0, 0), new ones (1, 3), and a teacher that says (2, 0)."""
    learner = bare("lwf", classes=[2, 2], **hyperparameters)
    learner.net, learner.teacher = Fixed([[0.0, 0.0, 1.0, 3.0]]), Fixed([[2.0, 0.0]])
    return learner


def test_the_loss_is_new_cross_entropy_and_three_times_the_distillation():
    terms = between_experiences().loss(batch(3))
    assert terms["new"].item() == pytest.approx(0.126928, abs=1e-5)  # log(1 + e^-2)
    assert terms["distillation"].item() == pytest.approx(3 * 0.693147, abs=1e-5)
    assert terms.keys() == {"new", "distillation"}


def test_strength_and_temperature_are_those_given():
    learner = between_experiences(strength=0.5, temperature=1.0)
    learner.net = Fixed([[1.0, 0.0, 1.0, 3.0]])
    # target (0.880797, 0.119203) against (1, 0): log(1 + e) - 0.880797
    assert learner.loss(batch(3))["distillation"].item() == pytest.approx(0.5 * 0.432465, abs=1e-5)


def test_distillation_moves_old_outputs_alone_and_cross_entropy_new_ones_alone():
    learner = between_experiences()
    terms = learner.loss(batch(3))
    old, new = (torch.autograd.grad(terms[name], learner.net.logits, retain_graph=True)[0][0] for name in
                ("distillation", "new"))  # fmt: skip
    # 3 / t (softmax(student; t) - softmax(teacher; t)); softmax(1, 3) - (0, 1)
    assert old.tolist() == pytest.approx([1.5 * (0.5 - 0.731059), 1.5 * (0.5 - 0.268941), 0, 0], abs=1e-5)
    assert new.tolist() == pytest.approx([0, 0, 0.119203, -0.119203], abs=1e-5)


def test_the_first_experience_has_no_teacher():
    learner = bare("lwf")
    learner.before_experience(None)
    assert learner.teacher is None
    learner = bare("lwf", classes=[3])
    learner.net = Fixed([[0.0, 1.0, 3.0]])
    terms = learner.loss(batch(1))
    assert terms.keys() == {"new"} and terms["new"].item() == pytest.approx(2.169846, abs=1e-5)


def test_new_data_alone_are_trained_on(learn):
    done = learn("lwf")
    assert done.record.results["exemplars"] == [0, 0, 0]
    assert [done.run.checkpoints.facts(index)["steps"] for index in range(3)] == [6, 6, 6]  # 2 epochs of 24 images
