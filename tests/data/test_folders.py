"""Folders of images: any ImageFolder-like one, Tiny-ImageNet as published, ImageNet and its 100 classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from cil.data import load_dataset
from cil.data.file_store import FileStore
from cil.errors import DataError
from cil.streams import class_incremental, class_order


def test_a_folder_gives_its_classes_in_alphabetical_order(image_folder, tmp_path):
    data = load_dataset("folder", root=tmp_path, path=image_folder, size=8)
    assert data.name == "pets"
    assert tuple(data.classes) == ("ant", "cat")
    assert data.train.slots.tolist() == [0, 0, 1, 1, 1]
    assert data.test.slots.tolist() == [0, 1, 1]
    assert not data.train.in_memory
    assert data.train.shape == (3, 8, 8)
    assert data.train.pixels[:, :, 4, 4].tolist() == [[0, 200, 0], [1, 201, 1], [200, 0, 0], [201, 1, 1], [202, 2, 2]]


def test_a_relative_path_is_found_in_the_data_root(image_folder, tmp_path):
    assert len(load_dataset("folder", root=tmp_path, path="pets").train) == 5


def test_val_serves_where_there_is_no_test_folder(image_folder, tmp_path):
    (image_folder / "test").rename(image_folder / "val")
    assert len(load_dataset("folder", root=tmp_path, path=image_folder).test) == 3


def test_small_images_are_kept_in_memory_as_they_are(image_folder, tmp_path):
    lazy = load_dataset("folder", root=tmp_path, path=image_folder, size=8)
    kept = load_dataset("folder", root=tmp_path, path=image_folder, size=8, in_memory=True)
    assert kept.train.in_memory
    expected = [np.array(Image.open(path)) for path in lazy.train.parts[0][0].paths]
    assert torch.equal(kept.train.pixels, torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2))


def test_images_in_folders_below_a_class_count_and_other_files_do_not(image_folder, tmp_path, write_image):
    write_image(image_folder / "train" / "ant" / "images" / "more.PNG", (0, 9, 0))
    (image_folder / "train" / "ant" / "notes.txt").write_text("no image")
    (image_folder / "train" / "ant" / ".hidden.png").write_bytes(b"")
    data = load_dataset("folder", root=tmp_path, path=image_folder)
    assert data.train.counts() == {0: 3, 1: 3}


def test_a_stream_of_files_trains_on_files_alone(image_folder, tmp_path):
    stream = class_incremental("folder", root=tmp_path, path=image_folder, size=8, increment=1, order="natural")
    cats = stream[1].train
    assert [store.paths for store, _ in cats.parts] == [
        tuple(str(image_folder / "train" / "cat" / f"{number}.png") for number in range(3))
    ]
    assert isinstance(cats.parts[0][0], FileStore)
    red, green, blue = stream.mean  # of the first experience alone, which is green
    assert green == pytest.approx(200.5 / 255)
    assert red == blue == pytest.approx(0.5 / 255)


@pytest.fixture
def tiny(tmp_path, write_image):
    """Tiny-ImageNet as published: a table for val, a test folder without labels."""
    root = tmp_path / "tiny_imagenet"
    for name in ("n02", "n01"):
        for number in range(2):
            noise = np.random.default_rng(number).integers(256, size=(64, 64, 3), dtype=np.uint8)
            write_image(root / "train" / name / "images" / f"{name}_{number}.JPEG", noise)
    for number in range(4):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", (0, 0, 10 * number), (64, 64))
    rows = [f"val_{number}.JPEG\t{name}\t0\t0\t62\t62" for number, name in enumerate(("n02", "n01", "n02", "n01"))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    write_image(root / "test" / "images" / "test_0.JPEG", (1, 1, 1), (64, 64))
    return root


def test_tiny_imagenet_reads_its_table_of_validation_images(tiny, tmp_path):
    data = load_dataset("tiny_imagenet", root=tmp_path)
    assert tuple(data.classes) == ("n01", "n02")
    assert data.train.slots.tolist() == [0, 0, 1, 1]
    assert data.test.slots.tolist() == [0, 0, 1, 1]
    blue = data.test.pixels[:, 2, 32, 32].tolist()
    assert blue == pytest.approx([10, 30, 0, 20], abs=2)  # JPEG
    assert data.train.in_memory


def test_tiny_imagenet_keeps_the_pixels_of_its_files(tiny, tmp_path):
    expected = torch.from_numpy(np.array(Image.open(tiny / "train" / "n01" / "images" / "n01_1.JPEG")))
    for in_memory in (True, False):
        data = load_dataset("tiny_imagenet", root=tmp_path, in_memory=in_memory)
        assert torch.equal(data.train[[1]].pixels[0], expected.permute(2, 0, 1))


def test_tiny_imagenet_is_read_from_class_folders_too(tiny, tmp_path, write_image):
    (tiny / "val" / "val_annotations.txt").unlink()
    for name in ("n01", "n02"):
        write_image(tiny / "val" / name / "0.JPEG", (0, 0, 0), (64, 64))
    for image in (tiny / "val" / "images").iterdir():
        image.unlink()
    (tiny / "val" / "images").rmdir()
    assert load_dataset("tiny_imagenet", root=tmp_path, in_memory=False).test.slots.tolist() == [0, 1]


def test_a_class_of_the_table_without_a_folder_is_named(tiny, tmp_path):
    with (tiny / "val" / "val_annotations.txt").open("a") as table:
        table.write("val_9.JPEG\tn09\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt line 5: class 'n09' has no folder in train"):
        load_dataset("tiny_imagenet", root=tmp_path)


@pytest.fixture
def imagenet(tmp_path):
    """1000 class folders, each with an (empty) file in both splits; nothing is decoded."""
    for split in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / "imagenet1000" / split / f"n{number:04d}"
            folder.mkdir(parents=True)
            (folder / "0.JPEG").touch()
    (tmp_path / "imagenet1000" / "test").mkdir()  # without labels, as published
    return tmp_path


def test_the_subset_of_imagenet_is_the_first_hundred_of_the_order(imagenet):
    data = load_dataset("imagenet100", root=imagenet)
    assert tuple(data.classes) == tuple(sorted(f"n{label:04d}" for label in class_order(1000)[:100]))
    assert len(data.train) == len(data.test) == 100
    assert data.train.slots.tolist() == list(range(100))
    assert data.train.shape == (3, 224, 224)
    assert len(load_dataset("imagenet1000", root=imagenet).train) == 1000


def test_a_list_of_classes_chooses_another_subset(imagenet):
    chosen = [f"n{number:04d}" for number in range(500, 600)]
    (imagenet / "classes.txt").write_text("\n".join(reversed(chosen)))
    data = load_dataset("imagenet100", root=imagenet, class_list="classes.txt")
    assert tuple(data.classes) == tuple(chosen)
    (imagenet / "classes.txt").write_text("\n".join([*chosen, "n9999"]))
    with pytest.raises(DataError, match=r"classes\.txt names n9999, which .*imagenet1000 lacks \(stream.class_list\)"):
        load_dataset("imagenet100", root=imagenet, class_list="classes.txt")
    (imagenet / "classes.txt").write_text("\n".join(chosen[:7]))
    with pytest.raises(DataError, match=r"classes\.txt lists 7 folders, need 100"):
        load_dataset("imagenet100", root=imagenet, class_list="classes.txt")


def test_a_folder_of_another_number_of_classes_is_no_imagenet100(image_folder, tmp_path):
    with pytest.raises(DataError, match="has 2 classes; imagenet100 needs 100 or 1000"):
        load_dataset("imagenet100", root=tmp_path, path=image_folder)


def test_a_mapped_folder_is_decoded_once_for_all_runs(image_folder, tmp_path, monkeypatch):
    options = {"path": image_folder, "size": 4}
    held = load_dataset("folder", tmp_path, in_memory=True, **options)
    mapped = load_dataset("folder", tmp_path, in_memory="mapped", **options)
    assert torch.equal(mapped.train.pixels, held.train.pixels) and not mapped.train.in_memory
    assert mapped.augment == held.augment
    assert mapped.digest == load_dataset("folder", tmp_path, **options).digest, "that of the files"
    monkeypatch.setattr(FileStore, "pixels", None)  # nothing is decoded again
    again = load_dataset("folder", tmp_path, in_memory="mapped", **options)
    assert torch.equal(again.train[[3, 0]].pixels, held.train.pixels[[3, 0]])
