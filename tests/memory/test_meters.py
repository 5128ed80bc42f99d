"""Meters on numbers done by hand: bytes saved for backward, two operations a multiply-add."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cil.memory import Flops, SavedBytes
from cil.models import CifarResNet, timm_backbone

FLOAT = 4


class Perceptron(nn.Module):
    """4 inputs, 3 hidden, 2 outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def saved(net: nn.Module, x: torch.Tensor, exclude=None) -> int:
    with SavedBytes(net.parameters() if exclude is None else exclude) as meter:
        net(x).sum()
    return meter.bytes


def test_a_perceptron_saves_its_input_and_its_hidden_values_once():
    # the input for the first weight's gradient; relu's result, which the second layer shares: (5, 4) and (5, 3)
    assert saved(Perceptron(), torch.rand(5, 4)) == FLOAT * (5 * 4 + 5 * 3)


def test_parameters_count_where_they_are_not_left_out():
    net, x = Perceptron(), torch.rand(5, 4)
    assert saved(net, x, exclude=[]) == saved(net, x) + FLOAT * 2 * 3  # the second weight carries the gradient back
    assert saved(net, x, exclude=[*net.parameters(), x]) == FLOAT * 5 * 3


def test_what_needs_no_gradient_saves_nothing():
    net, x = Perceptron().requires_grad_(False), torch.rand(5, 4)
    assert saved(net, x) == 0
    with torch.no_grad():
        assert saved(Perceptron(), x) == 0
    net.second.requires_grad_(True)  # a frozen first layer: only the second one's input is kept
    assert saved(net, x) == FLOAT * 5 * 3


def test_a_storage_counts_once_and_whole_whatever_views_are_saved():
    x = torch.rand(10, 6, requires_grad=True).mul(1)  # not a leaf, so that it is an activation
    with SavedBytes() as meter:
        (x[:5] * x[5:]).sum() + x.square().sum()
    assert meter.bytes == FLOAT * 60


def test_of_passes_one_after_the_other_the_peak_is_the_largest_and_of_two_at_once_their_sum():
    net = Perceptron()
    each = [FLOAT * (n * 4 + n * 3) for n in (5, 2)]
    with SavedBytes(net.parameters()) as meter:
        for n in (5, 2):
            torch.autograd.grad(net(torch.rand(n, 4)).sum(), list(net.parameters()))
    assert meter.peak == each[0]
    with SavedBytes(net.parameters()) as meter:
        both = [net(torch.rand(n, 4)).sum() for n in (5, 2)]
        for loss in both:
            torch.autograd.grad(loss, list(net.parameters()))
    assert meter.peak == meter.bytes == sum(each)


def test_the_meter_changes_no_gradient():
    net, x = Perceptron(), torch.rand(5, 4)
    gradients = []
    for context in (nullcontext(), SavedBytes(net.parameters())):
        net.zero_grad()
        with context:
            loss = net(x).sigmoid().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_meter_keeps_nothing_alive():
    gc.disable()
    try:
        with SavedBytes() as meter:
            result = Perceptron()(torch.rand(5, 4)).sigmoid()  # saves its own result
        alive = weakref.ref(result)
        del result
        assert alive() is None
        assert meter.bytes > 0
    finally:
        gc.enable()


# operations -----------------------------------------------------------------------------------------------------------


def operations(work) -> int:
    meter = Flops()
    with meter.counting():
        work()
    return meter.count


MODES = {"gradients": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
def test_a_linear_layer_costs_two_operations_a_multiply_add(mode):
    layer, x = nn.Linear(10, 4), torch.rand(5, 10)
    with MODES[mode]():
        assert operations(lambda: layer(x)) == 2 * 5 * 10 * 4


@pytest.mark.parametrize("mode", MODES)
def test_a_convolution_costs_its_kernel_at_every_place(mode):
    layer, x = nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.rand(2, 3, 6, 6)
    with MODES[mode]():
        assert operations(lambda: layer(x)) == 2 * 2 * 8 * 3 * 3 * (3 * 3 * 3)


def test_backward_costs_a_product_for_each_gradient_that_is_needed():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)), torch.rand(2, 3, 6, 6)
    first, second = 2 * 2 * 4 * 16 * 27, 2 * 2 * 5 * 16 * 4
    assert operations(lambda: net(x)) == first + second
    assert operations(lambda: net(x).sum().backward()) == 2 * first + 3 * second  # none for the images
    net[0].requires_grad_(False)
    assert operations(lambda: net(x).sum().backward()) == first + 2 * second


def test_a_count_adds_up_over_several_uses():
    meter, layer = Flops(), nn.Linear(3, 2)
    for _ in range(2):
        with meter.counting():
            layer(torch.rand(1, 3))
    assert meter.count == 2 * (2 * 3 * 2)


def heads(queries: int = 5, keys: int = 7, depth: int = 8, value_depth: int = 8, needs_gradient: bool = True):
    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.rand(2, 3, rows, columns, requires_grad=needs_gradient)

    return random(queries, depth), random(keys, depth), random(keys, value_depth)


ATTENTION = 2 * 2 * 3 * 5 * 7 * (8 + 8)  # batch 2, heads 3: queries by keys, and weights by values


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_the_cpu_costs_two_products(mode, masked):
    mask = torch.ones(5, 7, dtype=torch.bool) if masked else None
    with MODES[mode]():
        assert operations(lambda: F.scaled_dot_product_attention(*heads(), attn_mask=mask)) == ATTENTION


def test_attention_costs_five_more_products_on_the_way_back():
    assert operations(lambda: F.scaled_dot_product_attention(*heads()).sum().backward()) == ATTENTION * 7 // 2


TOKENS, WIDTH, HIDDEN = 5, 16, 32
PROJECTIONS = 2 * 2 * TOKENS * WIDTH * WIDTH * 4
PAIRS = 2 * 2 * TOKENS * TOKENS * WIDTH * 2
FEED_FORWARD = 2 * 2 * TOKENS * WIDTH * HIDDEN * 2


@pytest.mark.parametrize("mode", MODES)
def test_fused_attention_layers_of_torch_cost_what_their_parts_cost(mode):
    x = torch.rand(2, TOKENS, WIDTH)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    layer = nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, batch_first=True).eval()
    with MODES[mode]():
        assert operations(lambda: attention(x, x, x, need_weights=False)) == PROJECTIONS + PAIRS
        assert operations(lambda: layer(x)) == PROJECTIONS + PAIRS + FEED_FORWARD


def test_a_vision_transformer_by_hand():
    net = timm_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2).eval()
    tokens, width = 4 * 4 + 1, 192
    patches = 2 * 16 * (8 * 8 * 3) * width
    block = 2 * tokens * width * width * (3 + 1 + 4 + 4) + 2 * tokens * tokens * width * 2
    assert operations(lambda: net(torch.rand(1, 3, 32, 32))) == patches + 2 * block


def test_a_resnet32_takes_0138_gflop_an_image_forward_and_0412_with_backward():
    net, images = CifarResNet(32), torch.rand(2, 3, 32, 32)
    assert operations(lambda: net(images)) / 2e9 == pytest.approx(0.138, abs=0.0005)
    assert operations(lambda: net(images)[0].sum().backward()) / 2e9 == pytest.approx(0.412, abs=0.0007)
