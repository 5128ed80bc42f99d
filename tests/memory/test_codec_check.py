"""A codec decodes from the bytes that are charged, and from nothing else."""

from __future__ import annotations

import pytest
import torch

from cil.errors import ContractError
from cil.memory.codec_check import check_codec, held_by, moved
from cil.memory.codecs import Raw, codec
from cil.testing.toy import toy_dataset

IMAGES = toy_dataset().train.pixels[:8]


class Rows(Raw):
    """Row numbers of a public set."""

    def encode(self, pixels):
        known = toy_dataset().train.pixels
        rows = torch.cdist(pixels.flatten(1).float(), known.flatten(1).float()).argmin(1)
        return rows.to(torch.int16).view(torch.uint8), torch.full((len(pixels),), 2, dtype=torch.int32)

    def decode(self, data, sizes, shape):
        return toy_dataset().train.pixels[data.view(torch.int16).long()]


class RowsOrPixels(Rows):
    """Row numbers of what is known, and all other images as they are."""

    fixed = False

    def encode(self, pixels):
        chunks = []
        for image in pixels:
            row, _ = super().encode(image[None])
            same = torch.equal(super().decode(row, None, None)[0], image)
            chunks.append(row if same else image.flatten())
        return torch.cat(chunks), torch.tensor([len(chunk) for chunk in chunks], dtype=torch.int32)

    def decode(self, data, sizes, shape):
        chunks = data.split(sizes.tolist())
        return torch.stack(
            [
                super(RowsOrPixels, self).decode(chunk.clone(), None, shape)[0]
                if len(chunk) == 2
                else chunk.view(shape)
                for chunk in chunks
            ]
        )


class Remembers(Raw):
    """All images in the object, and a number for each."""

    def __init__(self):
        self.held = {}

    def encode(self, pixels):
        rows = torch.arange(len(self.held), len(self.held) + len(pixels), dtype=torch.int16)
        self.held.update(zip(rows.tolist(), pixels, strict=True))
        return rows.view(torch.uint8), torch.full((len(pixels),), 2, dtype=torch.int32)

    def decode(self, data, sizes, shape):
        return torch.stack([self.held[row] for row in data.view(torch.int16).tolist()])


class HoldsATable(Raw):
    """Weights that nobody pays for."""

    def __init__(self):
        self.table = torch.zeros(10)


@pytest.mark.parametrize("name", ["raw", "jpeg:1", "jpeg:95", "downsample:2", "downsample:12"])
def test_honest_codecs_pass(name):
    check_codec(codec(name), IMAGES)


@pytest.mark.parametrize(
    ("cheat", "says"),
    [
        (Rows(), r"a mean error of 0\.0 grey levels and mirrored, shifted copies.*it knows these images"),
        (RowsOrPixels(), r"a size of 2\.0 bytes an image and mirrored, shifted copies of them with 432\.0"),
        (Remembers(), "does not decode what another object of it has encoded: KeyError"),
        (HoldsATable(), "holds data in table, which nobody pays for"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_decodes_from_elsewhere_is_refused(cheat, says):
    with pytest.raises(ContractError, match=says) as refused:
        check_codec(cheat, IMAGES)
    assert "\n" not in str(refused.value)


def test_options_are_no_data():
    one = Raw()
    one.quality, one.mode, one.sizes, one.map = 3, "grey", (1, 2), {}
    assert held_by(one) is None
    one.map[3] = b"x"
    assert held_by(one) == "map"


def test_moved_copies_are_other_images_of_the_same_kind():
    other = moved(IMAGES)
    assert other.shape == IMAGES.shape and other.dtype == torch.uint8
    assert float((other.float() - IMAGES.float()).abs().mean()) > 20
