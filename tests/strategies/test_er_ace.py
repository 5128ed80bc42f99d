"""ER-ACE: incoming images among the classes present, exemplars among all."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import Fixed, bare, batch, differing

from cil.memory import Budget
from cil.models import CosineHead
from cil.strategies.er_ace import ERACE, present_cross_entropy
from cil.strategies.finetune import Finetune

PLAIN = {"cosine": False}


class AllOutputs(Finetune):
    """Finetune with the cross-entropy over all outputs."""

    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


class Masked(Finetune):
    """Finetune among the classes present in the batch, all outputs in the first experience."""

    def loss(self, batch):
        logits = self.net(batch.images).logits
        if self.old_classes:
            absent = [slot for slot in range(self.num_classes) if slot not in batch.slots.tolist()]
            logits = logits.index_fill(1, torch.tensor(absent, dtype=torch.int64), -1e9)
        return F.cross_entropy(logits, batch.slots)


def held(learner, *slots):
    pixels = torch.zeros(len(slots), 3, 12, 12, dtype=torch.uint8)
    learner.memory.exchange(torch.empty(0).long(), pixels, torch.tensor(slots))
    return learner


def test_incoming_images_are_told_apart_from_the_classes_present_alone():
    # classes 1 and 2 are present: log(e + e^3) = 3.126928
    loss = present_cross_entropy(torch.tensor([[9.0, 1.0, 3.0], [9.0, 1.0, 3.0]]), torch.tensor([2, 1]))
    assert loss.item() == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-5)
    assert present_cross_entropy(torch.tensor([[5.0, 1.0, 3.0]]), torch.tensor([1])).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_of_absent_classes_get_exactly_no_gradient_in_any_precision(dtype):
    logits = torch.tensor([[9.0, 1.0, 3.0, 0.0], [4.0, 0.0, 0.0, -2.0]], dtype=dtype, requires_grad=True)
    loss = present_cross_entropy(logits, torch.tensor([2, 1]))
    loss.backward()
    assert loss.isfinite() and (logits.grad[:, [0, 3]] == 0).all()
    assert logits.grad[:, 1:3].flatten().tolist() == pytest.approx([0.059601, -0.059601, -0.25, 0.25], abs=1e-3)


def test_rows_of_absent_old_classes_in_the_head_get_exactly_no_gradient():
    learner = bare("er_ace", classes=[3, 2], **PLAIN)
    learner.loss(batch(3, 1, 4, 4))["incoming"].backward()
    gradient = learner.net.head.weight.grad
    assert not gradient[[0, 2]].any() and not learner.net.head.bias.grad[[0, 2]].any()
    assert all(gradient[slot].any() for slot in (1, 3, 4))


def test_where_all_classes_are_present_and_the_memory_is_empty_it_is_the_plain_cross_entropy():
    learner = bare("er_ace", classes=[1, 2])
    learner.net = Fixed([[0.0, 1.0, 3.0], [2.0, 1.0, 3.0], [0.0, 1.0, 1.0]])
    terms = learner.loss(batch(2, 0, 1))
    assert terms.keys() == {"incoming"}
    assert torch.equal(terms["incoming"], F.cross_entropy(learner.net.logits, torch.tensor([2, 0, 1])))


def test_exemplars_are_told_apart_from_all_classes():
    learner = held(bare("er_ace", classes=[1, 2]), 0, 1)
    learner.net = Fixed([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
    terms = learner.loss(batch(2, 2))
    assert terms["incoming"].item() == 0.0
    assert terms["exemplars"].item() == pytest.approx((3.169846 + 2.169846) / 2, abs=1e-5)


def test_the_first_experience_is_learned_over_all_outputs_without_exemplars_unless_task_free():
    given = batch(0, 0)
    for task_free, names in ((False, {"incoming"}), (True, {"incoming", "exemplars"})):
        learner = held(bare("er_ace", classes=[3], task_free=task_free), 0, 1)
        learner.net = Fixed([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
        terms = learner.loss(given)
        assert terms.keys() == names
        assert terms["incoming"].item() == pytest.approx(0.0 if task_free else 3.169846, abs=1e-5)


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_after_the_first_experience_it_is_finetune_over_all_outputs_with_the_models_head(learn, stream):
    ace, plain = learn("er_ace", stream, hyperparameters=PLAIN), learn(AllOutputs, stream)
    assert differing(ace.net(0), plain.net(0)) == [] and differing(ace.net(1), plain.net(1))
    free = learn("er_ace", stream, hyperparameters=PLAIN | {"task_free": True})
    assert differing(free.net(0), plain.net(0))


def test_without_room_for_an_exemplar_it_is_finetune_among_the_classes_present(learn):
    none = learn("er_ace", budget=Budget(exemplars=0), hyperparameters=PLAIN)
    expected = learn(Masked)
    assert [differing(none.net(index), expected.net(index)) for index in range(3)] == [[]] * 3


def test_the_head_is_a_cosine_one_of_a_scale_that_stays(learn):
    done = learn("er_ace")
    for index in range(3):
        assert done.net(index)["net.head.scale"].item() == 10
    learner = bare("er_ace", classes=[2], scale=3.0)
    assert isinstance(learner.net.head, CosineHead)
    output = learner.net(batch(0, 1).images)
    torch.testing.assert_close(output.logits, 3 * F.normalize(output.features) @ F.normalize(learner.net.head.weight).T)


def test_the_backbone_is_that_of_any_other_method_whatever_the_head():
    one, other = bare("er_ace").net.backbone.state_dict(), bare("finetune").net.backbone.state_dict()
    assert differing(one, other) == []


def test_the_reservoir_holds_images_before_augmentation_of_all_that_was_offered(learn):
    done = learn("er_ace")
    for index in range(3):
        learner = done.learner(index)
        assert len(learner.memory) == 10 and int(learner.seen) == 24 * (index + 1)
        for pixels, slot in zip(learner.memory.samples().pixels, learner.memory.slots.tolist(), strict=True):
            own = done.stream[done.stream.experience_of_slot[slot]].train.of_class(slot).pixels
            assert slot < learner.num_classes and (own == pixels).flatten(1).all(1).any()
        ledger = done.ledger(index)
        assert (ledger["exemplars"], ledger["labels"], ledger["other"]) == (10 * 432, 10, 26)
    held = set(done.learner(2).memory.slots.tolist())
    assert held & {4, 5} and held & {0, 1, 2, 3}


def test_exemplars_do_not_come_in_as_new_images(learn):
    sizes = []

    class Looking(ERACE):
        def prepare(self, experience):
            super().prepare(experience)
            sizes.append((len(self.training_set(experience)), len(self.memory)))

    learn(Looking)
    assert sizes == [(24, 0), (24, 10), (24, 10)]
