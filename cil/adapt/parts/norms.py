"""Normalisation layers: their trained values, and the source of their statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models import Backbone

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
Made = TypeVar("Made", bound=nn.Module)


def train_norms(net: nn.Module, adapter: str, leave: Collection[nn.Module] = ()) -> list[nn.Parameter]:
    """Freeze a network, in place and in evaluation mode, but for gamma and beta of its norm layers.

    Args:
        net: Any network; ``BatchNorm2d``, ``LayerNorm`` and ``GroupNorm`` count as norm layers.
        leave: Norm layers inside these modules stay frozen too.

    Returns:
        The trained parameters, in order of the network's modules.

    Raises:
        ConfigError: where nothing would be trained.
    """
    freeze_reversibly(net)
    left = {layer for module in leave for layer in module.modules()}
    layers = [layer for layer in net.modules() if isinstance(layer, NORMS) and layer not in left]
    trained = [value for layer in layers for value in (layer.weight, layer.bias) if value is not None]
    if not trained:
        raise ConfigError(
            f"{adapter} trains gamma and beta of norm layers, and of this {type(net).__name__} none would be trained; "
            f"choose a network with batch, layer or group norm (model.name)"
        )
    for value in trained:
        value.requires_grad_(True)
    return trained


def freeze_reversibly(net: nn.Module) -> nn.Module:
    """No gradients and evaluation mode, in place, also where it was frozen for good; a later call may change either."""
    for layer in net.modules():
        layer.training = False
    return net.requires_grad_(False)


def use_batch_statistics(net: nn.Module) -> nn.Module:
    """Remove the statistics of all ``BatchNorm2d``, in place: in any mode, those of the batch are used."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    return net


class MixedNorm2d(nn.Module):
    """A batch norm with the statistics (1 - share) stored + share those of the batch, variances biased.

    State dicts are those of the replaced batch norm, without counter.

    Args:
        norm: Gives gamma, beta, epsilon and the stored statistics; an activation that it has built in (timm) is
            applied as before.
        share: Share of the batch, in [0, 1].
        follow: False: the mixture is used in any mode, and the stored statistics stay. True: in training mode the
            mixture is used and stored; in evaluation mode the stored statistics are used.

    Raises:
        ConfigError: where the norm stores no statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, share: float, follow: bool = False) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ConfigError("a batch norm without stored statistics has nothing to mix with the batch's (model.name)")
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.eps, self.share, self.follow = norm.eps, share, follow
        self.after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        mean, var = self.running_mean, self.running_var
        if self.training or not self.follow:
            batch_var, batch_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
            mean = (1 - self.share) * mean + self.share * batch_mean
            var = (1 - self.share) * var + self.share * batch_var
            if self.follow:
                self.running_mean.copy_(mean.detach())
                self.running_var.copy_(var.detach())
        scale = torch.rsqrt(var + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale
        shift = shift if self.bias is None else shift + self.bias
        found: Tensor = self.after((x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(x.dtype))
        return found


def replace_batch_norms(net: nn.Module, make: Callable[[nn.BatchNorm2d], Made]) -> list[Made]:
    """Replace each ``BatchNorm2d`` inside a network by ``make(layer)``; the new layers, in order."""
    named = list(net.named_modules(remove_duplicate=False))
    made = {name: make(layer) for name, layer in named if isinstance(layer, nn.BatchNorm2d)}
    for name, layer in made.items():
        net.set_submodule(name, layer)
    return list(made.values())


def late_layers(net: nn.Module, adapter: str) -> list[nn.Module]:
    """The layers near the output: the last stage and the layers after it.

    * a ``Backbone`` of this package: of four stages or more ``stages[-1]``, and its children beside stem and stages; of
      three (CIFAR) nothing;
    * torchvision's and timm's ResNets: ``layer4``; other convolutional nets of timm: the last of ``stages``;
    * transformers (``blocks``): the last quarter of the blocks (9 to 11 of 12), and the norms after them.

    Raises:
        ConfigError: where the network is none of these.
    """
    found = _late(net)
    if found is None:
        raise ConfigError(
            f"{adapter} leaves the last stage as it is, and which that is in this {type(net).__name__} is not known; "
            f"name its modules in adapter.leave ([] trains all norm layers)"
        )
    return found


def is_transformer(net: nn.Module) -> bool:
    """True for a network whose first known part is a row of ``blocks``, as timm's vision transformers have it."""
    children = dict(net.named_children())
    if isinstance(net, Backbone) or children.keys() & {"layer4", "stages"}:
        return False
    return "blocks" in children or any(map(is_transformer, children.values()))


def _late(part: nn.Module) -> list[nn.Module] | None:
    """None where the make is not known."""
    children = dict(part.named_children())
    blocks = list(children.get("blocks", nn.Identity()).children())
    if isinstance(part, Backbone):
        rest = [child for name, child in children.items() if name not in ("stem", "stages")]
        return [part.stages[-1], *rest] if len(part.stages) > 3 else []
    if "layer4" in children:
        return [children["layer4"]]
    if "stages" in children:
        return list(children["stages"].children())[-1:]
    if blocks:
        norms = [children[name] for name in ("norm", "fc_norm") if name in children]
        return blocks[-max(1, len(blocks) // 4) :] + norms
    found = [late for child in children.values() if (late := _late(child)) is not None]
    return [layer for late in found for layer in late] if found else None
