"""How images fit a network: a warning before training, where a network of small images meets large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from cil.models.base import Backbone

FACTOR = 3  # times the size that a network was designed for, from which on a word is worth it


def size_warnings(net: object, size: Sequence[int]) -> Iterator[str]:
    """A sentence where images are much larger than those that a network was designed for.

    Args:
        net: The network of a learner, where it has one.
        size: Height and width of the images.
    """
    for module in net.modules() if isinstance(net, nn.Module) else ():
        if isinstance(module, Backbone) and module.usual_size and min(size) >= FACTOR * module.usual_size:
            yield (
                f"{type(module).__name__} is a network for images of about {module.usual_size} pixels, and those of "
                f"the stream have {size[0]}x{size[1]}: it will be slow and see little of each; take stream.size="
                f"{module.usual_size}, or a network for large images, as model=resnet18"
            )
            return
