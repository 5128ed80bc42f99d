"""Rules on what is carried: no images beside the exemplar memories, and exemplars that decode from their bytes."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.contract import exemplar_memories
from cil.engine.checkpoint import read_tensors, write_tensors
from cil.engine.process import in_child
from cil.memory import ExemplarMemory, State
from cil.memory.codec_check import check_codec, check_stored, moved
from cil.memory.codecs import Codec
from cil.memory.tensor_bits import bits
from cil.testing.compare import demand
from cil.testing.toy import toy_stream

RUN = 24  # values of an image that are searched for, one after the other
DISTINCT = 10  # of them that must differ: a black border is no image
SOME = 40  # images of each experience


def no_images_are_carried_beside_the_memories(subject: Any) -> None:
    """No carried byte outside exemplar memories is a training image: not raw, scaled, normalised or as text."""
    run, stream = subject.finished(), subject.stream
    patterns: dict[bytes, str] = {}
    for boundary, learner in run.learners():
        patterns |= patterns_of(stream.training_half()[boundary].train[:SOME].pixels, f"experience {boundary}")
        state, memories = run.state(boundary), exemplar_memories(learner)
        beside = {n: t for n, t in state.tensors.items() if n.partition(".")[0] not in memories}
        scale = (torch.tensor(stream.mean), torch.tensor(stream.std))
        for name, content in contents(beside, state, memories, scale):
            for pattern, where in patterns.items():
                demand(
                    pattern not in content, f"{name} holds an image of {where}: images belong into an ExemplarMemory"
                )


def exemplars_decode_from_their_bytes(subject: Any) -> None:
    """What a codec has encoded, another process decodes, and of images that nobody knows it makes no more."""
    last = subject.finished().boundaries[-1]
    images = subject.stream.training_half()[0].train[:8].pixels
    for memory in exemplar_memories(subject.finished().rebuilt(last)).values():
        if memory.tensor_names & {"images"}:
            check_codec_elsewhere(memory.codec, images)


def check_codec_elsewhere(codec: Codec, images: Tensor | None = None) -> None:
    """``cil.memory.codec_check`` with the encoding done in a process that is gone when its bytes are decoded.

    Args:
        images: (N, C, H, W) uint8; those of a toy stream by default.

    Raises:
        ContractError: where decoding needs more than the bytes.
    """
    pixels = toy_stream()[0].train.pixels if images is None else images
    with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
        path = Path(folder) / "encoded.safetensors"
        in_child(partial(_encode, codec, pixels, path))
        held = read_tensors(path)
    stored = [(held[f"data{part}"], held[f"sizes{part}"]) for part in (0, 1)]
    check_stored(deepcopy(codec), pixels, stored, type(codec).__name__)
    in_child(partial(check_codec, codec, pixels))


def _encode(codec: Codec, images: Tensor, path: Path) -> None:
    stored = [codec.encode(some) for some in (images, moved(images))]
    tensors = {f"data{part}": data for part, (data, _) in enumerate(stored)}
    write_tensors(path, tensors | {f"sizes{part}": sizes for part, (_, sizes) in enumerate(stored)})


def patterns_of(images: Tensor, where: str) -> dict[bytes, str]:
    """Stretches of images (N, C, H, W) uint8 that no other data are likely to have: by channels and by pixels."""
    found = {}
    for ordered in (images, images.permute(0, 2, 3, 1)):
        for row in ordered.reshape(len(images), -1):
            pieces = row[: len(row) // RUN * RUN].view(-1, RUN)
            best = max(pieces, key=lambda piece: len(piece.unique()), default=None)
            if best is not None and len(best.unique()) >= DISTINCT:
                found[bytes(best.tolist())] = where
    return found


def contents(
    beside: Mapping[str, Tensor], state: State, memories: Mapping[str, ExemplarMemory], scale: tuple[Tensor, Tensor]
) -> Iterator[tuple[str, bytes]]:
    """What is carried beside exemplars, by name, as bytes in each form that an image may have."""
    for name, tensor in beside.items():
        for form in forms(tensor.detach().cpu(), scale):
            yield name, form
    for name, memory in memories.items():
        for key in memory.extra_kinds:
            held = state.tensors.get(f"{name}.{key}")
            for form in () if held is None else forms(held.detach().cpu(), scale):
                yield f"{name}.{key}", form
    for key, value in state.meta.items():
        for form in texts(value):
            yield f"metadata {key}", form


def forms(tensor: Tensor, scale: tuple[Tensor, Tensor]) -> Iterator[bytes]:
    """A tensor's bytes; the low half of each value's; values as grey levels, raw, times 255 and denormalised."""
    if not tensor.numel():
        return
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    raw = bits(plain)
    yield bytes(raw.numpy())
    width = plain.element_size()
    for low in {1, width // 2} if width > 1 else ():
        yield bytes(raw.view(-1, width)[:, :low].contiguous().numpy())
    parts = [tensor.real, tensor.imag] if tensor.is_complex() else [tensor]
    for part in parts if width > 1 else ():
        values = part.contiguous().flatten().double()
        yield _levels(values)
        if part.is_floating_point():
            yield _levels(values * 255)
            mean, std = scale
            for channel in range(len(mean)):
                yield _levels((values * std[channel].double() + mean[channel].double()) * 255)


def _levels(values: Tensor) -> bytes:
    return bytes(values.nan_to_num().round().clamp(0, 255).byte().numpy())


def texts(value: Any) -> Iterator[bytes]:
    """Metadata as bytes: text as it is and decoded, numbers of a list as grey levels."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, str):
        yield value.encode("latin-1", "replace")
        for decode in (base64.b64decode, base64.b85decode, bytes.fromhex):
            try:
                yield decode(value)
            except (ValueError, binascii.Error):
                continue
    elif isinstance(value, list | tuple):
        numbers = list(_numbers(value))
        if numbers:
            yield _levels(torch.tensor(numbers, dtype=torch.float64))
            yield _levels(torch.tensor(numbers, dtype=torch.float64) * 255)
        for item in value:
            if isinstance(item, str | Mapping):
                yield from texts(item)


def _numbers(values: Any) -> Iterator[float]:
    """All numbers of nested lists, in order."""
    for item in values:
        if isinstance(item, list | tuple):
            yield from _numbers(item)
        elif isinstance(item, int | float):
            yield item
