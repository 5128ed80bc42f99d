"""SLCA: a slow backbone, heads that stay, and an aligned copy of the head that answers."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_runs import bare, batch, differing

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Prototypes
from cil.models import build_backbone, extract
from cil.models.tuners import LowRank
from cil.strategies import find
from cil.strategies.parts.alignment import (
    alignment_rows,
    covariance_root,
    draw_all,
    epoch_features,
    mean_logit_norm,
    reverse_cross_entropy,
)
from cil.testing import toy_run, toy_stream

VIT = {"name": "timm:vit_tiny_patch16_224", "options": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}}


def test_symmetric_cross_entropy_by_hand():
    logits, slots = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0])
    forward, reverse = F.cross_entropy(logits, slots), reverse_cross_entropy(logits, slots)
    assert (forward.item(), reverse.item()) == (pytest.approx(0.356675, abs=1e-6), pytest.approx(2.763102, abs=1e-5))
    learner = bare("slca", classes=[3], reverse=0.1)
    learner.features = lambda images: torch.zeros(1, 32)
    learner.head.bias.data = logits[0]
    assert sum(learner.loss(batch(0)).values()).item() == pytest.approx(0.632985, abs=1e-6)
    learner.cross_entropy = learner.reverse = 0.5
    assert sum(learner.loss(batch(0)).values()).item() == pytest.approx(1.559889, abs=1e-5)


def test_means_of_old_classes_are_scaled_by_their_age():
    learner = bare("slca", classes=[1, 1, 1, 1, 1])
    assert learner.scales(4, torch.Generator())[[0, 4]].tolist() == pytest.approx([0.92, 1.0])
    learner.scaling = "decay"
    found = learner.scales(4, torch.Generator().manual_seed(0))  # of each sample
    assert (found[4] == 1).all() and ((found[0] > 1 / 1.12) & (found[0] < 1 / 1.04)).all()
    assert found.shape == (5, learner.align_samples) and len(found[0].unique()) > 200


@pytest.fixture
def gaussians():
    """Three classes: two points, none, one point."""
    made = Prototypes(2, "full")
    made.grow(3)
    made.update(torch.tensor([[3.0, 4.0], [5.0, 4.0], [0.0, 10.0]]), torch.tensor([0, 0, 2]))
    return made


def test_samples_have_the_scaled_means_of_their_classes(gaussians):
    """Half of (4, 4); the variance of 1 along the first axis stays, but where whole samples are halved."""
    make = partial(draw_all, gaussians, count=12_000, scales=torch.tensor([0.5, 1.0, 1.0]))
    drawn = make(torch.Generator().manual_seed(0)).unflatten(0, (3, -1))
    error = 3 * drawn[0, :, 0].std() / math.sqrt(12_000)
    assert abs(drawn[0, :, 0].mean() - 2.0) < error and (drawn[0, :, 1] == 2.0).all()
    assert drawn[0, :, 0].var().item() == pytest.approx(1.0, abs=0.05)
    assert not drawn[1].any() and (drawn[2] == torch.tensor([0.0, 10.0])).all()
    halves, doubles = torch.full((3, 6_000), 0.5), torch.full((3, 6_000), 2.0)
    each = torch.cat([halves, doubles], dim=1)  # of each sample
    whole = make(torch.Generator().manual_seed(0), scales=each, whole=True).unflatten(0, (3, -1))[0]
    assert whole[:6_000, 0].var().item() == pytest.approx(0.25, abs=0.02) and (whole[:6_000, 1] == 2.0).all()
    assert whole[6_000:, 0].var().item() == pytest.approx(4.0, abs=0.3) and (whole[6_000:, 1] == 8.0).all()


@pytest.mark.parametrize("spread", ["full", "low_rank", "diagonal", "tied"])
def test_roots_give_the_covariance_back_with_jitter(spread):
    made = Prototypes(5, spread, 2)
    made.grow(1)
    made.update(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(4).long())  # of rank 3
    root = covariance_root(made, 0, 1e-3)
    torch.testing.assert_close(root @ root.T, made.covariance(0) + 1e-3 * torch.eye(5), atol=1e-5, rtol=1e-4)
    if spread == "full":  # not definite: the symmetric root
        root = covariance_root(made, 0, 0.0)
        torch.testing.assert_close(root @ root.T, made.covariance(0), atol=1e-5, rtol=1e-4)


def test_rows_of_the_alignment_are_those_of_their_class(gaussians):
    rows = alignment_rows(gaussians, 2)
    assert rows.slots.tolist() == [0, 0, 2, 2] and rows.extras["rows"].tolist() == [0, 1, 4, 5]


def test_each_epoch_has_samples_of_its_own_and_one_epoch_is_billed(learn):
    """Six classes of eight samples of 32 numbers, whatever the number of epochs."""
    learner = bare("slca", classes=[1], align_samples=3)
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(sum(purpose.encode()))
    learner.gaussians.update(torch.randn(4, 32), torch.zeros(4).long())
    one = Batch(torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), extras={"rows": torch.tensor([2, 0])})
    first = epoch_features(learner, one)
    assert torch.equal(first, learner.draw_samples(0)[[2, 0]]) and torch.equal(epoch_features(learner, one), first)
    learner.progress.epoch = 1
    assert torch.equal(epoch_features(learner, one), learner.draw_samples(1)[[2, 0]])
    assert not torch.equal(learner.draw_samples(1)[[2, 0]], first)
    for epochs in (2, 3):
        done = learn("slca", hyperparameters={"align_samples": 8, "align_epochs": epochs})
        assert done.trained_with(2)["drawn"] == 4 * 6 * 8 * 32
    assert "drawn" not in done.state(2).tensors


def test_the_norm_of_logits_is_the_mean_over_experiences():
    assert mean_logit_norm(torch.tensor([[3.0, 4.0, 12.0]]), [2, 1]).item() == pytest.approx(8.5)


def test_alignment_changes_answers_and_neither_backbone_nor_the_heads_that_are_trained(learn):
    aligned, plain = learn("slca"), learn("slca", hyperparameters={"align_epochs": 0})
    for index in range(3):
        assert differing(aligned.net(index), plain.net(index)) == []
        mine, other = aligned.learner(index), plain.learner(index)
        assert torch.equal(mine.head.weight, other.head.weight)
        assert torch.equal(other.aligned.weight, other.head.weight)
        assert torch.equal(mine.aligned.weight, mine.head.weight) == (index == 0)


def test_without_alignment_the_backbone_is_that_of_tuning_on_the_new_classes(learn):
    """Rows of old classes stay, which there decay."""
    rates = {"align_epochs": 0, "backbone_lr": 0.1}
    found, expected = learn("slca", hyperparameters=rates), learn("lwf", hyperparameters={"strength": 0.0})
    for index in range(3):
        body = {name: value for name, value in expected.net(index).items() if ".head." not in name}
        assert differing({name: found.net(index)[name] for name in body}, body) == []
    for name in ("head.weight", "head.bias"):
        last = found.state(2).tensors[name]
        assert torch.equal(last[:2], found.state(0).tensors[name])
        assert torch.equal(last[2:4], found.state(1).tensors[name][2:4])


def test_statistics_are_those_of_the_backbone_when_a_class_arrived(learn):
    done = learn("slca")
    learner, train = done.learner(0), done.stream[0].train.of_class(1)
    torch.testing.assert_close(learner.gaussians.means[1], extract(learner.net, train).mean(0), rtol=1e-4, atol=1e-5)
    for name, value in done.state(1).tensors.items():
        if name.startswith("gaussians"):
            assert torch.equal(done.state(2).tensors[name][:4], value), name


def test_the_bytes_of_the_statistics(learn):
    """A mean, a covariance and a count for each of six classes."""
    done = learn("slca")
    assert done.ledger(2)["statistics"] == 6 * (4 * 32 + 2 * 32 * 33 + 8)


# SLCA++ ---------------------------------------------------------------------------------------------------------------


def test_low_rank_tuning_of_a_vit_b16_trains_638976_parameters():
    with torch.device("meta"):
        backbone = build_backbone("timm:vit_base_patch16_224", 3, 224)
        tuner = LowRank(backbone)
    assert sum(p.numel() for p in tuner.parameters()) == 638_976
    assert sum(p.numel() for p in [*tuner.up, *tuner.down]) == 516_096


def test_low_rank_tuning_starts_as_the_network_is_along_its_leading_directions():
    torch.manual_seed(0)
    backbone = build_backbone("timm:vit_tiny_patch16_224", 3, 12, **VIT["options"]).eval()
    tuner, images = LowRank(backbone), torch.rand(2, 3, 12, 12)
    tuner.initialise(backbone)
    assert torch.equal(tuner.features(backbone, images), backbone(images)[0])
    weight = dict(backbone.named_parameters())["model.blocks.0.attn.qkv.weight"]
    assert (weight @ tuner.down[0].T).norm(dim=0).tolist() == pytest.approx(
        torch.linalg.svdvals(weight)[:4].tolist(), rel=1e-4
    )
    tuner.up[0].data[0, 0] = 1.0
    assert not torch.equal(tuner.features(backbone, images), backbone(images)[0])


def test_low_rank_tuning_leaves_the_backbone_alone(tmp_path):
    class OnATransformer(find("slca")):  # type: ignore[misc]
        toy_model = VIT

    options = {"tuning": "low_rank", "reverse": 0.1, "scaling": "decay", "backbone_lr": 0.01, "align_samples": 8}
    options |= {"first_lr": 0.05, "answer_growth": 0.02}
    run = toy_run(OnATransformer, toy_stream(), tmp_path, hyperparameters=options, keep="all")
    run.execute()
    first, last = (run.checkpoints.state(index).tensors for index in (0, 2))
    body = [name for name in first if name.startswith("net.")]
    assert body and all(torch.equal(first[name], last[name]) for name in body)
    moved = [name for name in first if name.startswith("tuner.") and not torch.equal(first[name], last[name])]
    assert any("up" in name for name in moved) and any("copies" in name for name in moved)


def test_sums_have_a_rate_of_their_own_in_the_first_experience_alone():
    class OnATransformer(find("slca")):  # type: ignore[misc]
        toy_model = VIT

    def rates(index, **options):
        learner = bare(OnATransformer, tuning="low_rank", backbone_lr=1e-3, **options)
        tuner, groups = learner.tuner, learner.slow_groups(index)
        assert sum(len(group["params"]) for group in groups) == len(list(tuner.parameters()))
        sums = {id(values) for values in (*tuner.up, *tuner.down)}
        return [(group["lr"], {id(values) in sums for values in group["params"]}) for group in groups]

    assert rates(0, first_lr=5e-3) == [(5e-3, {True}), (1e-3, {False})]
    assert rates(1, first_lr=5e-3) == rates(0) == [(1e-3, {True, False})]
    assert [group["lr"] for group in bare("slca", first_lr=5e-3).slow_groups(0)] == [1e-4]


def test_features_grow_with_the_age_of_the_class_that_is_asked():
    """phi = (1, ..., 1), w = 1/32 and c = 3: five experiences give 1.08, 1.06, 1.04, 1.02 and 1, and 3."""

    def answers(**options):
        learner = bare("slca", classes=[1, 1, 1, 1, 1], **options)
        learner.features = lambda images: torch.ones(1, 32)
        learner.aligned.weight.data.fill_(1 / 32)
        learner.aligned.bias.data.fill_(3.0)
        return learner.predict(batch(0).images)[0].tolist()

    assert answers(scaling="decay", answer_growth=0.02) == pytest.approx([4.08, 4.06, 4.04, 4.02, 4.0])
    assert answers(scaling="decay") == answers(answer_growth=0.02) == [4.0] * 5
    assert answers(scaling="decay", answer_growth=0.02, align_epochs=0) == [4.0] * 5


def test_low_rank_tuning_needs_a_transformer():
    with pytest.raises(ConfigError, match=r"low-rank tuning needs layers named qkv, fc1, fc2: set model.name"):
        bare("slca", tuning="low_rank")


def test_random_weights_below_a_slow_rate_are_said():
    (said,) = bare("slca").warnings
    assert said.startswith("slca: the network starts from random weights, and learns at strategy.backbone_lr=0.0001")
