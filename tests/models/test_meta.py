"""Partitions, meta networks and grouped networks: published counts, shapes, and what must not change."""

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import (
    CifarResNet,
    ConvNet2,
    GrowingNet,
    LinearHead,
    WideResNet,
    build_backbone,
    count_parameters,
    freeze,
)
from cil.models.meta import GRAD_PATHS, GroupedNet, MetaNetworks
from cil.models.partition import cut_network, partition, residual_stages

GENERATOR = torch.Generator()


def classifier(backbone: nn.Module, outputs: int = 10) -> GrowingNet:
    net = GrowingNet(backbone, LinearHead(backbone.feature_dim))
    net.grow(outputs)
    return freeze(net)


def on_meta(name: str, size: int = 32, **options) -> GrowingNet:
    with torch.device("meta"):
        return classifier(build_backbone(name, in_channels=3, image_size=size, **options))


def small(seed: int = 0, backbone: str = "resnet") -> GrowingNet:
    """A network with statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    net = GrowingNet(CifarResNet(14, width=4) if backbone == "resnet" else WideResNet(16, 1), LinearHead(0))
    net.head = LinearHead(net.backbone.feature_dim)
    net.grow(5)
    net.train()
    for _ in range(3):
        net(torch.rand(8, 3, 16, 16))
    return freeze(net)


def grouped(net: nn.Module, parts=3, **settings) -> tuple[GroupedNet, MetaNetworks]:
    cuts = cut_network(net, (3, 16, 16), parts)
    metas = MetaNetworks(cuts, None, torch.Generator().manual_seed(1))
    return GroupedNet(net, cuts, metas, **settings), metas


def through(x: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
    """In place of a meta network: the frozen map as it is."""
    return x


# partitions -----------------------------------------------------------------------------------------------------------

PUBLISHED = [  # blocks, stages, K, parts (spec 2.1)
    (12, 3, 4, [2, 2, 4, 4]),
    (12, 3, 5, [2, 2, 2, 2, 4]),
    (18, 3, 4, [3, 3, 6, 6]),
    (18, 3, 5, [3, 3, 3, 3, 6]),
    (16, 4, 4, [4, 4, 4, 4]),
    (16, 4, 5, [2, 2, 4, 4, 4]),
    (8, 4, 4, [2, 2, 2, 2]),  # ResNet-18: one group a stage (spec 12.4)
]


@pytest.mark.parametrize(("blocks", "stages", "count", "sizes"), PUBLISHED)
def test_partitions_are_the_published_ones(blocks, stages, count, sizes):
    assert partition(blocks, stages, count) == sizes


@pytest.mark.parametrize("stages", [3, 4])
@pytest.mark.parametrize("blocks", [4, 8, 9, 15, 16, 27])
def test_any_partition_uses_each_block_once_and_has_no_empty_part(blocks, stages):
    for count in range(1, blocks + 1):
        sizes = partition(blocks, stages, count)
        assert len(sizes) == count
        assert sum(sizes) == blocks
        assert min(sizes) >= 1


def test_more_parts_than_blocks_are_refused():
    with pytest.raises(ConfigError, match=r"parts is 10; .* 9 residual blocks, so 1 to 9"):
        partition(9, 3, 10)


COUNTS = [  # network, image side, options, K, parameters (spec 2.1 and 12.4), stride of the network's parts
    ("wrn_40_2", 32, {}, 4, 107_008, 4),
    ("wrn_40_2", 32, {}, 5, 144_128, 4),
    ("wrn_28_10", 32, {}, 4, 2_562_560, 4),
    ("wrn_28_10", 32, {}, 5, 3_485_440, 4),
    ("resnet50", 224, {}, 4, 3_721_216, 8),
    ("resnet50", 224, {}, 5, 3_836_928, 8),
    ("resnet50", 32, {"stem": "3x3"}, 4, 3_721_216, 8),
    ("resnet18", 32, {"stem": "3x3"}, 4, 1_588_992, 8),
]


@pytest.mark.parametrize(("name", "size", "options", "count", "parameters", "stride"), COUNTS)
def test_meta_networks_have_the_published_size_and_fit_their_parts(name, size, options, count, parameters, stride):
    net = on_meta(name, size, **options)
    parts = cut_network(net, (3, size, size), count)
    with torch.device("meta"):
        metas = MetaNetworks(parts, None, GENERATOR)
    assert count_parameters(metas) == parameters
    assert metas.kernel == (1 if name == "resnet50" else 3)
    assert torch.tensor([part.stride for part in parts]).prod() == stride
    shapes = []
    GroupedNet(net, parts, metas)(
        torch.empty(2, 3, size, size, device="meta"),
        lambda k, adapted, frozen: shapes.append((k, adapted.shape[1:], frozen.shape[1:])),
    )
    assert shapes == [(k, torch.Size(part.outputs), torch.Size(part.outputs)) for k, part in enumerate(parts)]


def test_what_enters_and_leaves_the_parts_of_wrn_40_2_gives_the_published_activations():
    for count, elements in ((4, 278_528), (5, 327_680)):  # spec 6.1
        parts = cut_network(on_meta("wrn_40_2"), (3, 32, 32), count)
        sizes = [(torch.Size(part.inputs).numel(), torch.Size(part.outputs).numel()) for part in parts]
        assert sum(2 * leaving + entering for entering, leaving in sizes) == elements


def test_parts_can_be_given():
    assert [part.blocks for part in cut_network(on_meta("resnet50", 64), (3, 64, 64), [3, 3, 5, 5])] == [3, 3, 5, 5]
    with pytest.raises(ConfigError, match=r"parts is \[3, 3\]; this network has 9 residual blocks"):
        cut_network(on_meta("resnet20"), (3, 32, 32), [3, 3])


@pytest.mark.parametrize("net", [ConvNet2(), nn.Linear(3, 2), nn.ModuleList([CifarResNet(14), CifarResNet(14)])])
def test_networks_that_are_no_chain_of_blocks_are_refused(net):
    with pytest.raises(ConfigError, match="residual blocks"):
        residual_stages(net)


def test_blocks_that_do_not_follow_one_another_are_refused():
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = (nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1))) for _ in range(2))

        def forward(self, x):
            return self.layer2(self.layer1(x) + 1)

    with pytest.raises(ConfigError, match="do not follow one another"):
        cut_network(Skipping(), (3, 8, 8), 2)


TIMM = ["resnet18", "resnetv2_50", "regnetx_002", "convnext_atto", "resnext50_32x4d"]


@pytest.mark.parametrize("name", TIMM)
def test_residual_timm_models_are_cut_along_their_stages(name):
    with torch.device("meta"):
        net = classifier(build_backbone(f"timm:{name}", in_channels=3, image_size=64))
    parts = cut_network(net, (3, 64, 64), 4)
    assert len(parts) == 4
    assert parts[-1].outputs[0] == net.feature_dim
    strides = torch.tensor([part.stride for part in parts])
    assert strides.prod() == parts[0].inputs[1] / parts[-1].outputs[1]


# grouped networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet", "wrn"])
@pytest.mark.parametrize("grad_path", GRAD_PATHS)
def test_with_nothing_added_the_network_computes_what_it_did(backbone, grad_path):
    net, images = small(backbone=backbone), torch.rand(4, 3, 16, 16)
    same = GroupedNet(net, cut_network(net, (3, 16, 16), 3), [through] * 3, grad_path, share=0.0)
    assert torch.equal(same(images).logits, net(images).logits)


def test_a_group_adds_its_two_branches_to_what_the_adapted_input_gives():
    net, images = small(), torch.rand(4, 3, 16, 16)
    run, metas = grouped(net, 2, share=0.0)
    maps = []
    run(images, lambda k, adapted, frozen: maps.append((adapted, frozen)))
    backbone = net.backbone
    first, second = [*backbone.stages[0], backbone.stages[1][0]], [backbone.stages[1][1], *backbone.stages[2]]
    x = backbone.stem(images)
    for meta, blocks, (adapted, frozen) in zip(metas, ([*first][:3], [*second]), maps, strict=True):
        out = nn.Sequential(*blocks)(x)
        assert torch.allclose(frozen, out, atol=1e-6)
        x = meta.norm(out) + meta.conv_norm(meta.conv(x)).relu()
        assert torch.allclose(adapted, x, atol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet", "wrn"])
def test_from_identity_the_output_differs_by_the_convolutions_alone(backbone):
    net, images = small(backbone=backbone), torch.rand(16, 3, 16, 16)
    run, metas = grouped(net, share=0.0)
    run.start_at_identity([images[:10], images[10:]])
    assert not torch.allclose(run(images).logits, net(images).logits, atol=1e-4)
    for meta in metas:
        assert torch.equal(meta.conv_norm.weight, torch.full_like(meta.conv_norm.weight, 0.01))
        meta.conv_norm.weight.data.zero_()
    assert torch.allclose(run(images).logits, net(images).logits, atol=1e-4)
    maps = []
    GroupedNet(net, cut_network(net, (3, 16, 16), 3), [through] * 3, share=0.0)(images, lambda k, a, f: maps.append(f))
    assert torch.allclose(metas[0].norm.bias, maps[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(metas[0].norm.running_var, maps[0].var((0, 2, 3), correction=0), rtol=1e-4)


@pytest.mark.parametrize("grad_path", GRAD_PATHS)
def test_with_detached_inputs_a_distance_reaches_its_own_meta_network_alone(grad_path):
    net, images = small(), torch.rand(4, 3, 16, 16)
    run, metas = grouped(net, grad_path=grad_path)
    terms = []
    run(images, lambda k, adapted, frozen: terms.append((adapted - frozen.detach()).abs().mean()), local=True)
    for k, term in enumerate(terms):
        metas.zero_grad()
        term.backward()
        reached = [any(p.grad is not None for p in meta.parameters()) for meta in metas]
        assert reached == [j == k for j in range(3)]
        assert all(p.grad.abs().sum() > 0 for p in (metas[k].norm.weight, metas[k].conv.weight))


def test_without_detached_inputs_it_reaches_the_earlier_ones_too():
    run, metas = grouped(small())
    terms = []
    run(torch.rand(4, 3, 16, 16), lambda k, adapted, frozen: terms.append((adapted - frozen.detach()).abs().mean()))
    terms[-1].backward()
    assert all(meta.conv.weight.grad.abs().sum() > 0 for meta in metas)


def test_the_frozen_part_and_all_statistics_stay_and_no_hook_is_left():
    net, images = small(), torch.rand(4, 3, 16, 16)
    run, metas = grouped(net)
    before = {key: value.clone() for key, value in (net.state_dict() | metas.state_dict(prefix="m.")).items()}
    for _ in range(3):
        run(images).logits.sum().backward()
    after = net.state_dict() | metas.state_dict(prefix="m.")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_meta_networks_in_training_mode_follow_their_statistics_and_the_frozen_part_does_not():
    net, images = small(), torch.rand(4, 3, 16, 16)
    run, metas = grouped(net)
    frozen, followed = net.backbone.stem[1].running_mean.clone(), metas[0].norm.running_mean.clone()
    net.train()
    metas.train()
    run(images)
    assert torch.equal(net.backbone.stem[1].running_mean, frozen)
    assert not torch.equal(metas[0].norm.running_mean, followed)


def test_initial_values_are_torchs_own_and_come_from_the_generator():
    parts = cut_network(small(), (3, 16, 16), 3)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    metas = MetaNetworks(parts, None, torch.Generator().manual_seed(1))
    assert torch.equal(torch.rand(1), expected)  # the global generator was not moved
    again = MetaNetworks(parts, None, torch.Generator().manual_seed(1))
    other = MetaNetworks(parts, None, torch.Generator().manual_seed(2))
    for meta, same, different, part in zip(metas, again, other, parts, strict=True):
        assert torch.equal(meta.conv.weight, same.conv.weight)
        assert not torch.equal(meta.conv.weight, different.conv.weight)
        bound = (part.inputs[0] * 9) ** -0.5  # Kaiming-uniform with a = sqrt(5)
        assert 0.9 * bound < meta.conv.weight.abs().max() <= bound
        assert meta.norm.weight.unique().tolist() == [1.0]
        assert meta.conv.bias is None


def test_settings_that_cannot_be_meant_are_refused():
    net = small()
    parts = cut_network(net, (3, 16, 16), 3)
    with pytest.raises(ConfigError, match="kernel is 2; it must be odd"):
        MetaNetworks(parts, 2, GENERATOR)
    with pytest.raises(ConfigError, match="grad_path is 'half'; allowed: full, lean, stop"):
        GroupedNet(net, parts, [through] * 3, "half")
    with pytest.raises(ConfigError, match="alpha is 2; it must be between 0 and 1"):
        GroupedNet(net, parts, [through] * 3, share=2)
