"""Growing and branching networks, frozen and folded copies, features in batches."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cil.data import Samples
from cil.errors import ShapeError
from cil.models import (
    BranchingNet,
    CifarResNet,
    GrowingNet,
    ImageNetResNet,
    LinearHead,
    NetFactory,
    Normalise,
    SmallConvNet,
    build_backbone,
    evaluating,
    extract,
    extract_outputs,
    frozen_copy,
)

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def growing(backbone: nn.Module | None = None, classes: int = 4) -> GrowingNet:
    backbone = backbone or SmallConvNet()
    net = GrowingNet(backbone, LinearHead(backbone.feature_dim), Normalise((0.5,) * 3, (0.25,) * 3))
    net.grow(classes)
    return net


def branching(branches: int = 2, classes: int = 4, backbone=SmallConvNet) -> BranchingNet:
    net = BranchingNet(backbone, Normalise((0.5,) * 3, (0.25,) * 3))
    for _ in range(branches):
        net.add_branch()
        net.grow(classes)
    return net


def floats(net: nn.Module) -> int:
    return sum(value.numel() for value in net.state_dict().values())


def train(net: nn.Module, steps: int = 3) -> None:
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(IMAGES).logits, torch.arange(8) % net.num_classes).backward()
        optimizer.step()


def test_a_resnet32_with_100_classes_carries_parameters_head_and_statistics_and_nothing_else():
    net = growing(CifarResNet(32), classes=100)
    assert floats(net) == 463_504 + 6_500 + 2_272
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    assert net.survey_parameters == 463_504


def test_a_state_dict_loads_strictly_without_version_and_with_or_without_batch_counters():
    net, other = growing(), growing()
    plain = dict(net.state_dict())  # as read from a file: no version, so batch norm expects a counter
    other.load_state_dict(plain)
    assert torch.equal(other.eval()(IMAGES).logits, net.eval()(IMAGES).logits)
    counted = plain | {"backbone.stages.0.1.num_batches_tracked": torch.tensor(3)}
    other.load_state_dict(counted)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in plain.items() if not name.endswith("running_mean")})


def test_growth_keeps_the_logits_of_a_network():
    net = growing(classes=10).eval()
    before = net(IMAGES)
    net.grow(10)
    after = net(IMAGES)
    assert net.num_classes == 20
    torch.testing.assert_close(after.logits[:, :10], before.logits, rtol=0, atol=1e-5)
    assert torch.equal(after.features, before.features)


def test_images_are_normalised_inside_the_network():
    net = growing().eval()
    features, stages = net.backbone((IMAGES - 0.5) / 0.25)
    output = net(IMAGES)
    assert torch.equal(output.features, features)
    assert len(output.stages) == len(stages) == 2
    assert not any("normalise" in name for name in net.state_dict())


@pytest.mark.parametrize("classes", [10])
def test_on_meta_a_resnet32_and_ten_branches_grow_without_values(classes):
    factory = NetFactory(partial(build_backbone, "resnet32", 3, 32), mean=(0.5,) * 3, std=(0.2,) * 3, meta=True)
    single, net = factory(), factory.branching()
    for _ in range(10):
        single.grow(classes)
        net.add_branch()
        net.grow(classes)
    assert floats(single) == 463_504 + 6_500 + 2_272
    assert floats(net) == 10 * 463_504 + (10 * 64 + 1) * 100 + 10 * 2_272
    assert net.survey_parameters == 10 * 463_504
    for made in (single, net):
        assert all(value.is_meta for value in (*made.parameters(), *made.buffers()))
    assert net(torch.empty(2, 3, 32, 32, device="meta")).logits.shape == (2, 100)


def test_features_of_branches_stand_side_by_side_oldest_first():
    net = branching(3).eval()
    output = net(IMAGES)
    x = net.normalise(IMAGES)
    assert output.features.shape == (8, net.feature_dim) == (8, 3 * net.branch_dim)
    for number, branch in enumerate(net.branches):
        part = output.features[:, number * net.branch_dim : (number + 1) * net.branch_dim]
        assert torch.equal(part, branch(x)[0])
    assert torch.equal(output.stages[-1], net.branches[-1](x)[1][-1])


def test_earlier_branches_and_their_statistics_and_features_do_not_change_in_training():
    net = branching(2)
    net.eval()
    before = copy.deepcopy(net.branches[0].state_dict())
    features = net(IMAGES).features.detach()
    train(net)
    net.eval()
    after = net(IMAGES).features
    dim = net.branch_dim
    assert all(torch.equal(value, before[name]) for name, value in net.branches[0].state_dict().items())
    assert torch.equal(after[:, :dim], features[:, :dim])
    assert not torch.equal(after[:, dim:], features[:, dim:])


def test_only_the_last_branch_is_in_training_mode():
    net = branching(3)
    net.train()
    net.branches.train()
    assert [{layer.training for layer in branch.modules()} for branch in net.branches] == [{False}, {False}, {True}]


def test_a_copied_branch_sees_what_the_branch_before_it_sees():
    net = branching(1)
    train(net)
    net.add_branch()
    net.copy_branch(-2, -1)
    net.eval()
    features = net(IMAGES).features
    assert torch.equal(features[:, : net.branch_dim], features[:, net.branch_dim :])
    train(net, steps=1)  # the copy is a copy: the frozen one stays
    moved = net.eval()(IMAGES).features
    assert torch.equal(moved[:, : net.branch_dim], features[:, : net.branch_dim])


def test_one_backbone_and_the_head_are_trained_out_of_b():
    net = branching(3, classes=4)
    one = net.branches[0].survey_parameters
    head = 12 * 3 * net.branch_dim + 12
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert trained == one + head
    assert sum(parameter.numel() for parameter in net.parameters()) == 3 * one + head
    assert net.survey_parameters == 3 * one


def test_a_new_branch_leaves_the_old_block_of_the_head():
    net = branching(1, classes=4)
    weight, bias = net.head.weight.detach().clone(), net.head.bias.detach().clone()
    net.add_branch()
    net.grow(4)
    assert torch.equal(net.head.weight[:4, : weight.shape[1]], weight)
    assert torch.equal(net.head.bias[:4], bias)


@pytest.mark.parametrize("use", [lambda net: net.grow(2), lambda net: net(IMAGES)])
def test_a_branching_network_without_branches_refuses_to_work(use):
    with pytest.raises(ShapeError):
        use(BranchingNet(SmallConvNet))


def test_a_frozen_copy_stays_as_it_was_whoever_calls_train():
    net = growing()
    teacher = frozen_copy(net)
    around = nn.ModuleDict({"teacher": teacher, "net": net})
    before = copy.deepcopy(teacher.state_dict())
    around.train()
    assert net.training
    assert not any(layer.training for layer in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    teacher(IMAGES)
    train(net)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_copy_of_a_frozen_copy_is_frozen_itself():
    first = frozen_copy(growing())
    second = copy.deepcopy(first)
    assert second.train() is second
    assert not any(layer.training for layer in second.modules())


NETWORKS = {
    "growing": lambda: growing(),
    "resnet14": lambda: growing(CifarResNet(14)),
    "cosine resnet14": lambda: growing(CifarResNet(14, cosine=True)),
    "resnet10": lambda: growing(ImageNetResNet((1, 1, 1, 1), stem="3x3")),
    "bottlenecks": lambda: growing(ImageNetResNet((1, 1, 1, 1), bottleneck=True, stem="3x3")),
    "branching": lambda: branching(2),
}


def samples(count: int = 23) -> Samples:
    pixels = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Samples.from_arrays(pixels, torch.zeros(count, dtype=torch.int64))


def test_extracted_features_are_those_of_evaluation_mode_in_order():
    net = growing()
    train(net)
    data = samples()
    features = extract(net, data, batch_size=5)
    outputs = extract_outputs(net, data, batch_size=5)
    expected = net.eval()(data.pixels / 255)
    torch.testing.assert_close(features, expected.features)
    torch.testing.assert_close(outputs.logits, expected.logits)
    assert torch.equal(outputs.features, features)
    assert not features.requires_grad


def test_extraction_gives_every_layer_its_mode_back_and_changes_no_statistics():
    net = branching(2)
    net.train()
    net.branches[1].stages[0].eval()
    modes = [layer.training for layer in net.modules()]
    before = copy.deepcopy(net.state_dict())
    extract(net, samples())
    assert [layer.training for layer in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_modes_come_back_after_an_error():
    net = growing()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        assert not net.training
        raise ZeroDivisionError
    assert net.training


def test_no_samples_give_no_rows_of_the_right_length():
    net = branching(2)
    outputs = extract_outputs(net, samples(3)[torch.arange(0)])
    assert outputs.features.shape == (0, net.feature_dim)
    assert outputs.logits.shape == (0, net.num_classes)


def test_features_under_bf16_autocast_come_back_as_float32():
    net = growing()
    with torch.autocast("cpu", torch.bfloat16):
        features = extract(net, samples())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, extract(net, samples()), rtol=0.1, atol=0.05)
