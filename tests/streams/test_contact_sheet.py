"""The picture of a stream: a row an experience, images of all its classes, no test image."""

import numpy as np
import pytest
import torch
from PIL import Image

from cil.data import Dataset, Samples
from cil.errors import ConfigError
from cil.streams import class_incremental
from cil.streams.show import CAPTION, GAP, MARGIN, TILE, contact_sheet


def tile(sheet, row, column):
    left = MARGIN + column * (TILE + GAP)
    top = 2 * CAPTION + row * (TILE + GAP + CAPTION) + CAPTION
    return np.asarray(sheet)[top : top + TILE, left : left + TILE]


def coloured(channels):
    """Class k has 5 images of grey level 40 * k; a test image would be white."""
    labels = torch.arange(4).repeat(5)
    train = Samples.from_arrays((40 * labels).byte().reshape(-1, 1, 1, 1).expand(-1, channels, 6, 6), labels)
    test = Samples.from_arrays(torch.full((4, channels, 6, 6), 255).byte(), torch.arange(4))
    return class_incremental(Dataset("grey", train, test, ["$a$", "b\nc", "d" * 99, "e"]), increment=2, order="natural")


@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_shows_the_classes_of_its_experience_in_order(tmp_path, channels):
    file = contact_sheet(coloured(channels).training_half(), tmp_path / "new" / "sheet.png", per_experience=4)
    sheet = Image.open(file)
    assert sheet.format == "PNG"
    for row, levels in enumerate(((0, 0, 40, 40), (80, 80, 120, 120))):
        for column, level in enumerate(levels):
            assert np.unique(tile(sheet, row, column)).tolist() == [level]


def test_it_replaces_only_what_it_made(tmp_path, uneven_stream):
    file = tmp_path / "sheet.png"
    contact_sheet(uneven_stream, contact_sheet(uneven_stream, file))
    Image.new("L", (4, 4)).save(file)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"sheet\.png is there already, and no picture of cil show; remove it"):
        contact_sheet(uneven_stream, file)
    assert file.read_bytes() == before
    with pytest.raises(ConfigError, match=r"sheet\.png cannot be made \(.*\); choose another place"):
        contact_sheet(uneven_stream, file / "below.png")


def test_an_experience_with_few_images_leaves_its_row_short(tmp_path, uneven_stream):
    sheet = Image.open(contact_sheet(uneven_stream, tmp_path / "sheet.png", per_experience=12))
    assert sheet.size == (MARGIN + 12 * (TILE + GAP), 2 * CAPTION + 4 * (TILE + GAP + CAPTION))
    assert tile(sheet, 3, 3).std() > 0  # four images
    assert np.unique(tile(sheet, 3, 4)).tolist() == [255]


def test_wide_images_keep_their_proportions(tmp_path):
    samples = Samples.from_arrays(torch.zeros(2, 3, 4, 8).byte(), torch.zeros(2))
    stream = class_incremental(Dataset("wide", samples, samples, ["a"]), increment=1)
    shown = tile(Image.open(contact_sheet(stream, tmp_path / "sheet.png", per_experience=2)), 0, 0)
    assert np.unique(shown[: TILE // 2]).tolist() == [0]
    assert np.unique(shown[TILE // 2 + 1 :]).tolist() == [255]


def test_a_row_needs_at_least_one_image(tmp_path, toy_stream):
    with pytest.raises(ConfigError, match="per_experience is 0; it must be 1 or more"):
        contact_sheet(toy_stream, tmp_path / "sheet.png", per_experience=0)
