"""Several data sets as one stream of classes: images, names, orders, augmentation, averages."""

from functools import partial

import numpy as np
import pytest
import torch

from cil import Budget, train
from cil.data import ArrayStore, Augment, Dataset, Samples
from cil.data.augment_by_class import AugmentByClass
from cil.data.pooled import FittedStore, fit_to, pool
from cil.engine.loader import Loader
from cil.errors import ConfigError, DataError
from cil.kinds.classes.results import averages
from cil.metrics import confusion_cells
from cil.strategies.ranpac import RanPAC
from cil.strategies.simplecil import SimpleCIL
from cil.streams import Gaussian, blurry, class_incremental


def made(name, classes, size=4, channels=1, value=0, **settings):
    labels = torch.arange(len(classes)).repeat(3)
    pixels = (value + labels)[:, None, None, None].expand(-1, channels, size, size).byte()
    splits = [Samples.from_arrays(pixels.clone(), labels) for _ in range(2)]
    return Dataset(name, *splits, classes, **settings)


def two(**settings):
    return pool([made("digits", ["0", "1"], 4, 1, 10), made("photos", ["1", "cat", "dog"], 8, 3, 50)], **settings)


def test_classes_of_all_sets_with_the_set_in_front_where_names_clash():
    data = two()
    assert list(data.classes) == ["0", "digits/1", "photos/1", "cat", "dog"]
    assert list(data.origins) == ["digits", "digits", "photos", "photos", "photos"]
    assert data.name == "digits+photos"
    assert data.train.shape == (3, 8, 8)
    assert data.train.pixels[:, 0, 0, 0].tolist() == [10, 11] * 3 + [50, 51, 52] * 3
    assert data.train.slots.tolist() == [0, 1] * 3 + [2, 3, 4] * 3


def test_images_are_padded_or_resized_and_grey_ones_repeated():
    image = torch.full((1, 1, 2, 2), 200, dtype=torch.uint8)
    padded = fit_to(image, (3, 4, 4), pad=True)
    assert padded[0, 2].tolist() == [[0] * 4, [0, 200, 200, 0], [0, 200, 200, 0], [0] * 4]
    assert (fit_to(image, (3, 4, 4)) == 200).all()
    chequered = torch.tensor([[[[0, 100], [100, 200]]]], dtype=torch.uint8)
    assert fit_to(chequered, (1, 1, 1), pad=True).tolist() == [[[[100]]]], "what is larger is resized in any case"
    assert two(fit="pad").train.pixels[0, 0, :, 3].tolist() == [0, 0, 10, 10, 10, 10, 0, 0]
    assert two(size=2).train.shape == (3, 2, 2)


def test_one_set_after_the_other_or_all_classes_mixed():
    by_set = class_incremental(two(), order="by_set")
    assert [len(s.new_slots) for s in by_set.signatures] == [2, 3], "as large as the sets"
    assert by_set.provenance.origins == ("digits",) * 2 + ("photos",) * 3
    mixed = class_incremental(two(), order_seed=1)
    assert [len(s.new_slots) for s in mixed.signatures] == [2, 3]
    assert mixed.order == (2, 1, 4, 0, 3)  # RandomState(1).permutation(5)
    assert mixed.description()["origins"] == ["photos", "digits", "photos", "digits", "photos"]
    assert mixed.provenance.pool == by_set.provenance.pool
    assert mixed.fingerprint != by_set.fingerprint
    assert "origins" not in class_incremental(made("alone", "ab")).description()


def test_sets_take_turns():
    turns = class_incremental(two(), order="by_set", interleave=1, order_seed=1)
    whole = class_incremental(two(), order="by_set", order_seed=1)
    assert turns.provenance.origins == ("digits", "photos", "digits", "photos", "photos")
    assert [len(s.new_slots) for s in turns.signatures] == [1] * 5
    for name in ("digits", "photos"):  # within a set the order is the same
        own = [[label for label in stream.order if (label > 1) == (name == "photos")] for stream in (turns, whole)]
        assert own[0] == own[1]
    assert turns.name == "digits+photos_b0_inc1_by_set_turns1" and turns.fingerprint != whole.fingerprint
    again = class_incremental(two(), order="by_set", interleave=2, order_seed=1)
    assert [len(s.new_slots) for s in again.signatures] == [2, 2, 1]
    assert class_incremental(two(), order="by_set", interleave=3, order_seed=1).order == whole.order
    mixed = class_incremental(two(), order="by_set", interleave=1, increment=5)
    assert len(mixed) == 1
    for given, words in (({"interleave": 1}, "of stream.order=by_set"), ({"interleave": 0}, "from 1 on, or null")):
        with pytest.raises(ConfigError, match=words):
            class_incremental(two(), **given)


def test_by_name_and_in_other_streams(tmp_path):
    (tmp_path / "signs").mkdir()
    for split in ("train", "test"):
        images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40) % 10
        np.savez(tmp_path / "signs" / f"{split}.npz", images=images, labels=labels)
    settings = {"train_per_class": 4, "test_per_class": 2, "root": tmp_path}
    stream = class_incremental(["signs", {"name": "digits", "augment": {"flip": True}}], **settings)
    assert stream.image_shape == (1, 28, 28)
    assert [s.counts for s in stream.signatures] == [dict.fromkeys(range(k, k + 10), 4) for k in (0, 10)]
    assert isinstance(stream.augment, AugmentByClass)
    dealt = blurry(["signs", "digits"], experiences=2, arrival=Gaussian(), **settings)
    assert sorted(dealt.provenance.origins) == ["digits"] * 10 + ["signs"] * 10
    named = dict(zip(dealt.classes, dealt.provenance.origins, strict=True))
    assert named["digits/3"] == "digits"


@pytest.mark.parametrize(
    ("sets", "options", "words"),
    [
        (["digits"], {}, "a pool has two data sets or more"),
        (["digits", "digits"], {}, "name each data set once"),
        (["digits", "digit"], {}, "unknown data set 'digit'"),
        (["digits", {"path": "x"}], {}, "a mapping with name and options"),
        (["digits", "digits"], {"sise": 8}, "stream.sise is not known for data set"),
        (["digits", {"name": "digits", "augment": {"flop": 1}}], {}, "augment of 'digits' is"),
    ],
)
def test_what_is_no_pool_is_refused(embedded_root, sets, options, words):
    with pytest.raises(ConfigError, match=words):
        class_incremental(sets, root=embedded_root, **options)
    with pytest.raises(DataError, match="2 channels; a pool takes 1 or 3"):
        pool([made("a", "ab", channels=2), made("b", "cd")])


def test_each_image_is_augmented_as_its_own_set_is():
    left = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    left[..., 0] = 255  # bright on the left: a mirror shows
    slots = torch.tensor([0, 1, 2, 1])
    augment = AugmentByClass.of([Augment(flip=True), Augment()], [0, 1, 0]).in_order([0, 2, 1])
    assert augment.choice_of == (0, 0, 1)
    assert not augment.flip, "where slots are not known, only what all sets have"
    loader = Loader(Samples.from_arrays(left, slots), augment, torch.device("cpu"), _keyed)
    rows, seen = torch.tensor([2, 0, 1, 3]).repeat(20), set()
    (batch,) = loader.batches([(rows, 0, 0)])
    for image, slot in zip(batch.images, batch.slots.tolist(), strict=True):
        seen.add((slot, int(image[0, 0, 0])))
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)}, "slot 2 is never mirrored"
    assert AugmentByClass.of([Augment(flip=True)] * 2, [0, 1]) == Augment(flip=True)


def _keyed(*parts):
    return torch.Generator().manual_seed(len(parts))


def test_averages_over_images_classes_and_sets_by_hand():
    stream = class_incremental(two(), order="natural")  # 2 and 3 classes with 3 test images each
    cells = [confusion_cells([0, 0, 1], [0, 1, 1])]  # classes: 50, 100
    cells.append(confusion_cells([0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 4], [0, 1, 1, 2, 2, 2, 0, 0, 0, 0, 4]))
    found = averages([{"cells": torch.from_numpy(own)} for own in cells], stream)
    # 6 of 11; classes 50, 100, 75, 0, 100; sets 2 / 3 and 4 / 8
    assert found["by_image"] == pytest.approx([200 / 3, 600 / 11])
    assert found["by_class"] == pytest.approx([75, 65])
    assert found["by_set"] == pytest.approx([200 / 3, (200 / 3 + 50) / 2])
    assert found["sets"]["digits"] == pytest.approx([200 / 3, 200 / 3])
    assert found["sets"]["photos"] == [None, 50.0]


FIXED = {  # statistics of a network that is never trained
    "simplecil": partial(SimpleCIL, train_first=False),
    "ranpac": partial(RanPAC, train_first=False, size=40, ridge=10.0),
}


@pytest.mark.parametrize("name", FIXED)
def test_sums_over_samples_do_not_see_the_order_of_the_classes(tmp_path, make_dataset, name):
    sets = [make_dataset([6] * 3, [5, 9, 4], name="first"), make_dataset([6] * 2, [3, 8], channels=1, name="second")]
    found = {}
    for order in ("by_set", "seed"):
        stream = class_incremental(pool(sets), order=order, increment=[3, 2], mean=[0.5] * 3, std=[0.25] * 3)
        record = train(FIXED[name], stream, "smallconv", Budget(), root=tmp_path, device="cpu", progress=False)
        results = record.results
        right = record.arrays()["confusion"][-1].diagonal()
        found[order] = (results["last_accuracy"], dict(zip(stream.classes, right.tolist(), strict=True)))
        assert results["averages"]["by_image"][-1] == pytest.approx(results["last_accuracy"])
        assert list(results["averages"]["sets"]) == list(dict.fromkeys(stream.provenance.origins))
    assert found["by_set"] == found["seed"]


def test_files_of_a_pool_are_compared_without_being_decoded():
    """Two sets of files that are fitted to one size: the keys of their images are those of the files."""

    class Files(ArrayStore):
        in_memory = False

        def row_keys(self, rows):
            return rows.numpy().astype(np.uint64)

    store = FittedStore(Files(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)), (3, 8, 8), pad=True)
    fitted = Samples(store, torch.tensor([0, 1, 0]))
    assert fitted[[2, 0]].keys().tolist() == [2, 0]


def test_a_size_of_one_sets_crops_alone_is_refused():
    with pytest.raises(ConfigError, match=r"augment\.crop_size is 8 for some sets of a pool"):
        AugmentByClass.of([Augment(resized_crop=True, crop_size=8), Augment()], [0, 1])
