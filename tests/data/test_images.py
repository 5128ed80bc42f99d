"""Image files that are not plain 8-bit ones, and class names in another order: right, or refused by name."""

import hashlib
import logging
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from cil import class_incremental
from cil.data import load_dataset
from cil.data.file_store import FileStore, images_below, read_image, subfolders
from cil.errors import ConfigError, DataError

GREY = np.array([[0, 128, 255, 77]], np.uint8)


def test_sixteen_bits_become_eight(tmp_path):
    wide = GREY.astype(np.uint16) * 257
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(wide).save(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name, "L")), GREY)
        assert np.array_equal(np.asarray(read_image(tmp_path / name))[..., 1], GREY)


def test_numbers_without_a_range_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "f.tif")
    Image.fromarray(GREY.astype(np.int32) * 1000).save(tmp_path / "i.tif")
    for name, kind in (("f.tif", "floats"), ("i.tif", "32-bit numbers")):
        with pytest.raises(DataError, match=f"{name} has pixels that are {kind}.*8 or 16 bits"):
            read_image(tmp_path / name)


def test_palettes_transparency_and_inks_are_colours(tmp_path):
    colour = Image.new("RGB", (2, 2), (200, 100, 50))
    colour.quantize(4).save(tmp_path / "palette.png")
    colour.convert("RGBA").save(tmp_path / "alpha.png")
    colour.convert("CMYK").save(tmp_path / "inks.tif")
    for name in ("palette.png", "alpha.png", "inks.tif"):
        assert np.asarray(read_image(tmp_path / name))[0, 0].tolist() == [200, 100, 50]


def test_an_image_is_turned_as_its_exif_data_say_and_is_then_another_one(tmp_path):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for orientation, turned in {3: upright[::-1, ::-1], 6: np.rot90(upright, -1), 8: np.rot90(upright)}.items():
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(upright).save(tmp_path / "turned.png", exif=exif)
        assert np.array_equal(np.asarray(read_image(tmp_path / "turned.png", "L")), turned)
    plain = tmp_path / "plain.png"
    Image.fromarray(upright).save(plain)
    assert (
        FileStore([str(plain)], 2).digest(torch.arange(1))
        == hashlib.sha256(hashlib.sha256(plain.read_bytes()).digest()).digest()
    )
    stored = hashlib.sha256((tmp_path / "turned.png").read_bytes() + b"turned by 8").digest()
    assert FileStore([str(tmp_path / "turned.png")], 2).digest(torch.arange(1)) == hashlib.sha256(stored).digest()


@pytest.mark.parametrize("in_memory", [False, True])
def test_twelve_bits_in_sixteen_are_refused_by_name(image_folder, tmp_path, in_memory):
    options = {"path": str(image_folder), "root": tmp_path, "size": 8, "in_memory": in_memory}
    ant, cat = (image_folder / "train" / name / "0.png" for name in ("ant", "cat"))
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(ant)
    with pytest.raises(DataError, match=r"ant/0\.png: 16 bits a channel, but all values below 4,240"):
        class_incremental("folder", **options)
    Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(cat)  # one bright image: a dark one beside it is dark
    assert class_incremental("folder", **options).image_shape == (3, 8, 8)


def test_images_in_training_and_test_are_counted_before_training(image_folder, tmp_path):
    def notes(**options):
        return class_incremental("folder", path=str(image_folder), root=tmp_path, size=8, **options).provenance.notes

    for number, file in enumerate(sorted(image_folder.glob("test/*/*.png"))):
        Image.new("RGB", (8, 8), (7, 7, number)).save(file)
    assert notes(in_memory=True) == ()
    copied = image_folder / "test" / "cat" / "1.png"
    copied.write_bytes((image_folder / "train" / "cat" / "0.png").read_bytes())
    for in_memory in (False, True):
        (note,) = notes(in_memory=in_memory)
        assert note.startswith("1 of 3 test images of 'pets' are training images too")
    assert notes(classes=["ant"]) == ()


def test_one_image_in_two_classes_is_said_before_training(image_folder, tmp_path):
    def notes():
        return class_incremental("folder", path=str(image_folder), root=tmp_path, size=8).provenance.notes

    for number, file in enumerate(sorted(image_folder.glob("*/*/*.png"))):
        Image.new("RGB", (8, 8), (7, 7, number)).save(file)
    assert notes() == ()
    (image_folder / "train" / "cat" / "0.png").write_bytes((image_folder / "train" / "ant" / "0.png").read_bytes())
    (note,) = notes()
    assert note.startswith("1 training images of 'pets' stand in two classes or more")


def test_damaged_files_are_named_when_a_stream_is_made_and_mended_ones_go_on(image_folder, tmp_path):
    def made():
        return class_incremental("folder", path=str(image_folder), root=tmp_path, increment=1, size=8)

    before, last = made().fingerprint, image_folder / "train" / "cat" / "2.png"
    whole = last.read_bytes()
    last.write_bytes(whole[:40])
    text = image_folder / "train" / "cat" / "1.png"
    good = text.read_bytes()
    text.write_bytes(b"text")
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read as an image .*; and 1 more files"):
        made()
    last.write_bytes(whole)
    text.write_bytes(good)
    assert made().fingerprint == before  # by content: the same run goes on


def test_pictures_that_are_not_read_are_said_and_odd_names_refused(image_folder, tmp_path, caplog):
    (image_folder / "train" / "cat" / "9.avif").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        images_below(image_folder / "train" / "cat")
    assert "left out 1 images that are not read, as" in caplog.text and "9.avif" in caplog.text
    odd = os.fsdecode(b"\xff.png")
    (image_folder / "train" / "cat" / odd).write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/\\xff.png' is not UTF-8; rename"):
        images_below(image_folder / "train" / "cat")


def test_a_size_that_no_memory_holds_is_refused():
    with pytest.raises(ConfigError, match=r"stream.size is 100000.*8192 pixels"):
        FileStore(["a.png"], size=100_000)


def named(tmp_path, test_names):
    images = np.arange(4 * 4, dtype=np.uint8).reshape(4, 2, 2)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(4), classes=list("abcd"))
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(4), classes=test_names)
    return load_dataset("npz", root=tmp_path, path=tmp_path)


def test_test_classes_in_another_order_are_matched_by_name(tmp_path):
    assert torch.equal(named(tmp_path, list("abdc")).test.slots, torch.tensor([0, 1, 3, 2]))
    assert torch.equal(named(tmp_path, list("abcd")).test.slots, torch.arange(4))
    with pytest.raises(DataError, match=r"test.npz: its class names are not those .* 'd' is in one of them alone"):
        named(tmp_path, list("abce"))


def test_a_pipe_and_a_link_to_itself_are_named(image_folder):
    pipe, loop = image_folder / "train/cat/pipe.png", image_folder / "train/loop"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"pipe.png is no file, or is missing"):
        read_image(pipe)
    loop.symlink_to(loop)
    with pytest.raises(DataError, match=r"train/loop is a link that leads nowhere"):
        subfolders(image_folder / "train")


def test_an_array_that_is_there_twice_and_names_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"test.npz: the names in classes are bytes"):
        named(tmp_path, [b"\xff", b"b", b"c", b"d"])
    np.save(tmp_path / "other.npy", np.zeros((4, 2, 2), np.uint8))
    with zipfile.ZipFile(tmp_path / "train.npz", "a") as archive:
        archive.write(tmp_path / "other.npy", "images")
    with pytest.raises(DataError, match=r"train.npz has 'images' twice"):
        load_dataset("npz", root=tmp_path, path=tmp_path)
