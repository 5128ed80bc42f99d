"""Bytes as LibContinual counts them: its unified memory budget (arXiv 2512.22029, section V-C and table V).

Charged, at the bytes of the type they are stored in (a pixel 1, a float32 4):

* exemplars: their images as they are stored, stored features, logits beside them;
* the parameters of each network that is kept: backbone, head, prompts, adapters, frozen ones too;
* a teacher, though it is gone at the boundary: as large as the network of which it is a copy;
* statistics, prototypes, feature and gradient bases.

Free: public weights that nobody modifies (references), buffers, labels, metadata, and what else is held in training
alone. So decodes the published table, in which the one frozen network that is free is a pretrained one; the text of the
paper, "beyond the backbone's own parameters", says otherwise of networks that are trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from cil.memory.state import tensor_bytes

FREE = ("buffers", "labels", "other")  # kinds
BOOKKEEPING = ("sizes",)  # of a memory: where each encoded image ends


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of the parameters of a network; buffers are free.

    >>> parameter_bytes(nn.Linear(64, 100))
    26000
    """
    return sum(tensor_bytes(parameter) for parameter in module.parameters())


def stored(memories: Iterable[str], tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, int]:
    """Bytes of exemplars by kind.

    Args:
        memories: Names of the exemplar memories.
        tensors, kinds: Of a state, named ``MEMORY.PART``.
    """
    held, charge = set(memories), dict[str, int]()
    for name, tensor in tensors.items():
        memory, _, part = name.partition(".")
        if memory in held and part not in BOOKKEEPING:
            charge[kinds[name]] = charge.get(kinds[name], 0) + tensor_bytes(tensor)
    return charge


def paid(*charges: Mapping[str, int]) -> dict[str, int]:
    """Several charges together, without what is free and what is nothing."""
    names = dict.fromkeys(kind for charge in charges for kind in charge if kind not in FREE)
    sums = {kind: sum(charge.get(kind, 0) for charge in charges) for kind in names}
    return {kind: size for kind, size in sums.items() if size}


def item(kinds: Mapping[str, int]) -> int:
    """Bytes of one exemplar, from its bytes by kind.

    >>> item({"exemplars": 3072, "labels": 1, "replay_logits": 40})
    3112
    """
    return sum(paid(kinds).values())
