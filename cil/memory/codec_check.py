"""Whether a codec keeps what it decodes in the bytes that are charged, and nowhere else.

A codec that keeps an index into a public set, or a dictionary beside it, is exact on the images it was made for and
stores two bytes of each. Moved copies of the same images show it: they look alike, and are in no set.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.errors import ContractError
from cil.memory.codecs import Codec, Downsample, Jpeg, Raw

WORSE = (3.0, 8.0)  # moved copies may have three times the mean error and 8 grey levels more
LONGER = (2.0, 64.0)  # and twice the bytes and 64 more
OPTION = 64  # characters of a text, or values of a list, that are an option and no data


def moved(images: Tensor) -> Tensor:
    """The images (N, C, H, W) uint8 mirrored, shifted around by a third, and of four fifths the contrast."""
    height, width = images.shape[2:]
    shifted = images.flip(3).roll((height // 3, width // 3), (2, 3))
    return (shifted.float() * 0.8 + 25).round().clamp(0, 255).byte()


def is_own(codec: Codec) -> bool:
    """True for a codec of this package as it is: of no subclass, and with no function of somebody else's."""
    return type(codec) in (Raw, Downsample, Jpeg) and not any(map(callable, vars(codec).values()))


def held_by(codec: Codec) -> str | None:
    """The first attribute of a codec or of its classes that holds more than an option; None where there is none."""
    for owner in (codec, *type(codec).__mro__[:-1]):
        for name, value in vars(owner).items():
            if not name.startswith("__") and not name.startswith("_abc") and not _is_option(value):
                return name
    return None


def _is_option(value: Any) -> bool:
    if isinstance(value, Mapping | set | frozenset):
        return not value
    if isinstance(value, Tensor | np.ndarray | bytes | bytearray):
        return False
    if isinstance(value, str | list | tuple):
        return len(value) <= OPTION and (isinstance(value, str) or all(map(_is_option, value)))
    if isinstance(value, FunctionType | type | property | classmethod | staticmethod):
        return True
    if value is None or isinstance(value, bool | int | float | torch.dtype):
        return True
    return hasattr(value, "__dict__") and all(map(_is_option, vars(value).values()))  # an object of options


def check_codec(codec: Codec, images: Tensor) -> None:
    """Refuse a codec that does not decode from the bytes alone.

    Args:
        images: (N, C, H, W) uint8, of the stream.

    Raises:
        ContractError: saying what is held beside, or how moved copies of the images fare.
    """
    shape, fresh = (images.shape[1], images.shape[2], images.shape[3]), deepcopy(codec)
    stored = [codec.encode(some) for some in (images, moved(images))]
    check_stored(fresh, images, stored, type(codec).__name__)
    held = held_by(codec)
    if held is not None:
        raise ContractError(
            f"codec {type(codec).__name__} holds data in {held}, which nobody pays for: an image is decoded from its "
            f"bytes and from options (numbers, short texts) alone; shape {shape}"
        )


def check_stored(fresh: Codec, images: Tensor, stored: list[tuple[Tensor, Tensor]], name: str) -> None:
    """Decode with a codec that encoded nothing, and compare images with their moved copies.

    Args:
        stored: What was encoded: of the images, and of their moved copies.
    """
    shape = (images.shape[1], images.shape[2], images.shape[3])
    errors, sizes = [], []
    for some, (data, lengths) in zip((images, moved(images)), stored, strict=True):
        try:
            decoded = fresh.decode(data, lengths, shape)
        except Exception as error:
            raise ContractError(
                f"codec {name} does not decode what another object of it has encoded: {type(error).__name__}: {error}"
            ) from error
        errors.append(_error(decoded, some))
        sizes.append(float(lengths.float().mean()))
    _compare(errors, sizes, name)


def check_held(codec: Codec, decoded: Tensor, sizes: Tensor, pool: Tensor) -> None:
    """Compare exemplars, as they were stored and are trained on, with moved copies of the images that they are of.

    A codec may tell a trial from use by the number of images; what it stored is use.

    Args:
        decoded: (n, C, H, W) uint8, some exemplars of a class.
        sizes: (n,) bytes of each.
        pool: (N, C, H, W) uint8, the images they were chosen from: each is taken for one of the nearest.
    """
    near = torch.cdist(decoded.flatten(1).float(), pool.flatten(1).float()).argmin(1)
    images, shape = pool[near], (pool.shape[1], pool.shape[2], pool.shape[3])
    copies = moved(images)
    data, lengths = codec.encode(copies)
    errors = [_error(decoded, images), _error(codec.decode(data, lengths, shape), copies)]
    _compare(errors, [float(some.float().mean()) for some in (sizes, lengths)], type(codec).__name__)


def _error(decoded: Tensor, images: Tensor) -> float:
    return float((decoded.float() - images.float()).abs().mean())


def _compare(errors: list[float], sizes: list[float], name: str) -> None:
    """Refuse images that fare far better than their moved copies."""
    for what, (own, other), (times, more), unit in (
        ("a mean error", errors, WORSE, "grey levels"),
        ("", sizes, LONGER, "bytes an image"),
    ):
        if other > times * own + more:
            raise ContractError(
                f"codec {name} stores the stream's images with {what or 'a size'} of {own:.1f} {unit} and mirrored, "
                f"shifted copies of them with {other:.1f}: it knows these images; what decoding needs is charged"
            )
