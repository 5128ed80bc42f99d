"""APER: features of a frozen backbone beside those of the tuned one."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import bare, batch, differing
from torch.utils.flop_counter import FlopCounterMode

from cil.models.tuners import ALL_TUNERS
from cil.strategies.parts.frozen_backbone import cosine_scores


def test_features_twice_rank_as_features_once():
    """cos([a; a], [b; b]) = cos(a, b)."""
    features, sums = torch.randn(4, 3), torch.randn(5, 3)
    twice = cosine_scores(torch.cat([features, features], 1), torch.cat([sums, sums], 1))
    torch.testing.assert_close(twice, F.cosine_similarity(features[:, None], sums[None], dim=2))


def test_untrained_adapters_answer_as_simplecil(learn, tmp_path):
    from cil.strategies import find
    from cil.testing import toy_run, toy_stream

    class Untrained(find("aper")):  # type: ignore[misc]
        def phases(self, experience):
            return iter(())

    class OnATransformer(find("simplecil")):  # type: ignore[misc]
        toy_model = find("aper").toy_model

    images, scores = batch(*range(6)).images, []
    for strategy, options in ((Untrained, {}), (OnATransformer, {"train_first": False})):
        run = toy_run(strategy, toy_stream(), tmp_path / strategy.__name__, hyperparameters=options)
        run.execute()
        learner = run.work.learners.rebuilt(3, run.checkpoints.state(2))
        scores.append(run.work.learners.scores(learner, images))
    torch.testing.assert_close(*scores)
    assert scores[0].std() > 1e-6


def test_the_first_experience_trains_the_tuner_and_no_other_trains_anything(learn):
    done = learn("aper")
    first, last = done.state(0).tensors, done.state(2).tensors
    body = [name for name in first if name.startswith(("net.", "tuner."))]
    assert differing({name: last[name] for name in body}, {name: first[name] for name in body}) == []
    fresh = done.run.work.learners.rebuilt(0, None).tuner.state_dict()
    moved = {name for name, value in fresh.items() if not torch.equal(value, first[f"tuner.{name}"])}
    assert len(moved) == len(fresh)
    assert done.learner(2).trainable() == []
    for index in range(3):
        assert done.ledger(index)["prototypes"] == 4 * 2 * 16 * 2 * (index + 1)


def test_an_answer_takes_two_passes():
    """Adapters of rank 2 beside the second one: under a tenth more."""
    learner, images = bare("aper", classes=[2], rank=2), batch(0, 1).images
    counted = []
    for answer in (learner.predict, learner.net.eval()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            answer(images)
        counted.append(counter.get_total_flops())
    assert 2 <= counted[0] / counted[1] < 2.2


@pytest.mark.parametrize("tuner", ALL_TUNERS)
def test_each_tuner_learns_the_first_experience(tuner):
    learner = bare("aper", classes=[2], tuner=tuner)
    phase = next(iter(learner.phases(type("Experience", (), {"train": batch(0, 1)}))))
    phase.loss(batch(0, 1)).backward()
    assert any(p.grad is not None and p.grad.any() for p in learner.tuner.parameters())
    assert all(p.grad is None for p in learner.net.backbone.parameters())
    assert not any(layer.training for layer in learner.net.backbone.modules())
    learner.train_mode()
    assert all(layer.training for layer in learner.tuner.modules())
    assert learner.predict(batch(0, 1).images).shape == (2, 2)
    backbones = 2 if tuner == "finetune" else 1  # that answer
    assert learner.fixed_bytes("survey") == 4 * backbones * learner.net.backbone.survey_parameters
