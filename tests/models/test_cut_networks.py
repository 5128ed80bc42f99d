"""Networks that share all but the last stages of a backbone between their branches: the networks of MEMO."""

from functools import partial

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import Backbone, NetFactory, build_backbone, freeze
from cil.models.base import count_parameters
from cil.models.convnets import SmallConvNet

SPLITS = {  # generalised and specialised parameters, by the survey and MEMO's paper
    ("convnet2", 32): (1_920, 37_056),
    ("resnet14", 32): (42_320, 129_536),
    ("resnet32", 32): (112_016, 351_488),
    ("resnet18", 224): (2_782_784, 8_393_728),
}


def cut_net(branches=2, classes=4, specialised=1, **options):
    net = NetFactory(SmallConvNet, **options).branching(specialised)
    for _ in range(branches):
        net.add_branch()
    net.grow(classes)
    return net


def images(count=4):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "side"), SPLITS)
def test_the_survey_charges_the_shared_part_once_and_the_last_stage_for_each_branch(name, side):
    general, special = SPLITS[name, side]
    net = NetFactory(partial(build_backbone, name, 3, side), meta=True).branching(specialised=1)
    for branches in (1, 2, 3):
        net.add_branch()
        assert count_parameters(net.shared) == general
        assert [count_parameters(branch) for branch in net.branches] == [special] * branches
        assert net.survey_parameters == general + branches * special


def test_one_branch_of_the_cosine_backbone_is_charged_as_the_survey_charges_the_backbone():
    net = NetFactory(partial(build_backbone, "resnet32_cosine", 3, 32), meta=True).branching(specialised=1)
    net.add_branch()
    assert net.survey_parameters == 463_504
    net.add_branch()
    assert net.survey_parameters == 463_504 + count_parameters(net.branches[1])


@pytest.mark.parametrize("specialised", [1, 2, 3])
def test_one_branch_computes_what_the_uncut_backbone_computes(specialised):
    make = partial(build_backbone, "resnet14", 3, 32)
    whole, net = NetFactory(make, seed=3)(), NetFactory(make, seed=3).branching(specialised)
    net.add_branch()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for mode in (True, False):
        expected, maps = whole.train(mode).backbone(x)
        found = net.train(mode)(x)
        assert torch.equal(found.features, expected)
        assert len(found.stages) == len(maps) == 3 and all(map(torch.equal, found.stages, maps))


def test_every_branch_sees_the_map_of_the_shared_part():
    net = cut_net(3).eval()
    x = images()
    features = net(x).features
    shared = net.shared(x)
    assert torch.equal(features, torch.cat([branch.stages[0](shared).mean((2, 3)) for branch in net.branches], 1))
    with torch.no_grad():
        next(net.shared.parameters()).mul_(2)
    assert (net(x).features != features).any(0).view(3, -1).any(1).all()


def test_further_branches_leave_the_shared_part_alone():
    net = cut_net(1)
    before = {name: value.clone() for name, value in net.shared.state_dict().items()}
    net.add_branch()
    assert before and all(torch.equal(value, before[name]) for name, value in net.shared.state_dict().items())
    assert len({id(p) for p in net.parameters()}) == len(list(net.parameters()))


def test_gradients_pass_through_older_branches_to_a_shared_part_that_learns_and_stop_at_a_frozen_one():
    net = cut_net(2).train()
    old = net(images()).features[:, :32].square().sum()  # of the frozen branch alone
    old.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in list(net.shared.parameters())[:1])
    assert not any(p.requires_grad or p.grad is not None for p in net.branches[0].parameters())
    freeze(net.shared).zero_grad(set_to_none=True)
    net(images()).features.square().sum().backward()
    assert not any(p.grad is not None for part in (net.shared, net.branches[0]) for p in part.parameters())
    assert all(p.grad is not None for p in net.branches[1].parameters())


def test_older_branches_and_a_frozen_shared_part_stay_in_evaluation_mode():
    net = cut_net(2)

    def modes():
        return [{layer.training for layer in part.modules()} for part in (net.shared, *net.branches)]

    net.train()
    assert modes() == [{True}, {False}, {True}]
    freeze(net.shared)
    net.train()
    assert modes() == [{False}, {False}, {True}]


def test_a_backbone_without_stages_is_refused():
    class Plain(nn.Module):
        feature_dim, survey_parameters = 3, 0

        def forward(self, x):
            return x.mean((2, 3)), ()

    class Own(SmallConvNet):
        def forward(self, x):
            return super().forward(2 * x)

    with pytest.raises(ConfigError, match=r"Plain: it is not made of a stem and stages; choose a model\.name"):
        NetFactory(Plain).branching(specialised=1)
    with pytest.raises(ConfigError, match=r"Own: it has a forward of its own; choose another model\.name"):
        NetFactory(Own).branching(specialised=1)
    timm = NetFactory(partial(build_backbone, "timm:resnet10t", 3, 32), meta=True)
    with pytest.raises(ConfigError, match=r"TimmBackbone.*model\.name"):
        timm.branching(specialised=1)
    timm.branching()  # whole backbones are fine
    for count in (0, 3):
        with pytest.raises(ConfigError, match=f"cannot cut off {count} stages of a SmallConvNet: it has 2"):
            NetFactory(SmallConvNet).branching(specialised=count)


def test_both_parts_of_a_cut_are_the_layers_themselves():
    backbone = SmallConvNet()
    first, last = backbone.cut(1)
    assert isinstance(last, Backbone) and last.feature_dim == 32
    assert [id(p) for p in (*first.parameters(), *last.parameters())] == [id(p) for p in backbone.parameters()]
    assert (count_parameters(first), count_parameters(last)) == backbone.split()
