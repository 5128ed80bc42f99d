"""How the pixels of an exemplar are kept: raw, or as JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cil.errors import ConfigError, nearest


class Codec(Protocol):
    """Turns pixels into the bytes that are charged, and back."""

    fixed: bool  # every image of a shape takes the same number of bytes

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 -> the bytes of all images in one row, and the size of each (n,) int32."""
        ...

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Back to (n, C, H, W) uint8."""
        ...


class Raw:
    """One byte a pixel value: C * H * W bytes an image."""

    fixed = True

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        each = pixels[0].numel() if len(pixels) else 0
        return pixels.reshape(-1), torch.full((len(pixels),), each, dtype=torch.int32)

    def decode(self, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return data.reshape(-1, *shape)


class Jpeg:
    """JPEG bytes; variable size, so each image also keeps its size (4 bytes).

    Args:
        quality: 1 to 95.
    """

    fixed = False

    def __init__(self, quality: int = 75) -> None:
        if not 1 <= quality <= 95:
            raise ConfigError(f"JPEG quality {quality} is not in 1..95; write strategy.codec=jpeg:75, for example")
        self.quality = quality

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
            image = Image.open(io.BytesIO(chunk.numpy().tobytes())).convert("L" if shape[0] == 1 else "RGB")
            images[row] = torch.from_numpy(np.array(image)).reshape(shape[1], shape[2], shape[0]).permute(2, 0, 1)
        return images


_CODECS: dict[str, Callable[..., Codec]] = {"raw": Raw, "jpeg": Jpeg}


def codec(name: str) -> Codec:
    """The codec of that name; a number after a colon is its option: ``raw``, ``jpeg``, ``jpeg:50``.

    Other packages: entry points of the group ``cil.codecs``.
    """
    base, _, option = name.partition(":")
    if base not in _CODECS:
        from importlib.metadata import entry_points

        for point in entry_points(group="cil.codecs"):
            _CODECS.setdefault(point.name, point.load())
    if base not in _CODECS or (option and not option.isdigit()) or (option and base == "raw"):
        raise ConfigError(f"no codec '{name}' (strategy.codec); {nearest(base, _CODECS)}; options as in jpeg:75")
    return _CODECS[base](int(option)) if option else _CODECS[base]()
