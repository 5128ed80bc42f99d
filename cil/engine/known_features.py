"""Features of frozen backbones, computed once for each image: kept by the content of backbone and image.

FOLDER/KEY/*.safetensors    digests of images and their features, with their sum; KEY is of the backbone

To be given a feature, one must present its image: the table answers f(x) for x, as the backbone does, and nothing else
can be asked of it. So it carries nothing that its user has not got, and it is no memory: it is charged nothing, and
whether it is full or empty is seen in seconds alone.

A feature does not depend on the images that come with it. It is computed in blocks of a fixed number of images, and
rounded to the type asked for, whether it was known before or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cil.engine.checkpoint import read_tensors, write_tensors
from cil.engine.known_modules import Unknown, described_module, kernel_settings, tensors_digest
from cil.errors import ContractError, ResumeError
from cil.memory import Flops
from cil.memory.meters import set_aside
from cil.memory.tensor_bits import bits
from cil.models.known import features_from

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BLOCK = 64  # images that a backbone is shown at a time, always so many: kernels are chosen by shape
DIGEST = 16  # bytes that name an image
_say = logging.getLogger("cil.engine")


class Stages(tuple[Tensor, ...]):
    """In place of the maps of a backbone, which are not kept: whoever looks at them is told."""

    def __iter__(self) -> Iterator[Tensor]:
        raise ContractError("the maps of a frozen backbone are not kept with its features; set trainer.features=null")

    def __getitem__(self, place: Any) -> Any:
        return iter(self)


@dataclass
class Table:
    """The features of one backbone: digest of an image to a row; those that are not on the disk yet."""

    folder: Path
    rows: dict[bytes, Tensor] = field(default_factory=dict)
    new: list[bytes] = field(default_factory=list)
    each: int = 0  # operations for one image
    read: set[str] = field(default_factory=set)

    def load(self) -> None:
        """Take up what other processes have written."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self.read:
                continue
            self.read.add(path.name)
            try:
                found = read_tensors(path, self.folder.name)
                _check_table(path, found)
            except ResumeError as error:
                _say.warning("features are computed again: %s", str(error).partition("; ")[0])
                continue
            self.each = int(found["operations"])
            names = [name.tobytes() for name in found["images"].numpy()]
            self.rows = dict(zip(names, found["features"], strict=True)) | self.rows

    def save(self) -> None:
        """Write what is new; where there is no room this is said, and the run goes on."""
        if not self.new:
            return
        name = f"{os.getpid()}-{self.new[0].hex()}.safetensors"
        images = torch.tensor([list(one) for one in self.new], dtype=torch.uint8)
        features = torch.stack([self.rows[one] for one in self.new])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            given = {"images": images, "features": features, "operations": torch.tensor(self.each)}
            write_tensors(self.folder / name, given, self.folder.name)
            self.read.add(name)
        except OSError as error:
            _say.warning("features cannot be kept in %s: %s", self.folder, error.strerror)
        self.new = []


@dataclass
class KnownFeatures:
    """Features of frozen backbones.

    Args:
        folder: Where they are; None: they are computed each time, to the same bits.
        kind: ``fp32`` or ``bf16``: the type that they are rounded to.
        environment: What decides about the bits beside backbone and images: code, versions, device...
    """

    folder: Path | None
    kind: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    _tables: dict[str, Table] = field(default_factory=dict)
    _keys: WeakKeyDictionary[nn.Module, tuple[Any, str | None]] = field(default_factory=WeakKeyDictionary)

    def lent(self) -> AbstractContextManager[None]:
        """Inside, networks are given features from here where their backbone is frozen."""
        return features_from(self.of)

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """Inside, nothing that is known is used."""
        folder, tables, self.folder, self._tables = self.folder, self._tables, None, {}
        try:
            yield
        finally:
            self.folder, self._tables = folder, tables

    def save(self) -> None:
        """Write what is new, and take up what others have written."""
        for table in self._tables.values() if self.folder is not None else ():
            table.save()
            table.load()

    def of(self, backbone: nn.Module, images: Tensor) -> Any:
        """(features (N, D) float32, stages) of normalised images; of a backbone that learns, by its own forward."""
        key = None if _learns(backbone, images) else self._key(backbone, images)
        if key is None or not len(images):
            return backbone(images)
        table = self._table(key)
        names = _names(images)
        rows = table.rows if self.folder is not None else {}
        missing = list(dict.fromkeys(place for place, name in enumerate(names) if name not in rows))
        with set_aside() as counters:
            for start in range(0, len(missing), BLOCK):
                places = missing[start : start + BLOCK]
                found, table.each = _computed(backbone, images, places, TYPES[self.kind], table.each)
                fresh = {names[place]: row for place, row in zip(places, found, strict=True)}
                table.new += [name for name in fresh if name not in rows] if self.folder is not None else []
                rows |= fresh
        for counter in counters:
            counter.count += table.each * len(images)
        return torch.stack([rows[name] for name in names]).to(images.device, torch.float32), Stages()

    def _table(self, key: str) -> Table:
        if key not in self._tables:
            self._tables[key] = Table((self.folder or Path()) / key)
            if self.folder is not None:
                self._tables[key].load()
        return self._tables[key]

    def _key(self, backbone: nn.Module, images: Tensor) -> str | None:
        """Digest of a backbone and the shape of images; None where it is not known what it computes."""
        try:
            marks = (tuple(images.shape[1:]), json.dumps(described_module(backbone)), _marks(backbone))
            known = self._keys.get(backbone)
            if known is None or known[0] != marks:
                content = [self.kind, BLOCK, dict(self.environment), kernel_settings(), marks[:2]]
                text = json.dumps([*content, tensors_digest({"backbone": backbone})], sort_keys=True)
                known = self._keys[backbone] = (marks, hashlib.sha256(text.encode()).hexdigest())
        except Unknown:
            return None
        return known[1]


def _check_table(path: Path, found: Mapping[str, Tensor]) -> None:
    """Refuse a file that ``Table.save`` did not write."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    count = shapes.get("images", (0,))[0]
    features = shapes.get("features", ())
    wanted = {"images": (count, DIGEST), "features": (count, *features[1:]), "operations": ()}
    if shapes != wanted or len(features) != 2 or found["images"].dtype != torch.uint8:
        raise ResumeError(f"{path} holds no features of images; remove it")


def _learns(backbone: nn.Module, images: Tensor) -> bool:
    """True where a backbone, or what comes before it, may change, or looks at the batch: features are of the moment."""
    if any(isinstance(m, _BatchNorm) and m.running_mean is None for m in backbone.modules()):
        return True
    graph = torch.is_grad_enabled() and images.requires_grad
    return graph or any(m.training for m in backbone.modules()) or any(p.requires_grad for p in backbone.parameters())


def _names(images: Tensor) -> list[bytes]:
    """Digests of images, whatever their layout in memory."""
    return [hashlib.blake2b(bits(image).numpy().data, digest_size=DIGEST).digest() for image in images.detach().cpu()]


def _marks(backbone: nn.Module) -> tuple[int, ...]:
    """Sums of the bits of all tensors, weighted by place, which show that one was changed, or put in another order."""
    marks = [_mark(t.detach()) for t in (*backbone.parameters(), *backbone.buffers()) if t.numel()]
    return tuple(torch.stack(marks).tolist()) if marks else ()


def _mark(tensor: Tensor) -> Tensor:
    """Sums over rows and over columns, each times odd numbers of its own; () int64."""
    flat = tensor.contiguous().reshape(len(tensor) if tensor.ndim > 1 else 1, -1)
    bits = flat.view(torch.int32 if tensor.element_size() == 4 else torch.uint8)
    sums = [bits.sum(dim, dtype=torch.int64) for dim in (0, 1)]
    places = [torch.arange(1, 2 * len(one), 2, device=one.device) for one in sums]
    return (sums[0] * places[0]).sum() + 2_654_435_761 * (sums[1] * places[1]).sum()


def _computed(
    backbone: nn.Module, images: Tensor, places: Sequence[int], kind: torch.dtype, each: int
) -> tuple[Tensor, int]:
    """Features of the images at ``places``, in one block that the first of them fills up; and operations for one."""
    block = images[[*places, *[places[0]] * (BLOCK - len(places))]]
    if block.ndim == 4:  # kernels are chosen by layout too
        block = block.contiguous(memory_format=torch.channels_last)
    flops = Flops()
    with torch.no_grad(), nullcontext() if each else flops.counting():
        features = backbone(block)[0]
    return features[: len(places)].to(kind).cpu(), each or flops.count // BLOCK
