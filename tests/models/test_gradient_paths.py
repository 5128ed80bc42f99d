"""Frozen layers that keep little: equal values, gradients against plain autograd, bytes by hand and as published."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cil.memory import SavedBytes
from cil.models import CifarResNet, GrowingNet, LinearHead, WideResNet, freeze
from cil.models.gradient_paths import FrozenLayers, pack, unpack
from cil.models.meta import GRAD_PATHS, GroupedNet, MetaNetworks
from cil.models.partition import NetworkPart, cut_network

FLOAT = 4


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def trained_statistics(net: nn.Module) -> nn.Module:
    """A frozen network whose statistics and affine values are not those of a fresh one."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return freeze(net)


def small(backbone: str = "resnet") -> GrowingNet:
    torch.manual_seed(0)
    made = CifarResNet(14, width=4, shortcut="conv") if backbone == "resnet" else WideResNet(10, 1)
    net = GrowingNet(made, LinearHead(made.feature_dim))
    net.grow(5)
    return trained_statistics(net)


def grouped(net: nn.Module, grad_path: str, share: float = 1.0, packed: bool = True, parts: int = 3):
    cuts = cut_network(net, (3, 16, 16), parts)
    metas = MetaNetworks(cuts, None, torch.Generator().manual_seed(1))
    return GroupedNet(net, cuts, metas, grad_path, share, packed), metas


# layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 100])
def test_masks_pack_to_an_eighth_and_back(numel):
    mask = torch.rand(numel, generator=torch.Generator().manual_seed(numel)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((numel + 7) // 8,)
    assert torch.equal(unpack(packed, mask.shape), mask)


def test_masks_of_any_layout_keep_their_places():
    mask = (torch.rand(2, 3, 5, 4) < 0.5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpack(pack(mask), mask.shape), mask)
    assert pack(torch.tensor([False, True] + 6 * [False])).tolist() == [2]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_lean_relu_gives_the_gradient_of_a_relu_and_keeps_a_mask(packed, inplace):
    x = torch.tensor([[-1.0, 0.0, 2.0], [3.0, -0.5, 1.0]], requires_grad=True)
    grad = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, float("inf")]])
    with FrozenLayers(lean=True, packed=packed), SavedBytes() as meter:
        before = x + 0
        y = F.relu(before, inplace=inplace)
    assert (y is before) == inplace
    assert y.tolist() == [[0, 0, 2], [3, 0, 1]]
    y.backward(grad)
    assert x.grad.tolist() == [[0, 0, 3], [4, 0, float("inf")]]
    assert meter.bytes == (1 if packed else 6)


@pytest.mark.parametrize("how", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2, "padding": 2}])
def test_a_frozen_convolution_keeps_its_weight_alone_and_gives_the_same_gradient(how):
    conv = nn.Conv2d(4, 6, 3, **how).requires_grad_(False)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    found = []
    for lean in (False, True):
        with FrozenLayers(lean=lean), SavedBytes(conv.parameters()) as meter:
            y = conv(x * 1)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
        assert meter.bytes == (0 if lean else FLOAT * x.numel())
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_trained_convolution_is_left_to_autograd():
    conv = nn.Conv2d(4, 6, 3)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    with FrozenLayers(lean=True):
        conv(x).square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_a_frozen_norm_scales_and_its_gradient_lacks_that_of_the_statistics(share):
    torch.manual_seed(1)
    norm = trained_statistics(nn.BatchNorm2d(3))
    x = (2 * torch.randn(4, 3, 5, 5) + 1).requires_grad_()
    var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    mean = (1 - share) * norm.running_mean + share * mean
    var = (1 - share) * norm.running_var + share * var
    scale = norm.weight / (var + norm.eps).sqrt()
    expected = (x.detach() - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    outer, results = torch.randn(4, 3, 5, 5), []
    for lean in (False, True):
        with FrozenLayers(share, lean=lean), SavedBytes([*norm.parameters(), *norm.buffers()]) as meter:
            y = norm(x * 1)
        results.append((y.detach(), torch.autograd.grad(y, x, outer)[0], meter.bytes))
    assert torch.allclose(results[0][0], expected, atol=1e-5)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[1][1], outer * scale.view(-1, 1, 1), atol=1e-5)  # statistics as constants
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5) == (share == 0)
    assert results[1][2] == FLOAT * 3
    assert results[0][2] >= FLOAT * x.numel()


def test_statistics_never_move_in_evaluation_and_move_as_ever_in_training():
    norm, same, x = nn.BatchNorm2d(3), nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    before = norm.running_mean.clone()
    norm.eval()
    for share in (1.0, 0.5, 0.0):
        with FrozenLayers(share):
            norm(x)
    assert torch.equal(norm.running_mean, before)
    norm.train()
    with FrozenLayers(0.0):
        y = norm(x)
    assert torch.equal(y, same(x))
    assert torch.equal(norm.running_mean, same.running_mean)
    assert not torch.equal(norm.running_mean, before)


# networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("backbone", ["resnet", "wrn"])
def test_values_are_the_same_on_each_path(backbone, share):
    net, images = small(backbone), torch.rand(4, 3, 16, 16)
    logits = [grouped(net, path, share)[0](images).logits for path in GRAD_PATHS]
    logits.append(grouped(net, "lean", share, packed=False)[0](images).logits)
    assert all(torch.equal(logits[0], other) for other in logits[1:])


class ConstantStatistics(nn.Module):
    """Batch norm by plain operators, its batch statistics detached."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x):
        var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        scale = self.norm.weight / (var + self.norm.eps).sqrt()
        return x * scale.view(-1, 1, 1) + (self.norm.bias - mean * scale).view(-1, 1, 1)


def gradients(run: GroupedNet, metas: MetaNetworks, images: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(entropy(run(images).logits), list(metas.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("backbone", ["resnet", "wrn"])
@pytest.mark.parametrize("packed", [False, True])
def test_lean_gradients_are_those_of_autograd_with_constant_frozen_statistics(backbone, packed):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lean = gradients(*grouped(small(backbone), "lean", packed=packed), images)
    net = small(backbone)
    run, metas = grouped(net, "full")
    exact = gradients(run, metas, images)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            net.set_submodule(name, ConstantStatistics(layer))
    expected = gradients(run, metas, images)
    assert (lean - expected).norm() < 1e-4 * expected.norm()
    assert (lean - exact).norm() > 1e-2 * exact.norm()


def test_full_gradients_are_those_of_plain_autograd_in_training_mode():
    images = torch.rand(4, 3, 16, 16)
    net = small()
    run, metas = grouped(net, "full", parts=2)
    found = gradients(run, metas, images)

    backbone = net.backbone
    blocks = [block for stage in backbone.stages for block in stage]
    x = images
    for layer in net.modules():
        layer.training = True
    metas.train()
    x = backbone.stem(x)
    for meta, part in zip(metas, (blocks[:3], blocks[3:]), strict=True):
        out = x
        for block in part:
            out = block(out)
        x = meta.norm(out) + meta.conv_norm(meta.conv(x)).relu()
    loss = entropy(net.head(x.mean((2, 3))))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(metas.parameters()))])
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_with_stop_the_gradient_goes_back_along_the_convolutions_alone():
    images = torch.rand(4, 3, 16, 16)
    net = small()
    run, metas = grouped(net, "stop")
    found = gradients(run, metas, images)
    frozen = []
    run(images, lambda k, adapted, x: frozen.append(x.detach()))
    with torch.no_grad():
        x = net.backbone.stem[2](FrozenNorm(net.backbone.stem[1])(net.backbone.stem[0](images)))
    for meta, fixed in zip(metas, frozen, strict=True):
        x = FrozenNorm(meta.norm)(fixed) + FrozenNorm(meta.conv_norm)(meta.conv(x)).relu()
    loss = entropy(net.head(x.mean((2, 3))))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(metas.parameters()))])
    assert (found - expected).norm() < 1e-4 * expected.norm()


class FrozenNorm:
    """Batch statistics, without a buffer that moves."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.norm = norm

    def __call__(self, x):
        return F.batch_norm(x, None, None, self.norm.weight, self.norm.bias, True, 0.0, self.norm.eps)


# bytes, by hand (spec 11.1 to 11.3) -----------------------------------------------------------------------------------

DEVICES = ["cpu", "meta"]


def saved(work, *modules: nn.Module) -> int:
    with SavedBytes([t for m in modules for t in (*m.parameters(), *m.buffers())]) as meter:
        kept = work()
    del kept
    return meter.bytes


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_of_a_perceptron_with_cross_entropy(device):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(device)
    x, slots = torch.zeros(5, 4, device=device), torch.zeros(5, dtype=torch.int64, device=device)
    assert saved(lambda: F.cross_entropy(net(x), slots), net) == 80 + 60 + 40 + 40 + 4


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_of_a_convolution_norm_and_relu(device):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()).to(device)
    x = torch.zeros(2, 3, 8, 8, device=device)
    assert saved(lambda: net(x), net) == 9792
    net[0].requires_grad_(False)
    assert saved(lambda: net(x), net) == 8256
    net.requires_grad_(False)
    assert saved(lambda: net(x), net) == 0
    carries = x.clone().requires_grad_() * 1
    assert saved(lambda: net(carries), net) == 9792  # frozen, and yet everything is kept
    with FrozenLayers(lean=True):
        net.eval()
        assert saved(lambda: net(carries), net) == FLOAT * 8 + 4096 // FLOAT // 8  # a scale, a bit for each value


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_of_one_group(device):
    body = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()).to(device)
    freeze(body)
    part = NetworkPart(body, body, 1, (2, 8, 8), (4, 4, 4), bottleneck=False)
    metas = MetaNetworks([part], 3, torch.Generator()).to(device)
    x = torch.zeros(3, 2, 8, 8, device=device).requires_grad_() * 1

    def run(path: str, **how):
        return saved(lambda: GroupedNet(body, [part], metas, path)(x, **how), body, metas)

    assert run("stop") == 768 + 1536 + 768 + 768 + 4 * 16
    assert run("full") == 3904 + 768 + 2 * 16
    # lean: the same three float maps; of two ReLUs 192 bits each; a frozen scale, four statistics
    assert run("lean") == 768 + 1536 + 768 + 2 * 24 + 5 * 16

    terms = []
    distance = lambda k, adapted, frozen: terms.append((adapted - frozen.detach()).abs().mean())  # noqa: E731
    assert run("stop", on_group=distance, local=True) == 3904 + 768


# bytes as published (spec 6.3), on meta -------------------------------------------------------------------------------


class WindowPooled(WideResNet):
    """Averages by an 8x8 window, as the published numbers have it: unlike a mean, that keeps its input."""

    def forward(self, images):
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return F.avg_pool2d(x, 8).flatten(1), ()


def wrn_on_meta(depth: int, widen: int, count: int, kind: type[WideResNet] = WideResNet):
    with torch.device("meta"):
        backbone = kind(depth, widen)
        net = GrowingNet(backbone, LinearHead(backbone.feature_dim))
        net.grow(10)
        parts = cut_network(freeze(net), (3, 32, 32), count)
        return net, parts, MetaNetworks(parts, None, torch.Generator())


IMAGES = torch.empty(64, 3, 32, 32, device="meta")
ROWS = [  # depth, widen, K, megabytes of full, lean with one byte an entry, stop, regularisation with all terms alive
    (40, 2, 4, 341.87, 112.74, 98.576384, 117.44),
    (40, 2, 5, 354.45, 126.37, 115.354624, 138.42),
    (28, 10, 4, 1273.06, 494.46, 476.08, 570.45),
    (28, 10, 5, 1335.98, 562.63, 559.98, 675.31),
]


@pytest.mark.parametrize(("depth", "widen", "count", "full", "lean", "stop", "alive"), ROWS)
def test_bytes_of_a_step_are_the_published_ones(depth, widen, count, full, lean, stop, alive):
    net, parts, metas = wrn_on_meta(depth, widen, count)

    def of(path: str, packed: bool = False, run=(net, parts, metas)) -> int:
        grouped = GroupedNet(run[0], run[1], run[2], path, packed=packed)
        return saved(lambda: entropy(grouped(IMAGES).logits), run[0], run[2])

    assert of("full") / 1e6 == pytest.approx(full, abs=0.01)
    assert of("stop") / 1e6 == pytest.approx(stop, abs=1e-9 if depth == 40 else 0.01)  # to the byte
    pooled = FLOAT * 64 * parts[-1].outputs[0] * 64  # bytes of the last map
    assert of("lean", run=wrn_on_meta(depth, widen, count, WindowPooled)) / 1e6 == pytest.approx(lean, abs=0.01)
    assert (of("lean") + pooled) / 1e6 == pytest.approx(lean, abs=0.01)

    terms = []
    run = GroupedNet(net, parts, metas, "stop")
    found = saved(
        lambda: run(IMAGES, lambda k, a, f: terms.append((a - f.detach()).abs().mean()), local=True), net, metas
    )
    assert found / 1e6 == pytest.approx(alive, abs=0.01)


def test_packed_masks_take_an_eighth_and_groups_one_by_one_the_largest_of_them():
    net, parts, metas = wrn_on_meta(40, 2, 4)
    each = [
        saved(lambda p=packed: entropy(GroupedNet(net, parts, metas, "lean", packed=p)(IMAGES).logits), net, metas)
        for packed in (False, True)
    ]
    with_gradient = 704_512 - (16_384 + 5 * 32_768)  # entering ReLUs of the network, but for those before meta 1
    with_gradient += sum(torch.Size(part.outputs).numel() for part in parts)  # and of the meta networks
    assert each[0] - each[1] == 64 * with_gradient * 7 // 8

    held = [t for m in (net, metas) for t in (*m.parameters(), *m.buffers())]
    with SavedBytes(held) as meter:
        GroupedNet(net, parts, metas, "stop")(
            IMAGES,
            lambda k, a, f: torch.autograd.grad((a - f.detach()).abs().mean(), list(metas[k].parameters())),
            local=True,
        )
    # part 2: five maps of 32,768 (three a meta network, its ReLU, the difference), statistics of twice 32 channels
    assert meter.peak == 64 * FLOAT * 5 * 32_768 + 4 * FLOAT * 32
