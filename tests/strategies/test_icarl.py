"""iCaRL: distilled rehearsal, and answers by the nearest mean of exemplars."""

import pytest
import torch
from small_runs import Fixed, bare, batch, differing

from cil.errors import ContractError
from cil.memory import Budget
from cil.models import extract


def images_of(done, index=2):
    return torch.cat([done.stream.test(i).pixels for i in range(index + 1)]).float() / 255


def scores(done, learner):
    return done.run.work.learners.scores(learner, images_of(done))


def test_the_loss_is_cross_entropy_over_all_outputs_and_the_distillation():
    learner = bare("icarl", classes=[2, 1])
    learner.net, learner.teacher = Fixed([[2.0, 0.0, 3.0]]), Fixed([[2.0, 0.0]])
    terms = learner.loss(batch(0))
    assert terms["classes"].item() == pytest.approx(1.349012, abs=1e-5)  # log(e^2 + 1 + e^3) - 2
    assert terms["distillation"].item() == pytest.approx(0.582203, abs=1e-5)
    learner.strength, learner.temperature = 0.5, 1.0
    learner.net = Fixed([[1.0, 0.0, 3.0]])
    assert learner.loss(batch(0))["distillation"].item() == pytest.approx(0.5 * 0.432465, abs=1e-5)
    learner.teacher = None
    assert learner.loss(batch(0)).keys() == {"classes"}


def test_the_nearest_mean_answers_by_direction():
    learner = bare("icarl", classes=[3])
    learner.means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    learner.net = Fixed([[0.0, 0.0, 0.0]], [[3.0, 4.0], [5.0, 0.0]])  # unit: (0.6, 0.8) and (1, 0)
    found = learner.predict(torch.zeros(2, 3, 12, 12))
    by_hand = [-(0.8**0.5), -(0.4**0.5), 0.0, 0.0, -(2**0.5), -(0.8**0.5)]
    assert found.flatten().tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_common_factor_on_all_features_changes_no_answer():
    learner = bare("icarl", classes=[2])
    learner.means = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = []
    for factor in (1.0, 1000.0):
        learner.net = Fixed([[0.0, 0.0]], [[3.0 * factor, 1.0 * factor]])
        found.append(learner.predict(torch.zeros(1, 3, 12, 12)))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_means_are_the_unit_means_of_the_exemplars_unit_features(learn, stream):
    done = learn("icarl", stream)
    for index in range(3):
        learner = done.learner(index)
        assert learner.means.norm(dim=1).tolist() == pytest.approx([1.0] * learner.num_classes, abs=1e-5)
        for slot in range(learner.num_classes):
            features = extract(learner.net, learner.memory.of_class(slot))
            mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
            torch.testing.assert_close(learner.means[slot], mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_the_nearest_mean_is_the_one_of_the_largest_cosine(learn):
    done = learn("icarl")
    learner = done.learner(2)
    learner.net.eval()
    features = learner.net(images_of(done)).features
    assert torch.equal(scores(done, learner).argmax(1), (features @ learner.means.T).argmax(1))


def test_answers_do_not_depend_on_the_head(learn):
    done = learn("icarl")
    learner = done.learner(2)
    before = scores(done, learner)
    with torch.no_grad():
        learner.net.head.weight.copy_(learner.net.head.weight.flip(0))
        learner.net.head.bias.normal_()
    assert torch.equal(scores(done, learner), before)


def test_a_class_without_an_exemplar_is_never_the_answer(learn):
    done = learn("icarl")
    learner, state = done.learner(2), done.state(2)
    kept = state.tensors["memory.slots"] != 1
    learner.load_state(
        type(state)({
            name: tensor[kept] if name.startswith("memory.") else tensor for name, tensor in state.tensors.items()
        }, state.kinds, state.meta)
    )  # fmt: skip
    found = scores(done, learner)
    assert torch.isneginf(found[:, 1]).all() and found[:, [0, 2, 3, 4, 5]].isfinite().all()


def test_without_any_exemplar_the_head_answers(learn):
    done = learn("icarl", budget=Budget(exemplars=1))  # no class gets one
    learner = done.learner(2)
    learner.net.eval()
    assert learner.means is None and len(learner.memory) == 0
    assert torch.equal(scores(done, learner), learner.net(images_of(done)).logits)


def test_broken_features_give_no_answer_instead_of_hiding_behind_missing_means(learn):
    done = learn("icarl")
    learner = done.learner(2)
    with torch.no_grad():
        next(learner.net.backbone.parameters()).fill_(float("nan"))
    assert scores(done, learner).isnan().any()
    with pytest.raises(ContractError, match="not numbers"):
        from cil.kinds.classes.evaluation import evaluate

        evaluate(
            lambda x: done.run.work.learners.scores(learner, x), done.stream, 6, seed=0, device=torch.device("cpu")
        )


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_strength_0_trains_as_replay_and_the_first_experience_does_anyway(learn, stream):
    replay, plain, full = (
        learn("replay", stream),
        learn("icarl", stream, hyperparameters={"strength": 0}),
        learn("icarl", stream),
    )
    for index in range(3):
        assert differing(dict(replay.state(index).tensors), dict(plain.state(index).tensors)) == []
        assert bool(differing(replay.net(index), full.net(index))) == (index > 0)
        assert not [name for name in plain.trained_with(index) if name.startswith("teacher")]


def test_means_are_recomputed_and_so_neither_carried_nor_charged(learn):
    done = learn("icarl")
    for index in range(3):
        assert not [name for name in done.state(index).tensors if "means" in name]
        assert set(done.ledger(index)) == {"parameters", "buffers", "exemplars", "labels"}
        assert done.state(index).meta == {}
