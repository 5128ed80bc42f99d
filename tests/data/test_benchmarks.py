"""Benchmarks of pretrained networks: small copies of their layouts, and what is said where nothing lies there."""

import numpy as np
import pytest
from PIL import Image

from cil.data import load_dataset
from cil.data.benchmarks import BENCHMARKS
from cil.errors import DataError
from cil.streams import class_incremental, domainnet


def leave(*paths):
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number % 256).save(path)


def classes_below(folder, names=("ant", "bee"), count=1, suffix="jpg"):
    leave(*(folder / name / f"{number}.{suffix}" for name in names for number in range(count)))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_layout_of_published_splits_is_read_and_an_empty_place_says_what_goes_there(tmp_path, name):
    with pytest.raises(
        DataError, match=rf"is not in .*{name}; put there train/CLASS/\* and test/CLASS/\* \(\d+ classes"
    ):
        load_dataset(name, tmp_path)
    classes_below(tmp_path / name / "train", count=2)
    classes_below(tmp_path / name / "test")
    data = load_dataset(name, tmp_path, size=8)
    assert (data.train.slots.tolist(), data.test.slots.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert data.official is False, "fewer classes than the published split has"


def test_sets_without_a_published_split_are_cut_by_the_names_of_their_files(tmp_path):
    classes_below(tmp_path / "imagenet_r", count=10)
    classes_below(tmp_path / "objectnet" / "images", count=10)
    first = load_dataset("imagenet_r", tmp_path, size=8)
    assert (len(first.train), len(first.test), first.official) == (16, 4, False)
    assert load_dataset("objectnet", tmp_path, size=8).test.counts() == {0: 2, 1: 2}
    before = {path for store, _ in first.test.parts for path in store.paths}
    classes_below(tmp_path / "imagenet_r", ("cat",), count=5)
    after = {path for store, _ in load_dataset("imagenet_r", tmp_path, size=8).test.parts for path in store.paths}
    assert before < after, "a further class changes nothing for the others"


def test_birds_as_their_authors_published_them(tmp_path):
    where = tmp_path / "cub"
    images = ["001.Auk/a.jpg", "001.Auk/b.jpg", "002.Wren/c.jpg", "002.Wren/d.jpg"]
    leave(*(where / "images" / image for image in images))
    tables = {"images": images, "image_class_labels": "1122", "train_test_split": "1010"}
    for name, cells in tables.items():
        (where / f"{name}.txt").write_text("".join(f"{k} {cell}\n" for k, cell in enumerate(cells, start=1)))
    (where / "classes.txt").write_text("1 001.Auk\n2 002.Wren\n")
    data = load_dataset("cub", tmp_path, size=8)
    assert list(data.classes) == ["001.Auk", "002.Wren"]
    assert [path.rpartition("/")[2] for path in data.train.parts[0][0].paths] == ["a.jpg", "c.jpg"]
    assert data.test.slots.tolist() == [0, 1]


def test_cars_as_their_authors_published_them(tmp_path):
    from scipy.io import savemat

    where = tmp_path / "cars"
    kind = [("class", object), ("fname", object)]
    for folder, file, rows in (
        ("cars_train", "devkit/cars_train_annos.mat", [(2, "a.jpg"), (1, "b.jpg")]),
        ("cars_test", "cars_test_annos_withlabels.mat", [(1, "a.jpg"), (2, "b.jpg")]),
    ):
        leave(*(where / folder / image for _, image in rows))
        (where / file).parent.mkdir(exist_ok=True)
        savemat(where / file, {"annotations": np.array(rows, dtype=kind)})
    savemat(where / "devkit" / "cars_meta.mat", {"class_names": np.array(["Acura", "Fiat"], dtype=object)})
    data = load_dataset("cars", tmp_path, size=8)
    assert list(data.classes) == ["Acura", "Fiat"]
    assert (data.train.slots.tolist(), data.test.slots.tolist()) == ([1, 0], [0, 1])
    (where / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match="has no cars_test_annos_withlabels"):
        load_dataset("cars", tmp_path)


def test_core50_keeps_the_test_sessions_as_groups(tmp_path):
    with pytest.raises(DataError, match=r"CORe50 is not in .*core50; put there s1/o1/\*\.png to s11/o50/\*\.png"):
        load_dataset("core50", tmp_path)
    for session in (1, 3, 7, 10, 11):
        classes_below(tmp_path / "core50" / f"s{session}", ("o2", "o10"), suffix="png")
    data = load_dataset("core50", tmp_path, size=8)
    assert (list(data.classes), len(data.train), len(data.test)) == (["o2", "o10"], 4, 6)
    assert data.groups == {"session": ("s10", "s3", "s7")}
    by_kind = load_dataset("core50", tmp_path, size=8, level="category")
    assert sorted({by_kind.classes[label] for label in by_kind.train.slots.tolist()}) == [
        "mobile_phone",
        "plug_adapter",
    ]
    with pytest.raises(DataError, match="class 'scissors' has no training image"):
        class_incremental("core50", root=tmp_path, size=8, level="category", order="natural", classes=["scissors"])


def test_domains_come_in_the_published_order_by_the_lists_of_their_authors(tmp_path):
    where = tmp_path / "domainnet"
    with pytest.raises(DataError, match=r"DomainNet is not in .*domainnet; put there DOMAIN/CLASS"):
        domainnet(root=tmp_path)
    for domain in ("sketch", "real"):
        classes_below(where / domain, count=2)
        for split, number in (("train", 0), ("test", 1)):
            lines = [f"{domain}/{name}/{number}.jpg {label}\n" for label, name in enumerate(("ant", "bee"))]
            (where / f"{domain}_{split}.txt").write_text("".join(lines))
    stream = domainnet(root=tmp_path, size=8)
    assert (stream.domains, stream.classes) == (("real", "sketch"), ("ant", "bee"))
    assert [len(experience.train) for experience in stream] == [2, 2]
    (where / "real_test.txt").write_text("real/ant/1.jpg\n")
    with pytest.raises(
        DataError, match=r"real_test\.txt line 1 is 'real/ant/1\.jpg'; it must be a path and the number"
    ):
        domainnet(root=tmp_path, domains=["real"])
