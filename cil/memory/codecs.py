"""How the pixels of an exemplar are kept: raw, down-sampled, or as JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.errors import ConfigError, nearest
from cil.plugins import load, points


class Codec(Protocol):
    """Turns pixels into the bytes that are charged, and back."""

    fixed: bool  # every image of a shape takes the same number of bytes
    lossless: bool  # what is decoded is what was encoded

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape that an image of ``shape`` is stored in, a byte a value; nominally ``shape`` for a variable size."""
        ...

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 to the bytes of all images in one row, and the size of each (n,) int32."""
        ...

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """The bytes and sizes back to (n, C, H, W) uint8."""
        ...


class Raw:
    """One byte a pixel value: C * H * W bytes an image."""

    fixed = True
    lossless = True

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        each = pixels[0].numel() if len(pixels) else 0
        return pixels.reshape(-1), torch.full((len(pixels),), each, dtype=torch.int32)

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return data.reshape(-1, *shape)


class Downsample:
    """The image averaged down to ``side`` x ``side`` pixels: C * side^2 bytes, whatever its size was.

    Decoded by bilinear interpolation; both ways values are rounded to whole grey levels.

    Args:
        side: Pixels of a stored image in height and width; at most those of the stream's images.
    """

    fixed = True
    lossless = False

    def __init__(self, side: int = 16) -> None:
        if side < 1:
            raise ConfigError(f"images cannot be {side} pixels wide; write strategy.codec=downsample:16, for example")
        self.side = side

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if self.side > min(shape[1:]):
            raise ConfigError(
                f"downsample:{self.side} would enlarge images of {shape[1]} x {shape[2]} pixels; set strategy.codec to "
                f"downsample:SIDE with SIDE <= {min(shape[1:])}, or raw"
            )
        return shape[0], self.side, self.side

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        stored = self.stored_shape((pixels.shape[1], pixels.shape[2], pixels.shape[3]))
        sizes = torch.full((len(pixels),), stored[0] * stored[1] * stored[2], dtype=torch.int32)
        return _resized(pixels, stored, mode="area").reshape(-1), sizes

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        small = data.reshape(len(sizes), *self.stored_shape(shape))
        return _resized(small, shape, mode="bilinear", align_corners=False)


def _resized(pixels: Tensor, shape: tuple[int, int, int], mode: str, align_corners: bool | None = None) -> Tensor:
    """uint8 to uint8 (n, *shape), some at a time, as floats are four times as large."""
    resized = torch.empty(len(pixels), *shape, dtype=torch.uint8, device=pixels.device)
    for start in range(0, len(pixels), 256):
        part = F.interpolate(pixels[start : start + 256].float(), shape[1:], mode=mode, align_corners=align_corners)
        resized[start : start + 256] = part.round().clamp(0, 255)
    return resized


class Jpeg:
    """JPEG bytes; variable size, so each image also keeps its size (4 bytes).

    Args:
        quality: 1 to 95.
    """

    fixed = False
    lossless = False

    def __init__(self, quality: int = 75) -> None:
        if not 1 <= quality <= 95:
            raise ConfigError(f"JPEG quality {quality} is not in 1..95; write strategy.codec=jpeg:75, for example")
        self.quality = quality

    def stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        from PIL import Image

        if len(pixels) and pixels.shape[1] not in (1, 3):
            raise ConfigError(f"JPEG keeps images of 1 or 3 channels, not {pixels.shape[1]}; set strategy.codec=raw")
        chunks = []
        for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
            buffer = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=self.quality)
            chunks.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
        sizes = torch.tensor([len(chunk) for chunk in chunks], dtype=torch.int32)
        return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8), sizes

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        import numpy as np
        from PIL import Image

        images = torch.empty(len(sizes), *shape, dtype=torch.uint8)
        for row, chunk in enumerate(data.cpu().split(sizes.tolist())):
            file = io.BytesIO(chunk.numpy().tobytes())
            image = Image.open(file, formats=("JPEG",)).convert("L" if shape[0] == 1 else "RGB")
            images[row] = torch.from_numpy(np.array(image)).reshape(shape[1], shape[2], shape[0]).permute(2, 0, 1)
        return images


_CODECS: dict[str, Callable[..., Codec]] = {"raw": Raw, "jpeg": Jpeg, "downsample": Downsample}


def codec(name: str) -> Codec:
    """The codec of that name; a number after a colon is its option: ``raw``, ``jpeg:50``, ``downsample:16``.

    Other packages: entry points of the group ``cil.codecs``.

    Raises:
        ConfigError: for an unknown name or option.
    """
    base, _, option = name.partition(":")
    if base not in _CODECS:
        for point in points("cil.codecs"):
            _CODECS.setdefault(point.name, load(point))
    if base not in _CODECS or (option and not option.isdigit()) or (option and base == "raw"):
        raise ConfigError(
            f"no codec '{name}' (strategy.codec); {nearest(base, _CODECS)}; options as in jpeg:75, downsample:16"
        )
    return _CODECS[base](int(option)) if option else _CODECS[base]()
