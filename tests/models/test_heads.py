"""Heads: growth keeps what was there, fresh values have the stated bounds; weight alignment."""

import pytest
import torch

from cil.errors import ShapeError
from cil.models import CosineHead, LinearHead, weight_align


@pytest.mark.parametrize("make", [LinearHead, CosineHead])
def test_a_head_starts_without_outputs(make):
    head = make(8)
    assert head.num_classes == 0
    assert head(torch.rand(3, 8)).shape == (3, 0)


@pytest.mark.parametrize("make", [LinearHead, CosineHead, lambda dim: CosineHead(dim, proxies=10)])
def test_old_rows_stay_bit_for_bit_and_old_logits_to_rounding_when_a_head_grows(make):
    features = torch.rand(8, 64)
    head = make(64)
    head.grow(10)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)
    before, old = head(features), {name: value.clone() for name, value in head.named_parameters()}
    head.grow(10)
    assert head.num_classes == 20
    torch.testing.assert_close(head(features)[:, :10], before, rtol=0, atol=1e-5)  # a wider product may sum otherwise
    for name, value in head.named_parameters():
        assert torch.equal(value[: len(old[name])] if value.ndim else value, old[name])


def test_new_linear_rows_are_uniform_within_sqrt_3_over_d_and_new_biases_zero():
    torch.manual_seed(0)
    head = LinearHead(48)  # bound sqrt(3 / 48) = 1 / 4
    head.grow(200)
    assert 0.249 < head.weight.abs().max() <= 0.25
    assert head.weight.var().item() == pytest.approx(1 / 48, rel=0.05)
    assert head.bias.eq(0).all()


def test_new_cosine_rows_are_uniform_within_1_over_sqrt_d_and_the_scale_is_1():
    torch.manual_seed(0)
    head = CosineHead(16)  # bound 1 / 4
    head.grow(200)
    assert 0.249 < head.weight.abs().max() <= 0.25
    assert head.scale.item() == 1


def test_a_cosine_logit_is_at_most_the_scale_and_does_not_see_the_length_of_features():
    head = CosineHead(16)
    head.grow(5)
    with torch.no_grad():
        head.scale.fill_(3.0)
    features = torch.randn(20, 16)
    assert head(features).abs().max() <= 3 * (1 + 1e-6)
    torch.testing.assert_close(head(features), head(7 * features))


def test_two_proxies_with_similarities_08_and_02_give_0587394():
    head = CosineHead(2, proxies=2)
    head.grow(1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.8, 0.6], [0.2, 0.96**0.5]]))
    assert head.num_classes == 1
    assert head(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.587394, abs=1e-6)


def test_more_inputs_keep_the_old_block_and_draw_the_rest_for_the_new_length():
    torch.manual_seed(0)
    head = LinearHead(3)
    head.grow(40)
    old = head.weight.detach().clone()
    head.grow_inputs(9)  # new length 12, bound 1 / 2; the old rows lie within 1
    assert head.weight.shape == (40, 12)
    assert torch.equal(head.weight[:, :3], old)
    assert 0.45 < head.weight[:, 3:].abs().max() <= 0.5
    head.grow(2)
    assert torch.equal(head.weight[:40, :3], old)
    assert head.weight[40:].abs().max() <= 0.5


def test_growth_is_drawn_from_the_global_generator():
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        head = LinearHead(8)
        head.grow(3)
        rows.append(head.weight.detach())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("make", [LinearHead, CosineHead])
def test_on_meta_a_head_grows_without_drawing(make):
    head = make(64).to("meta")
    state = torch.get_rng_state()
    head.grow(10)
    assert all(parameter.is_meta for parameter in head.parameters())
    assert head.weight.shape == (10, 64)
    assert torch.equal(torch.get_rng_state(), state)


def test_growth_keeps_dtype_and_whether_the_rows_are_trained():
    head = LinearHead(4).to(torch.bfloat16)
    head.grow(2)
    head.requires_grad_(False)
    head.grow(2)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.parametrize(
    "grow", [lambda: LinearHead(4).grow(-1), lambda: LinearHead(0).grow(2), lambda: LinearHead(4).grow_inputs(0)]
)
def test_growth_that_makes_no_sense_is_refused(grow):
    with pytest.raises(ShapeError):
        grow()


def test_alignment_scales_new_norms_4_and_6_to_the_old_mean_of_2():
    weight = torch.diag(torch.tensor([1.0, 3.0, 4.0, 6.0]))
    assert weight_align(weight, old=2) == pytest.approx(0.4)
    torch.testing.assert_close(weight.norm(dim=1), torch.tensor([1.0, 3.0, 1.6, 2.4]))


def test_alignment_leaves_old_rows_alone_equalises_mean_norms_and_is_idempotent():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(20, 64) * torch.linspace(1, 3, 20)[:, None])
    before = weight.detach().clone()
    weight_align(weight, old=15)
    norms = weight.detach().norm(dim=1)
    assert torch.equal(weight[:15], before[:15])
    assert norms[15:].mean().item() == pytest.approx(norms[:15].mean().item(), rel=1e-6)
    torch.testing.assert_close(norms[15:] / norms[15], before[15:].norm(dim=1) / before[15].norm())
    assert weight_align(weight, old=15) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("old", [0, 4])
def test_alignment_needs_old_and_new_rows(old):
    with pytest.raises(ShapeError, match="0 < old < C"):
        weight_align(torch.rand(4, 2), old)
