"""Streams of data sets whose numbers are known: structure and bills equal those of the images."""

import pytest

import cil.cli.build
from cil.cli.build import build, build_stream
from cil.cli.compose import compose
from cil.data import load_dataset
from cil.data.known_sets import KNOWN, KnownSet
from cil.errors import DataError
from cil.streams.known_shapes import without_images

STREAMS = {
    "split": "stream=split_digits",
    "a base, half the images, some held out": "stream=split_digits stream.base=4 stream.increment=3 "
    "stream.train_per_class=90 stream.validation=0.2",
    "few shots": "stream=split_digits stream.base=4 stream.increment=2 stream.shots=5",
    "a list of numbers": "stream=split_digits stream.order=[9,8,7,6,5,4,3,2,1,0] stream.classes=6 stream.increment=3",
    "blurry": "stream=blurry_digits",
    "long tail": "stream=long_tailed_digits",
    "a pool by turns": "stream=split_pooled stream.dataset=[digits,mnist5k] stream.order=by_set stream.interleave=2",
    "a pool with mean": "stream=split_pooled stream.dataset=[mnist5k,digits] stream.mean=[0.1] stream.std=[0.3]",
}


@pytest.fixture
def known_digits(monkeypatch):
    for name in ("digits", "mnist5k"):
        train = load_dataset(name).train
        counts = tuple(train.slots.bincount().tolist())
        monkeypatch.setitem(KNOWN, name, KnownSet(train.shape, counts))


@pytest.mark.parametrize("words", STREAMS.values(), ids=STREAMS)
def test_an_unread_stream_has_the_structure_and_the_bill_of_the_images(words, known_digits):
    job = compose((*words.split(), "strategy=joint", "model=resnet14", "budget=none"))
    unread, read = without_images(job.config["stream"]), build_stream(job.config)
    assert unread is not None and unread.name == read.name and list(unread.order) == list(read.order)
    assert list(unread.signatures) == list(read.signatures)
    bills = [build(job, stream=stream, progress=False, device="cpu").work.bill for stream in (unread, read)]
    assert [bill.total for bill in bills[0]] == [bill.total for bill in bills[1]]
    assert unread.fingerprint != read.fingerprint


def test_no_image_is_made_up(known_digits):
    stream = without_images(compose(("stream=split_digits",)).config["stream"])
    with pytest.raises(DataError, match="the images of digits were not read"):
        _ = stream[0].train.pixels


def test_classes_that_are_named_need_names_where_they_have_unlike_numbers(known_digits):
    config = compose(("stream=split_digits", "stream.classes=[one,two]", "stream.increment=1")).config["stream"]
    assert without_images(config) is None
    config = compose(("stream=split_cifar100", "stream.classes=[apple,bear]", "stream.increment=1")).config["stream"]
    assert [signature.counts for signature in without_images(config).signatures] == [{0: 500}, {1: 500}]


def test_the_official_numbers_add_up():
    assert {name: sum(known.counts) for name, known in KNOWN.items()} == {
        "cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "fashion_mnist": 60_000, "kmnist": 60_000,
        "svhn": 73_257, "tiny_imagenet": 100_000, "imagenet100": 130_000, "imagenet1000": 1_300_000,
    }  # fmt: skip


def test_a_set_that_is_not_known_is_read():
    assert without_images({"builder": "class_incremental", "dataset": "small_tasks/mnist"}) is None
    assert without_images({"builder": "class_incremental", "dataset": ["folder", "glyphs"]}) is None


def test_a_set_without_options_is_loaded_once_however_it_is_split(monkeypatch):
    loaded = []

    def load(name, root):
        loaded.append(name)
        return load_dataset(name, root)

    monkeypatch.setattr(cil.cli.build, "_data", {})
    monkeypatch.setattr(cil.cli.build, "_streams", {})
    monkeypatch.setattr(cil.cli.build, "load_dataset", load)
    streams = [build_stream(compose(("stream=split_digits", f"stream.increment={each}")).config) for each in (2, 5)]
    assert loaded == ["digits"] and [len(stream.signatures) for stream in streams] == [5, 2]
