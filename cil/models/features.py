"""Features and logits of many images, in batches and evaluation mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cil.models.base import Output
from cil.models.frozen import evaluating


@torch.no_grad()
def extract_outputs(net: Any, samples: Any, batch_size: int = 500) -> Output:
    """Logits (N, C) and features (N, D) of all samples, in order, by one pass in evaluation mode.

    Args:
        net: Its forward returns ``Output``; every layer has its mode back afterwards.
        samples: Anything with ``batches(size, device)`` of float ``images`` (N, C, H, W).

    Returns:
        Tensors on the network's device, at least float32 (under autocast too); no stages.
    """
    device = next(net.parameters()).device
    logits = [torch.empty(0, net.num_classes, device=device)]
    features = [torch.empty(0, net.feature_dim, device=device)]
    with evaluating(net):
        for batch in samples.batches(batch_size, device):
            output = net(batch.images)
            logits.append(output.logits)
            features.append(output.features)
    return Output(torch.cat(logits), torch.cat(features))


def extract(net: nn.Module, samples: Any, batch_size: int = 500) -> Tensor:
    """Features (N, D) of all samples; see ``extract_outputs``."""
    return extract_outputs(net, samples, batch_size).features
