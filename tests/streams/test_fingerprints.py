"""Fingerprints: another pixel, label, order or split is another stream; the way files are found is not."""

import shutil

import numpy as np
import pytest
import torch

from cil.data import Dataset, Samples
from cil.streams import class_incremental, fingerprint_of

PIXELS = torch.arange(12 * 3 * 2 * 2).reshape(12, 3, 2, 2).byte()
LABELS = torch.arange(12) % 3


def stream(pixels=PIXELS, labels=LABELS, test_pixels=PIXELS, classes=("a", "b", "c"), **settings):
    train, test = Samples.from_arrays(pixels, labels), Samples.from_arrays(test_pixels, LABELS)
    return class_incremental(Dataset("made", train, test, classes), **{"increment": 1, "order": "natural"} | settings)


def changed(tensor, place):
    other = tensor.clone()
    other[place] += 1
    return other


def test_the_same_data_and_settings_have_the_same_fingerprint():
    assert stream().fingerprint == stream().fingerprint
    assert len(stream().fingerprint) == 64


CHANGES = {
    "a training pixel": {"pixels": changed(PIXELS, (5, 1, 1, 0))},
    "a test pixel": {"test_pixels": changed(PIXELS, (11, 0, 0, 0))},
    "two labels": {"labels": torch.tensor([1, 0, *LABELS[2:].tolist()])},
    "a class name": {"classes": ("a", "b", "d")},
    "order": {"order": [0, 2, 1]},
    "increment": {"increment": 2},
    "base": {"base": 2, "increment": 1},
    "validation": {"validation": 0.25},
    "training cap": {"train_per_class": 3},
    "test cap": {"test_per_class": 3},
    "choice under the cap": {"train_per_class": 3, "order_seed": 1},
}


def test_any_change_of_the_data_or_the_split_changes_it():
    fingerprints = {name: stream(**change).fingerprint for name, change in CHANGES.items()}
    assert fingerprints["base"] == fingerprints["increment"]  # the same split, said in two ways
    assert len({stream().fingerprint, *fingerprints.values()}) == len(CHANGES)


def test_what_only_changes_training_leaves_it():
    assert stream(augment={"flip": True}).fingerprint == stream().fingerprint
    assert stream(mean=[0.0] * 3, std=[1.0] * 3).fingerprint == stream().fingerprint


@pytest.mark.parametrize("in_memory", [False, True])
def test_files_may_be_found_in_any_order_and_place(tmp_path, in_memory):
    from PIL import Image

    rng, images = np.random.default_rng(0), {}
    for split in ("train", "test"):
        for name in ("ant", "cat"):
            for number in range(3):
                images[f"{split}/{name}/{number}.png"] = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)

    def written(place, order):
        for name in order:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[name]).save(place / name)
        settings = {"path": place, "size": 8, "in_memory": in_memory}
        return class_incremental("folder", increment=1, root=tmp_path, **settings).fingerprint

    first = written(tmp_path / "one" / "pets", sorted(images))
    assert written(tmp_path / "two" / "pets", sorted(images, reverse=True)) == first
    shutil.copy(tmp_path / "two/pets/train/ant/0.png", tmp_path / "two/pets/train/ant/1.png")
    assert written(tmp_path / "two" / "pets", []) != first


def test_values_are_hashed_with_their_kind_and_shape():
    flat = torch.zeros(4)
    assert fingerprint_of(flat) != fingerprint_of(flat.reshape(2, 2))
    assert fingerprint_of(flat) != fingerprint_of(flat.int())
    assert fingerprint_of([1, 2]) == fingerprint_of([1, 2])
    assert fingerprint_of([1, 2]) != fingerprint_of([2, 1])
