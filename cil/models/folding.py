"""Batch norm folded into the convolutions before it: the same network in evaluation, with fewer passes over memory."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cil.models.frozen import Net, frozen_copy


def fold_batch_norm(net: Net) -> Net:
    """A frozen copy with each batch norm that directly follows a convolution folded into it.

    For teachers and evaluation: same attributes, outputs equal up to rounding (about 1e-6 relative in float32). Where a
    part of the network cannot be traced, its children are tried; what cannot be folded stays as it is.
    """
    copied = frozen_copy(net)
    _fold(copied)
    return copied


def _fold(module: nn.Module) -> None:
    if not any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        return
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # tracing runs foreign code on stand-ins, so it may fail in any way
        for child in module.children():
            _fold(child)
        return
    layers = dict(module.named_modules())
    uses = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = layers[str(before.target)], layers[str(node.target)]
        foldable = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None
        if foldable and uses[before.target] == 1 and uses[node.target] == 1:
            module.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            module.set_submodule(str(node.target), nn.Identity())
