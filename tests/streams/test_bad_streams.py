"""Streams asked for in a wrong way: each gives one line with what was given, what is allowed, and the key."""

import numpy as np
import pytest
import torch

from cil.data import Dataset, Samples
from cil.errors import CilError, ConfigError, StreamError
from cil.streams import Stream, class_incremental, register_stream, stream_builder, stream_names


def dataset(train=(0, 0, 0, 1, 1, 1, 2), test=(0, 1, 2)):
    splits = [Samples.from_arrays(torch.zeros(len(s), 3, 4, 4).byte(), torch.tensor(s)) for s in (train, test)]
    return Dataset("made", *splits, ("ant", "bee", "cat"), source="made.npz")


BAD = {  # what: (settings, parts of the message)
    "unknown order": ({"order": "sede"}, ["stream.order is 'sede'; did you mean 'seed'?", "or a list of labels"]),
    "an order with a label twice": (
        {"order": [0, 1, 1]},
        ["stream.order is no permutation of 0 to 2: it has 3 entries, 2 of the 3 labels occur"],
    ),
    "an order that is too short": ({"order": [1, 0]}, ["no permutation of 0 to 2: it has 2 entries"]),
    "an order with a label out of range": ({"order": [0, 1, 3]}, ["no permutation of 0 to 2"]),
    "an order of unknown names": (
        {"order": ["ant", "be", "cat"]},
        ["stream.order has 'be', no class of data set 'made'; did you mean 'bee'?"],
    ),
    "classes of unknown names": ({"classes": ["dog"]}, ["stream.classes has 'dog', no class of data set 'made'"]),
    "a class named twice": ({"classes": ["ant", 0]}, ["stream.classes is ['ant', 0]; name each class once"]),
    "an order by set of one set": ({"order": "by_set"}, ["stream.order is by_set, and data set 'made' is one set"]),
    "no order": ({"order": None}, ["stream.order has None; it must be 'seed', 'natural', 'by_set' or a list"]),
    "increments that are too few": ({"increment": [1, 1]}, ["stream.increment is [1, 1], 2 classes", "3 in all"]),
    "no shots": ({"shots": 0}, ["stream.shots is 0; it must be a whole number from 1 on"]),
    "order seed out of range": (
        {"order": "seed", "order_seed": 2**32},
        ["stream.order_seed is 4294967296; it must be in 0 to 2^32 - 1"],
    ),
    "increment too large": ({"increment": 4}, ["stream.increment is 4; after stream.base=0 it must be in 1 to 3"]),
    "increment zero": ({"increment": 0}, ["stream.increment is 0; after stream.base=0 it must be in 1 to 3"]),
    "increment a word": ({"increment": "ten"}, ["stream.increment is 'ten'; it must be a whole number"]),
    "base too large": ({"base": 5}, ["stream.base is 5; with 3 classes it must be in 0 to 3"]),
    "base negative": ({"base": -1}, ["stream.base is -1; with 3 classes"]),
    "base true": ({"base": True}, ["stream.base is True; it must be a whole number"]),
    "more classes than there are": (
        {"classes": 4},
        ["stream.classes is 4; the data set has 3 classes, so 1 to 3 or null"],
    ),
    "no classes": ({"classes": 0}, ["stream.classes is 0; it must be a whole number from 1 on, or null for all"]),
    "a cap of nothing": ({"test_per_class": 0}, ["stream.test_per_class is 0; it must be a whole number from 1 on"]),
    "a cap that is no number": ({"train_per_class": 2.5}, ["stream.train_per_class is 2.5; it must be a whole number"]),
    "all for validation": (
        {"validation": 1.0},
        ["stream.validation is 1.0; it is the share of training images, in [0, 1)"],
    ),
    "validation NaN": ({"validation": float("nan")}, ["stream.validation is nan; it is the share"]),
    "validation that leaves nothing": (
        {"validation": 0.1},
        ["stream.validation=0.1 leaves no training image of class 'cat', which has 1; lower it or raise"],
    ),
    "unknown key": ({"incremnt": 2}, ["stream.incremnt is not known for data set 'made'; did you mean 'increment'"]),
    "unknown augmentation": ({"augment": {"flipp": True}}, ["stream.augment.flipp is not known; did you mean 'flip'"]),
    "augmentation by name": ({"augment": "cifar"}, ["stream.augment is 'cifar'; give its arguments (crop_padding, "]),
    "two means for three channels": ({"mean": [0.1, 0.2]}, ["stream.mean has 2 values; images have 3 channels"]),
    "a mean of words": ({"mean": ["a", "b", "c"]}, ["stream.mean is ['a', 'b', 'c']; it must list a number a channel"]),
    "std zero": ({"std": [1.0, 0.0, 1.0]}, ["stream.std is [1.0, 0.0, 1.0]; need finite numbers, above 0"]),
    "mean not finite": ({"mean": [0.0, 0.0, float("inf")]}, ["stream.mean is [0.0, 0.0, inf]; need finite numbers"]),
    "a class without training images": (
        {"dataset": dataset(train=(0, 1, 1))},
        ["made: class 'cat' has no training image (made.npz)"],
    ),
    "a class without test images": (
        {"dataset": dataset(test=(0, 2))},
        ["made: class 'bee' has no test image (made.npz)"],
    ),
    "unknown data set": ({"dataset": "digit"}, ["unknown data set 'digit' (stream.dataset;", "did you mean 'digits'"]),
    "a key that this data set lacks": (
        {"dataset": "cifar100", "size": 32},
        ["stream.size is not known for data set 'cifar100'; ", "known: augment, base, classes, "],
    ),
    "a key close to one of the data set": (
        {"dataset": "folder", "pth": "x"},
        ["stream.pth is not known for data set 'folder'; did you mean 'path'"],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_built_is_one_line(tmp_path, what):
    settings, parts = BAD[what]
    settings = {"dataset": dataset(), "increment": 1, "order": "natural", "root": tmp_path} | settings
    with pytest.raises(CilError) as caught:
        class_incremental(**settings)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_class_that_is_not_used_needs_no_images():
    assert len(class_incremental(dataset(train=(0, 1, 1)), increment=1, order="natural", classes=2)) == 2


def test_multi_label_data_are_refused(tmp_path):
    for split in ("train", "test"):
        images, labels = np.zeros((4, 5, 5), np.uint8), np.array([[0, 1]] * 4)
        (tmp_path / "cells").mkdir(exist_ok=True)
        np.savez(tmp_path / "cells" / f"{split}.npz", images=images, labels=labels)
    with pytest.raises(
        StreamError, match="data set 'cells' is multi-label; a class-incremental stream needs one label"
    ):
        class_incremental("cells", increment=1, root=tmp_path)


def test_an_unknown_builder_is_refused_with_the_nearest():
    assert "class_incremental" in stream_names()
    with pytest.raises(ConfigError, match="no stream 'class_incrmental'; did you mean 'class_incremental'"):
        stream_builder("class_incrmental")


def test_a_builder_name_cannot_be_taken_twice():
    with pytest.raises(ConfigError, match=r"'class_incremental' is taken by cil\.streams\.class_incremental"):
        register_stream("class_incremental")(lambda: None)
    assert stream_builder("class_incremental") is class_incremental


def test_a_builder_of_another_package_is_found_by_its_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    from cil.streams.registry import STREAMS

    entry = EntryPoint("theirs", "cil.streams:class_incremental", "cil.streams")
    monkeypatch.setattr("cil.plugins.points", lambda group: [entry] if group == "cil.streams" else [])
    monkeypatch.setattr(STREAMS, "registered", {})
    assert stream_names() == ["avalanche", "theirs"]  # a bridge is known before it is imported
    assert stream_builder("theirs") is class_incremental


def test_a_builder_whose_package_cannot_be_imported_is_refused_in_one_line(monkeypatch):
    from importlib.metadata import EntryPoint

    entry = EntryPoint("theirs", "no_such_package:build", "cil.streams")
    monkeypatch.setattr("cil.plugins.points", lambda group: [entry] if group == "cil.streams" else [])
    with pytest.raises(ConfigError, match=r"cil\.streams 'theirs' \(no_such_package:build\) cannot be imported"):
        stream_builder("theirs")


def test_a_stream_needs_experiences(toy_stream):
    settings = {
        "name": "none",
        "classes": (),
        "order": (),
        "fingerprint": "",
        "augment": toy_stream.augment,
        "mean": (),
        "std": (),
    }
    with pytest.raises(StreamError, match="stream 'none' has no experience; set stream"):
        Stream(**settings, signatures=(), parts=())
    with pytest.raises(StreamError, match="stream 'none': 3 signatures for 0 parts"):
        Stream(**settings, signatures=toy_stream.signatures, parts=())
