"""Networks for streams that tell the task: one backbone with a head for each task, or a network for each."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from cil.models.base import Output
from cil.models.growing import GrowingNet
from cil.models.heads import LinearHead


class TaskNet(nn.Module):
    """One backbone, and a linear head for each task.

    Args:
        net: Network whose backbone and normalisation are used; its head, if it has one, is not.
        heads: Heads by name of the task, shared with the caller; None for heads of its own.
    """

    def __init__(self, net: Any, heads: nn.ModuleDict | None = None) -> None:
        super().__init__()
        self.normalise = net.normalise
        self.backbone: Any = net.backbone
        self.heads = nn.ModuleDict() if heads is None else heads

    def open(self, name: str, outputs: int) -> None:
        """Add a head, unless the task has one; drawn as ``Head.grow`` draws."""
        if name not in self.heads:
            head = LinearHead(self.backbone.feature_dim).to(next(self.backbone.parameters()))
            head.grow(outputs)
            self.heads[name] = head

    def forward(self, images: Tensor, name: str | Mapping[str, int]) -> Any:
        """Float images (N, C, H, W) in [0, 1] to the ``Output`` of one task.

        Of several tasks in one pass, whose images lie one after the other, given how many are of each: a list of them.
        """
        features, stages = self.backbone(self.normalise(images))
        if isinstance(name, str):
            return Output(self.heads[name](features), features, stages)
        rows = zip(name, features.split(list(name.values())), strict=True)
        return [Output(self.heads[one](own), own) for one, own in rows]

    def features(self, images: Tensor) -> Tensor:
        """(N, D)."""
        found: Tensor = self.backbone(self.normalise(images))[0]
        return found

    def of(self, name: str) -> TaskNet:
        """The network that answers for a task: this one."""
        return self

    def take_backbone(self, other: nn.Module) -> None:
        """Take over weights and statistics of another backbone of the same shape."""
        self.backbone.load_state_dict(other.state_dict())

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: the backbone's."""
        return int(self.backbone.survey_parameters)


class TaskNets(nn.Module):
    """A network of its own for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.nets: Any = nn.ModuleDict()

    def put(self, name: str, net: TaskNet) -> None:
        """Let this network answer for the task from now on."""
        self.nets[name] = net

    def of(self, name: str) -> TaskNet:
        """The network that answers for a task."""
        found: TaskNet = self.nets[name]
        return found

    def names(self) -> list[str]:
        """The tasks that have a network, in order of arrival."""
        return list(self.nets)

    def forward(self, images: Tensor, name: str) -> Output:
        """Float images (N, C, H, W) in [0, 1] to the outputs of one task."""
        found: Output = self.of(name)(images, name)
        return found

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: those of all backbones."""
        return sum(self.of(name).survey_parameters for name in self.names())


class TaskPool(nn.Module):
    """A few backbones, each of at most one task, and a head for every task.

    Attributes:
        owners: (P,) task of the backbone in each place: its name as a number, -1 for none.
        chosen: (P,) number of times that each was the start of another.
    """

    owners: Tensor
    chosen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.normalise: nn.Module = nn.Identity()
        self.backbones: Any = nn.ModuleList()
        self.heads: Any = nn.ModuleDict()
        for name in ("owners", "chosen"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))

    def add_place(self, net: GrowingNet) -> None:
        """Add a backbone that belongs to no task."""
        self.normalise = net.normalise
        self.backbones.append(net.backbone)
        self.owners = torch.cat([self.owners, self.owners.new_tensor([-1])])
        self.chosen = torch.cat([self.chosen, self.chosen.new_zeros(1)])

    def open(self, name: str, outputs: int) -> None:
        """Add a head, unless the task has one."""
        TaskNet(self._at(0), self.heads).open(name, outputs)

    def place(self, name: str) -> int | None:
        """Place of the backbone of a task; None where it was replaced."""
        found = (self.owners == int(name)).nonzero().flatten().tolist()
        return found[0] if found else None

    def of(self, name: str) -> TaskNet:
        """The network that answers for a task: its backbone, and the heads."""
        place = self.place(name)
        if place is None:
            raise KeyError(f"the backbone of task {name} is gone")
        return TaskNet(self._at(place), self.heads)

    def forward(self, images: Tensor, name: str) -> Output:
        """Float images (N, C, H, W) in [0, 1] to the outputs of one task: all 0 where its backbone is gone."""
        if self.place(name) is None:
            count, (outputs, width) = len(images), self.heads[name].weight.shape
            return Output(images.new_zeros(count, outputs), images.new_zeros(count, width))
        found: Output = self.of(name)(images, name)
        return found

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: those of all backbones."""
        return sum(int(backbone.survey_parameters) for backbone in self.backbones)

    def _at(self, place: int) -> Any:
        return SimpleNamespace(normalise=self.normalise, backbone=self.backbones[place])


@torch.no_grad()
def batch_statistics_features(net: TaskNet, samples: Any, order: Tensor, size: int = 256) -> Tensor:
    """(N, D) features of samples in the order given, batch norm using each batch's statistics; nothing is moved.

    Args:
        samples: Indexed by rows, with ``images``.
        order: (N,) row numbers: shuffled, as a batch of one class has statistics that tell the class.

    Source: NEVIS'22, kNN probe of the learner "dynamic".
    """
    device = next(net.parameters()).device
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(layer, layer.training, layer.momentum) for layer in norms]
    net.eval()
    for layer in norms:
        layer.training, layer.momentum = True, 0.0  # by momentum 0 running statistics stay bit for bit
    chunks = list(torch.split(order, size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:  # one image has no statistics where maps are of one pixel
        chunks[-2:] = [torch.cat(chunks[-2:])]
    try:
        found = [net.features(samples[rows].images.to(device)) for rows in chunks]
    finally:
        for layer, training, momentum in before:
            layer.training, layer.momentum = training, momentum
    return torch.cat(found)
