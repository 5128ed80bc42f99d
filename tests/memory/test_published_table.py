"""The megabytes of the EcoTTA paper, read off networks without values."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cil.memory import Published, measure_step, published
from cil.models import NetFactory, build_backbone
from cil.models.meta import GroupedNet, MetaNetworks
from cil.models.partition import cut_network

# backbone, options, side, outputs, batch: parameters, values that enter BN, conv and fc, ReLUs of one image
NETWORKS: dict[str, tuple[tuple[str, dict[str, str], int, int, int], tuple[int, int, int, int]]] = {
    "WRN-40-2": (("wrn_40_2", {}, 32, 10, 64), (2_243_546, 704_512, 765_056, 704_512)),
    "WRN-28-10": (("wrn_28_10", {}, 32, 10, 64), (36_479_194, 2_310_144, 2_535_040, 2_310_144)),
    "ResNet-50 at 32": (
        ("resnet50", {"stem": "3x3"}, 32, 100, 64), (23_705_252, 3_432_448, 3_437_568, 2_940_928),
    ),
    "ResNet-50 at 224": (("resnet50", {}, 224, 1000, 32), (25_557_032, 11_113_984, 10_664_448, 9_608_704)),
}  # fmt: skip
COLUMNS = ("TENT", "TTT++", "SWR&NSP", "CoTTA", "EcoTTA K=4", "EcoTTA K=5")
TABLE = {  # megabytes by the rule, and as the paper reports them
    "WRN-40-2": ((188.3, 390.8, 399.8, 408.8, 79.6, 92.3), (188, 391, 400, 409, 80, 92)),
    "WRN-28-10": ((646.4, 1404.8, 1550.7, 1696.6, 404.9, 471.6), (646, 1405, 1551, 1697, 404, 471)),
    "ResNet-50 at 32": ((926.1, 1877.1, 1971.9, 2066.7, 297.0, 498.8), (926, 1877, 1971, 2066, 296, 498)),
    "ResNet-50 at 224": ((1486.7, None, None, 3132.8, 438.5, 747.3), (1486, None, None, 3132, 438, 747)),
}
CELLS = [
    (network, column, value, reported[place])
    for network, (values, reported) in TABLE.items()
    for place, (column, value) in enumerate(zip(COLUMNS, values, strict=True))
    if value is not None
]


@cache
def network(name: str) -> Any:
    (backbone, options, side, outputs, _), _ = NETWORKS[name]
    make = partial(build_backbone, backbone, 3, side, **options)
    net = NetFactory(make, meta=True)()
    net.grow(outputs)
    return net.train()


def images(name: str) -> Tensor:
    (_, _, side, _, batch), _ = NETWORKS[name]
    return torch.empty(batch, 3, side, side, device="meta")


class WithMetaNetworks(nn.Module):
    """A frozen network and its meta networks, as one."""

    def __init__(self, net: nn.Module, side: int, count: int, grad_path: str, packed: bool = True) -> None:
        super().__init__()
        parts = cut_network(net, (3, side, side), count)
        self.net = net.requires_grad_(False).eval()  # batch statistics all the same
        self.meta = MetaNetworks(parts, None, torch.Generator()).to("meta")
        self._run = GroupedNet(net, parts, self.meta, grad_path, packed=packed)

    def forward(self, x: Tensor, **how: Any) -> Any:
        return self._run(x, **how)


@cache
def accounted(name: str, method: str) -> Published:
    net = network(name).requires_grad_(True).train()
    if method == "TENT":
        net.requires_grad_(False)
        for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.requires_grad_(True)
        return published(net, images(name))
    if method.startswith("EcoTTA"):
        (_, _, side, _, _), _ = NETWORKS[name]
        adapted = WithMetaNetworks(net, side, int(method[-1]), "stop")
        return published(adapted, images(name), original=net)
    return published(net, images(name), copies={"TTT++": 0, "SWR&NSP": 1, "CoTTA": 2}[method])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_quantities_of_a_network_by_hand(name):
    (*_, batch), (parameters, norms, layers, relus) = NETWORKS[name]
    everything, tent = accounted(name, "CoTTA"), accounted(name, "TENT")
    assert everything.trainable == parameters and everything.frozen == 0
    assert tent.trainable + tent.frozen == parameters
    assert (everything.inputs, tent.inputs) == (batch * (norms + layers), batch * norms)
    assert everything.relus == tent.relus == batch * relus


@pytest.mark.parametrize(("name", "method", "megabytes", "reported"), CELLS)
def test_every_cell_of_the_table_comes_out(name, method, megabytes, reported):
    found = accounted(name, method).bytes / 1e6
    assert found == pytest.approx(megabytes, abs=0.06)
    assert abs(found - reported) <= 1


@pytest.mark.parametrize(("count", "inputs"), [(4, 278_528), (5, 327_680)])
def test_meta_networks_keep_two_outputs_and_an_input_of_each_part(count, inputs):
    found = accounted("WRN-40-2", f"EcoTTA K={count}")
    assert found.inputs == 64 * inputs
    assert found.trainable == {4: 107_008, 5: 144_128}[count]


# exact: section 6.3 ---------------------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def kept(name: str, count: int, grad_path: str, packed: bool = True) -> int:
    (_, _, side, _, _), _ = NETWORKS[name]
    net = network(name)
    adapted = WithMetaNetworks(net, side, count, grad_path, packed)
    return measure_step(adapted, lambda: entropy(adapted(images(name)).logits)).storage_bytes


STOP = {("WRN-40-2", 4): 98_576_384, ("WRN-40-2", 5): 115_354_624}
ROWS = {  # MB: WRN-40-2, WRN-28-10
    ("full", 4): (341.87, 1273.06), ("full", 5): (354.45, 1335.98),
    ("lean", 4): (112.74, 494.46), ("lean", 5): (126.37, 562.63),
    ("stop", 4): (98.58, 476.08), ("stop", 5): (115.35, 559.98),
}  # fmt: skip


@pytest.mark.parametrize("name", ["WRN-40-2", "WRN-28-10"])
def test_freezing_alone_saves_nothing_where_autograd_keeps_the_inputs(name):
    net = network(name).requires_grad_(True).train()
    expected = {"WRN-40-2": (361.56, 360.74), "WRN-28-10": (1183.82, 1182.87)}[name]
    whole = measure_step(net, lambda: entropy(net(images(name)).logits)).storage_bytes / 1e6
    net.requires_grad_(False)
    for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.requires_grad_(True)
    tent = measure_step(net, lambda: entropy(net(images(name)).logits)).storage_bytes / 1e6
    assert (whole, tent) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("grad_path", "count"), ROWS)
@pytest.mark.parametrize("name", ["WRN-40-2", "WRN-28-10"])
def test_the_entropy_pass_keeps_what_was_measured(name, grad_path, count):
    found = kept(name, count, grad_path, packed=False)
    # with lean the reference network keeps the map that it pools by avg_pool2d; a mean keeps nothing. Elsewhere it
    # is the result of the last ReLU, which is kept anyway
    pooled = 4 * 64 * {"WRN-40-2": 128, "WRN-28-10": 640}[name] * 8 * 8 if grad_path == "lean" else 0
    assert (found + pooled) / 1e6 == pytest.approx(ROWS[grad_path, count][name == "WRN-28-10"], abs=0.01)
    assert found == STOP.get((name, count), found) or grad_path != "stop"
    if grad_path == "lean":
        assert kept(name, count, grad_path) < found  # eight entries of a mask in a byte
