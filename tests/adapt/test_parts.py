"""What methods share: norms, the carried optimizer, views; by values that can be found by hand."""

import pytest
import torch
from torch import nn

from cil.adapt.parts.losses import cross_entropy, gradients
from cil.adapt.parts.norms import (
    MixedNorm2d,
    is_transformer,
    late_layers,
    replace_batch_norms,
    train_norms,
    use_batch_statistics,
)
from cil.adapt.parts.optimizer import CarriedOptimizer, assign, flat, make_optimizer, move_teacher
from cil.adapt.parts.views import random_view
from cil.errors import ConfigError
from cil.models import CifarResNet, WideResNet, build_backbone


def key(number):
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ({"name": "adam", "lr": 0.01}, lambda p: torch.optim.Adam(p, lr=0.01)),
        ({"name": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            {"name": "sgd", "lr": 0.1, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        ),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.0}, lambda p: torch.optim.SGD(p, lr=0.1)),
    ],
)
def test_steps_are_those_of_torch(own, theirs, layout):
    start = [torch.randn(2, 3, 2, 2, generator=key(0)).to(memory_format=layout), torch.randn(3, generator=key(1))]
    ours, other = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizer, reference = CarriedOptimizer(ours, **own), theirs(other)
    for step in range(20):
        grads = [torch.randn(p.shape, generator=key(step)) for p in start]
        for p, g in zip(other, grads, strict=True):
            p.grad = g.clone()
        optimizer.step(grads)
        reference.step()
    for mine, torchs in zip(ours, other, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-6)


def test_an_optimizer_carries_moments_and_no_parameters():
    weight = nn.Parameter(torch.zeros(3, 2))
    adam, sgd = CarriedOptimizer([weight], "adam"), CarriedOptimizer([weight], "sgd")
    assert {name: value.shape for name, value in adam.state_dict().items()} == {"moments": (2, 6), "steps": ()}
    assert {name: value.shape for name, value in sgd.state_dict().items()} == {"moments": (1, 6)}
    assert CarriedOptimizer([weight], "sgd", momentum=0.0).moments.numel() == 0
    adam.step([torch.ones(3, 2)])
    assert adam.moments.abs().sum() > 0
    adam.restart()
    assert adam.moments.abs().sum() == adam.steps == 0


def test_what_is_left_open_is_what_was_published_for_so_many_classes():
    weight = [nn.Parameter(torch.zeros(1))]
    for classes, name, lr in ((10, "adam", 1e-3), (100, "adam", 1e-3), (1000, "sgd", 2.5e-4)):
        made = make_optimizer(weight, "tent", classes, None, None, 0.9)
        assert (made.name, made.lr) == (name, lr)
    made = make_optimizer(weight, "tent", 1000, "adam", 0.5, 0.9)
    assert (made.name, made.lr) == ("adam", 0.5)
    with pytest.raises(ConfigError, match=r"adapter.optimizer of tent is 'rmsprop'; allowed: null, adam, sgd"):
        make_optimizer(weight, "tent", 10, "rmsprop", None, 0.9)


def test_cross_entropy_is_that_of_the_student_under_the_target():
    target, logits = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).log_softmax(1)
    # p = 1/2, 1/2; log q = -3.048587, -0.048587
    assert cross_entropy(target, logits).item() == pytest.approx(1.548587, abs=1e-5)
    assert cross_entropy(logits, target).item() == pytest.approx(0.693147, abs=1e-5)


def test_gradients_fill_no_grad_and_are_zero_where_nothing_depends():
    used, unused = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([1.0, 1.0]))
    found = gradients(used.square().sum(), [used, unused])
    assert [g.tolist() for g in found] == [[4.0], [0.0, 0.0]]
    assert used.grad is None and unused.grad is None


def test_vectors_go_there_and_back():
    tensors = [torch.arange(6.0).view(1, 2, 3, 1).to(memory_format=torch.channels_last), torch.tensor(7.0)]
    vector = flat(tensors)
    assert vector.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assign(tensors, vector + 1)
    assert tensors[0].flatten().tolist() == [1, 2, 3, 4, 5, 6] and tensors[1] == 8


def test_a_teacher_follows_parameters_and_keeps_its_buffers():
    teacher, student = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    nn.init.constant_(teacher.weight, 1.0), nn.init.constant_(student.weight, 3.0)
    student.running_mean.fill_(9)
    move_teacher(teacher, student, 0.75)
    assert teacher.weight.item() == 0.75 * 1 + 0.25 * 3
    assert teacher.running_mean.item() == 0 and student.weight.item() == 3


def test_only_norm_layers_are_trained_and_all_kinds_of_them():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(5), nn.Linear(5, 2))
    trained = train_norms(net, "tent")
    assert {id(p) for p in trained} == {id(p) for layer in net[1:4] for p in layer.parameters()}
    assert [p.requires_grad for p in net.parameters()] == [False] * 2 + [True] * 6 + [False] * 2
    assert len(train_norms(net, "tent", [net[2]])) == 4 and not net[2].weight.requires_grad
    with pytest.raises(ConfigError, match="tent trains gamma and beta"):
        train_norms(nn.Sequential(nn.Linear(2, 2)), "tent")


def test_batch_statistics_are_used_in_evaluation_mode_and_none_are_kept():
    norm = nn.BatchNorm2d(2)
    x = 3 + 2 * torch.randn(8, 2, 3, 3, generator=key(0))
    expected = nn.BatchNorm2d(2)(x)  # in training mode
    use_batch_statistics(norm).eval()
    torch.testing.assert_close(norm(x), expected)
    assert set(norm.state_dict()) == {"weight", "bias"}


def norm_with(mean, var):
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.running_mean.fill_(mean), norm.running_var.fill_(var)
    return norm


def test_a_mixed_norm_mixes_mean_and_biased_variance():
    x = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)  # mean 2, biased variance 4
    mixed = MixedNorm2d(norm_with(10.0, 8.0), 0.25)
    nn.init.constant_(mixed.weight, 2.0), nn.init.constant_(mixed.bias, 1.0)
    # mean 0.75 * 10 + 0.25 * 2 = 8, variance 0.75 * 8 + 0.25 * 4 = 7
    for mode in (True, False):
        expected = [2 * (value - 8) / 7**0.5 + 1 for value in (0.0, 4.0)]
        assert mixed.train(mode)(x).flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert (mixed.running_mean.item(), mixed.running_var.item()) == (10, 8)


def test_a_following_norm_stores_the_mixture_in_training_and_uses_it_alone_in_evaluation():
    x = torch.tensor([0.0, 4.0]).view(2, 1, 1, 1)
    norm = MixedNorm2d(norm_with(10.0, 8.0), 0.25, follow=True)
    assert norm.eval()(x).flatten().tolist() == pytest.approx([-10 / 8**0.5, -6 / 8**0.5], abs=1e-5)
    assert norm.running_mean.item() == 10
    assert norm.train()(x).flatten().tolist() == pytest.approx([-8 / 7**0.5, -4 / 7**0.5], abs=1e-5)
    assert (norm.running_mean.item(), norm.running_var.item()) == (8, 7)
    norm(x)
    assert (norm.running_mean.item(), norm.running_var.item()) == (0.75 * 8 + 0.5, 0.75 * 7 + 1)


def test_gradients_pass_through_the_share_of_the_batch():
    x = torch.randn(4, 1, 2, 2, generator=key(0), dtype=torch.float32, requires_grad=True)
    plain = torch.autograd.grad(nn.BatchNorm2d(1, eps=1e-12)(x).pow(3).sum(), x)[0]
    mixed = torch.autograd.grad(MixedNorm2d(norm_with(0.0, 1.0), 1.0)(x).pow(3).sum(), x)[0]
    torch.testing.assert_close(mixed, plain, rtol=1e-4, atol=1e-5)


class ActivatedNorm(nn.BatchNorm2d):
    """A batch norm with its activation inside, as timm has them."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def test_batch_norms_are_replaced_wherever_they_are_with_what_they_have_built_in():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(ActivatedNorm(2)), nn.BatchNorm2d(2)).eval()
    x = torch.randn(3, 1, 2, 2, generator=key(0))
    before, names = net(x), [name for name in net.state_dict() if "num_batches" not in name]
    made = replace_batch_norms(net, lambda norm: MixedNorm2d(norm, 0.0))
    assert [type(layer) for layer in made] == [MixedNorm2d] * 2 and not any(
        isinstance(layer, nn.BatchNorm2d) for layer in net.modules()
    )
    torch.testing.assert_close(net(x), before)
    assert list(net.state_dict()) == names
    with pytest.raises(ConfigError, match="without stored statistics"):
        MixedNorm2d(nn.BatchNorm2d(2, track_running_stats=False), 0.5)


class Named(nn.Module):
    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def test_the_last_stage_is_found_by_the_make_of_the_network():
    resnet = build_backbone("resnet18", 3, 32)
    assert late_layers(Named(backbone=resnet), "sar") == [resnet.stages[-1]]
    for three_stages in (CifarResNet(14), WideResNet(16, 2)):  # the authors' filter finds no layer4 there
        assert late_layers(Named(backbone=three_stages, head=nn.Linear(1, 1)), "sar") == []
    torchs = Named(layer1=nn.Linear(1, 1), layer4=nn.Linear(1, 1), fc=nn.Linear(1, 1))
    assert late_layers(torchs, "sar") == [torchs.layer4]
    blocks = nn.Sequential(*(nn.LayerNorm(2) for _ in range(12)))
    vit = Named(blocks=blocks, norm=nn.LayerNorm(2))
    assert late_layers(Named(model=vit), "sar") == [*blocks[9:], vit.norm]
    assert is_transformer(Named(model=vit)) and not is_transformer(Named(backbone=resnet))
    convnext = Named(stages=nn.Sequential(Named(blocks=blocks), Named(blocks=nn.Sequential(nn.LayerNorm(2)))))
    assert late_layers(convnext, "sar") == [convnext.stages[1]] and not is_transformer(convnext)
    with pytest.raises(ConfigError, match=r"sar leaves the last stage as it is.*adapter\.leave"):
        late_layers(nn.Sequential(nn.BatchNorm2d(2)), "sar")


def test_a_view_is_keyed_in_range_and_without_gradient():
    images = torch.rand(3, 3, 12, 12, generator=key(0), requires_grad=True)
    view = random_view(images, key(1))
    assert view.shape == images.shape and not view.requires_grad
    assert view.min() >= 0 and view.max() <= 1
    assert torch.equal(view, random_view(images, key(1)))
    assert (view - random_view(images, key(2))).abs().mean() > 0.02
    assert (view - images).abs().mean() > 0.02
    assert random_view(images[:, :1], key(1)).shape == (3, 1, 12, 12)
    with pytest.raises(ConfigError, match="grey or colour images, not of 2 channels"):
        random_view(images[:, :2], key(1))


def test_a_view_is_drawn_once_for_the_batch_but_for_its_noise():
    images = torch.rand(1, 3, 12, 12, generator=key(0)).expand(2, -1, -1, -1)
    apart = torch.cat([(v := random_view(images, key(number)))[0] - v[1] for number in range(20)])
    assert 0 < apart.abs().max() < 0.06
    # two noises of 0.005, but for what is clipped
    assert apart[apart != 0].std().item() == pytest.approx(0.005 * 2**0.5, rel=0.15)


def test_a_view_flips_half_the_time_keeps_the_place_and_does_not_show_what_lies_outside():
    images = torch.full((1, 3, 12, 12), 0.3)
    images[..., 6:] = 0.6
    views = [random_view(images, key(number))[0].mean(0) for number in range(60)]
    flipped = sum(bool(view[:, :5].mean() > view[:, 7:].mean()) for view in views)
    assert 15 <= flipped <= 45
    assert min(view.min().item() for view in views) > 0.05  # no black corners: the edge is padded


def test_brightness_of_views_varies_as_said():
    plain = torch.full((1, 1, 6, 6), 0.5)
    levels = torch.tensor([random_view(plain, key(number)).mean() for number in range(60)])
    # 0.5 times 0.6 to 1.4, then a gamma of 0.7 to 1.3, or the other way round
    assert 0.2 < levels.min() < 0.33 and 0.68 < levels.max() < 0.82
