"""Training memory by part of a network, on numbers done by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cil.errors import BudgetExceeded, ConfigError
from cil.memory import Allowance, Budget, Entry, Ledger, Published, SavedBytes, TrainingMemory, measure_step, published
from cil.memory.published_bytes import counting_inputs
from cil.memory.training_memory import OUTSIDE, ForwardTracker, SavedByPart, largest_batch

DEVICES = pytest.mark.parametrize("device", ["cpu", "meta"])


# exact: section 11 ----------------------------------------------------------------------------------------------------


def perceptron(device: str = "cpu") -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(device)
    return net, torch.zeros(5, 4, device=device), torch.zeros(5, dtype=torch.int64, device=device)


@DEVICES
def test_example_a_saves_224_bytes_and_says_who_saved_them(device):
    net, x, y = perceptron(device)
    found = measure_step(net, lambda: F.cross_entropy(net(x), y))
    assert found.storage_bytes == found.kinds["activations"] == 224
    assert found.logical_bytes == 224 + 60 + 40  # relu's result for the second layer, log-softmax for its own backward
    assert found.entries == 7
    assert found.dtypes == {"float32": 80 + 60 + 40 + 4, "int64": 40}
    assert {part.name: part.activations for part in found.parts} == {
        "net.0": 80, "net.1": 60, "net.2": 0, OUTSIDE: 40 + 40 + 4,
    }  # fmt: skip
    assert found.parts[-1].name == OUTSIDE
    assert found.device == device


@DEVICES
def test_parameters_gradients_and_moments_stand_beside_what_is_saved(device):
    net, x, y = perceptron(device)
    net[0].weight.requires_grad_(False)
    found = measure_step(net, lambda: F.cross_entropy(net(x), y), torch.optim.Adam(net.parameters()))
    first, second = found.parts[0], found.parts[2]
    assert (first.parameters, first.gradients, first.optimizer) == (48 + 12, 12, 2 * 12 + 4)  # moments, count of steps
    assert (second.parameters, second.gradients, second.optimizer) == (32, 32, 2 * 32 + 2 * 4)
    assert found.kinds["gradients"] == 44 and found.kinds["optimizer"] == 28 + 72
    assert found.kinds["activations"] == 224 - 80  # the input was for the frozen weight
    assert found.total == 92 + 44 + 100 + 144


def block(device: str = "cpu", inplace: bool = False) -> nn.Sequential:
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(inplace)).to(device)


def saved(net: nn.Module, x: torch.Tensor) -> int:
    return measure_step(net, lambda: net(x).sum()).storage_bytes


@DEVICES
@pytest.mark.parametrize("inplace", [False, True])
def test_example_b_freezing_saves_nothing_once_the_input_needs_a_gradient(device, inplace):
    x = torch.zeros(2, 3, 8, 8, device=device)
    net = block(device, inplace)
    assert saved(net, x) == 1536 + 4096 + 64 + 4096
    net[0].requires_grad_(False)
    assert saved(net, x) == 8256
    net.requires_grad_(False)
    assert saved(net, x) == 0
    x = torch.zeros(2, 3, 8, 8, device=device, requires_grad=True)
    assert saved(net, x * 1) == 9792


def test_example_b_in_evaluation_saves_two_empty_statistics_on_the_cpu_and_two_of_c_on_meta():
    for device, size in (("cpu", 9728), ("meta", 9792)):
        net = block(device).eval().requires_grad_(False)
        assert saved(net, torch.zeros(2, 3, 8, 8, device=device, requires_grad=True) * 1) == size


class Group(nn.Module):
    """One frozen part and its meta network."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.part.requires_grad_(False)
        self.norm, self.conv_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(2, 4, 3, 2, 1, bias=False)

    def forward(self, x: torch.Tensor, stop: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(not stop):
            frozen = self.part(x)
        return self.norm(frozen) + F.relu(self.conv_norm(self.conv(x))), frozen


@DEVICES
def test_example_c_one_group_of_meta_networks(device):
    group = Group().to(device)
    x = torch.zeros(3, 2, 8, 8, device=device, requires_grad=True)

    def local() -> torch.Tensor:
        adapted, frozen = group(x.detach(), stop=True)
        return (adapted - frozen).abs().mean()

    assert measure_step(group, lambda: group(x * 1, stop=True)[0].sum()).storage_bytes == 3904
    assert measure_step(group, lambda: group(x * 1, stop=False)[0].sum()).storage_bytes == 4704
    assert measure_step(group, local).storage_bytes == 4672


# whose ---------------------------------------------------------------------------------------------------------------


def test_parts_are_told_at_any_depth():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(3, 2))
    found = measure_step({"a": net}, lambda: net(torch.zeros(5, 4)).sum())
    assert [part.name for part in found.parts] == ["a.0.0", "a.0.1", "a.1"]
    assert [(part.name, part.activations) for part in found.at_depth(2)] == [("a.0", 80 + 60), ("a.1", 0)]
    (whole,) = found.at_depth(1)
    assert (whole.name, whole.activations, whole.parameters) == ("a", 140, 92)


def test_a_module_that_is_shared_goes_by_its_first_name_and_counts_once():
    shared = nn.Linear(4, 4)
    found = measure_step({"one": shared, "two": shared}, lambda: shared(torch.zeros(2, 4)).sum())
    assert [(part.name, part.parameters) for part in found.parts] == [("one", 80)]


def test_the_watch_leaves_no_hook_and_knows_who_is_outside_after_an_error():
    net = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(RuntimeError), ForwardTracker({"net": net}) as watch:
        net(torch.zeros(2, 5))
    assert watch.running == OUTSIDE
    assert not net._forward_hooks and not net[0]._forward_pre_hooks and not net[0].weight._backward_hooks


def test_at_the_peak_only_what_was_kept_then_counts():
    """Two passes one after the other: the larger; what the smaller saved is gone, or not there yet."""
    net = nn.Linear(4, 3)
    for order in ((5, 2), (2, 5)):
        with ForwardTracker({"net": net}) as watch, SavedByPart(watch, net.parameters()) as meter:
            for count in order:
                net(torch.zeros(count, 4)).square().sum().backward()
        assert sum(one.storage_bytes for one in meter.at_peak) == meter.peak == 5 * 4 * (4 + 3)
        assert meter.bytes == 7 * 4 * (4 + 3)
        assert {one.part for one in meter.at_peak} == {"net", OUTSIDE}


def test_a_place_that_is_used_again_is_another_storage():
    """Freed and taken again in one pass: bytes of both count, as the first was saved too."""
    net = nn.Linear(4, 3)
    with SavedBytes(net.parameters()) as meter:
        for _ in range(5):
            net(torch.zeros(6, 4)).sum().backward()
    assert meter.bytes == 5 * 6 * 4 * 4
    assert meter.peak == 6 * 4 * 4


def test_what_is_excluded_and_gone_excludes_nothing_else():
    held = [torch.zeros(6, 4)]
    net = nn.Linear(4, 3)
    meter = SavedBytes([*held, *net.parameters()])
    held.clear()
    with meter:
        for _ in range(3):  # the allocator gives the same place again
            net(torch.zeros(6, 4)).sum().backward()
    assert meter.bytes == 3 * 6 * 4 * 4


def test_on_meta_every_tensor_has_a_storage_of_its_own():
    x = torch.zeros(6, 4, device="meta", requires_grad=True)
    with SavedBytes() as meter:
        x.exp().sum() + x.tanh().sum()
    assert meter.bytes == 2 * 6 * 4 * 4


# published: section 6.1 -----------------------------------------------------------------------------------------------


def test_the_rule_by_hand():
    assert Published(trainable=10, frozen=7, inputs=100, relus=17, copied=20).bytes == 4 * 30 + 7 + 400 + 3


@DEVICES
def test_what_enters_trained_layers_and_relus_is_counted_whoever_calls_them(device):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(F.relu(self.norm(self.conv(x)), inplace=True).mean((2, 3)).relu())

    net, x = Mixed().to(device), torch.zeros(2, 3, 4, 4, device=device)
    found = published(net, x)
    assert found == Published(32 + 16 + 18, 0, 2 * (48 + 128 + 8), 2 * (128 + 8))
    net.conv.requires_grad_(False)
    net.last.requires_grad_(False)
    assert published(net, x) == Published(16, 50, 2 * 128, 2 * 136)
    assert published(net, x, original=nn.Sequential(net.conv, nn.ReLU()), copies=2).relus == 2 * 128
    with counting_inputs([net]) as count:
        net(x)
    assert (count.inputs, count.relus, count.relus_on_the_way) == (2 * 128, 2 * 136, 2 * 136)
    with torch.no_grad(), counting_inputs([net]) as count:
        net(x)
    assert (count.inputs, count.relus, count.relus_on_the_way) == (0, 2 * 136, 0)


# a budget -------------------------------------------------------------------------------------------------------------


def held(images: int, each: int = 10, fixed: int = 100) -> TrainingMemory:
    kinds = {"parameters": fixed - 30, "gradients": 20, "optimizer": 10, "activations": each * images}
    return TrainingMemory(kinds, (), {}, images, "meta", "phase main")


@pytest.mark.parametrize("limit", [120, 129, 130, 500, 733, 1379])
def test_the_largest_batch_is_the_last_that_fits(limit):
    asked: list[int] = []

    def measure(images: int | None) -> TrainingMemory:
        asked.append(images or 128)
        return held(images or 128)

    assert largest_batch(measure, limit, 128) == (limit - 100) // 10
    assert len(asked) <= 5  # even growth is guessed at once


def test_the_largest_batch_is_found_where_bytes_do_not_grow_evenly():
    def steps(images: int | None) -> TrainingMemory:
        return held((images or 0) // 7 * 7 + (50 if (images or 0) > 40 else 0))

    for limit in (120, 180, 240, 450, 700, 1100):
        fits = [size for size in range(2, 60) if steps(size).total <= limit]
        assert largest_batch(steps, limit, 60) == max(fits)


def test_where_two_images_are_too_many_nothing_fits():
    assert largest_batch(lambda images: held(images or 8), 119, 8) is None
    assert largest_batch(lambda images: held(images or 8), 119, 2) is None


def test_a_step_over_the_budget_is_refused_and_one_within_it_is_not():
    def measure(images: int | None) -> TrainingMemory:
        return held(images or 64)

    assert Budget().check_training("m", measure) is None
    assert Budget(training_bytes=740).check_training("m", measure) == held(64)
    assert Budget(training_bytes=1, enforce="report").check_training("m", measure) == held(64)
    with pytest.raises(BudgetExceeded) as refused:
        Budget(training_bytes=739).check_training("m", measure, "adaptation.batch_size")
    assert str(refused.value) == (
        "m needs 740 bytes in a step of 64 images (phase main), budget.training_bytes is 739: activations 640, "
        "gradients 20, optimizer 10, parameters 70; adaptation.batch_size=63 is the largest that fits, or set "
        "budget.training_bytes=740, or budget.enforce=report"
    )
    with pytest.raises(BudgetExceeded, match="no batch size fits: take a smaller model"):
        Budget(training_bytes=119).check_training("m", measure)
    with pytest.raises(ConfigError, match=r"budget\.training_bytes is 0"):
        Budget(training_bytes=0)


def test_what_training_held_is_checked_after_it_too():
    lines = [Entry("net", "parameters", "carried", "tensor", 60, 15, "float32")]
    lines.append(Entry("main.activations", "activations", "training", "tensor", 41, 0, "mixed"))
    ledger = Ledger(lines)
    Allowance(Budget(training_bytes=101)).check(ledger, 0, "m")
    with pytest.raises(
        BudgetExceeded, match=r"held 101 bytes in training, budget\.training_bytes is 100 .* activations 41"
    ):
        Allowance(Budget(training_bytes=100)).check(ledger, 0, "m")
    assert Allowance(Budget(training_bytes=100)).over(Ledger(lines[:1]), 0) is None  # what is carried alone fits
