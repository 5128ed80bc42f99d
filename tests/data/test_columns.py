"""Groups and accepted classes of test images: read from arrays and tables, counted, and told in the record."""

import numpy as np
import pytest
import torch

from cil import Budget, class_incremental, train
from cil.data import Samples, load_dataset
from cil.data.columns import ACCEPTED, GROUP, with_columns
from cil.errors import DataError
from cil.kinds.classes.column_counts import ColumnCounts, accepted_scores, group_scores
from cil.kinds.classes.commands import COMMANDS
from cil.report import table, to_text


def arrays(**changes):
    """Four classes with two training images and two test images each."""
    images, labels = np.arange(8, dtype=np.uint8).reshape(8, 1, 1).repeat(4, 1).repeat(4, 2), np.arange(8) % 4
    given = {"train_images": images, "train_labels": labels, "test_images": images + 100, "test_labels": labels}
    return {**given, "classes": np.array(list("abcd")), **changes}


def test_arrays_have_groups_and_accepted_labels_that_follow_the_class_order(tmp_path):
    accepted = np.array([[0, 3]] * 4 + [[1, -1]] * 4)
    np.savez(tmp_path / "mine.npz", **arrays(test_group_light=np.array(["day", "night"] * 4), test_accepted=accepted))
    stream = class_incremental("npz", path=tmp_path / "mine.npz", order=["d", "c", "b"], classes=["b", "c", "d"])
    assert stream.provenance.groups == {"light": ("day", "night")}
    assert stream.description()["groups"] == {"light": ["day", "night"]}
    test = stream.test(0)  # d, in rows 3 and 7
    assert test.extras[GROUP + "light"].tolist() == [1, 1]
    assert test.extras[ACCEPTED].tolist() == [[-1, 0], [2, -1]], "a is no class of the stream, d slot 0, b slot 2"
    assert stream[0].train.extras == {}
    plain = tmp_path / "plain.npz"
    np.savez(plain, **arrays())
    without = class_incremental("npz", path=plain, order=["d", "c", "b"], classes=["b", "c", "d"])
    assert without.fingerprint != stream.fingerprint and "groups" not in without.description()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_group_light": np.array(["day"] * 7)}, "group_light is .* of shape .7,.; it must have a text"),
        ({"test_accepted": np.zeros(8, int)}, "accepted is int64 of shape .8,.; it must be whole numbers, a row"),
        ({"test_accepted": np.full((8, 1), 4)}, "accepted has labels from 4 to 4; they are of 0 to 3"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, changes, words):
    np.savez(tmp_path / "bad.npz", **arrays(**changes))
    with pytest.raises(DataError, match=words):
        load_dataset("npz", tmp_path, path="bad.npz")


def test_a_table_beside_the_folders_names_groups_and_accepted_classes(image_folder, tmp_path):
    lines = [
        "image,source,accepted",
        "test/cat/1.png,phone,cat;ant",
        "test/ant/0.png,camera,",
        "test/cat/0.png,phone,cat",
    ]
    (image_folder / "test.csv").write_text("\n".join(lines))
    data = load_dataset("folder", tmp_path, path=image_folder, size=8)
    assert data.groups == {"source": ("camera", "phone")}
    assert data.test.extras[GROUP + "source"].tolist() == [0, 1, 1]
    assert data.test.extras[ACCEPTED].tolist() == [[-1, -1], [1, -1], [1, 0]]
    for broken, words in (
        (lines[:-1], "has no row for .*cat/0.png"),
        ([*lines, lines[1]], "names test/cat/1.png in line 2 and in line 5"),
        ([lines[0], "test/cat/1.png,phone,dog", *lines[2:]], "line 2 accepts 'dog', which is no class"),
    ):
        (image_folder / "test.csv").write_text("\n".join(broken))
        with pytest.raises(DataError, match=words):
            load_dataset("folder", tmp_path, path=image_folder, size=8)


def test_groups_and_accepted_classes_are_counted_by_hand():
    groups = {"light": ("day", "night", "dusk")}
    counts = ColumnCounts(groups)
    light = torch.tensor([0] * 10 + [1] * 10 + [2])
    right = torch.tensor([True] * 9 + [False] + [True] * 6 + [False] * 4 + [False])
    accepted = torch.tensor([[0, 1]] * 10 + [[5, -1]] * 10 + [[-1, -1]])  # class 5 was not seen
    best = torch.tensor([0, 1, 2] * 7)
    counts.add({GROUP + "light": light, ACCEPTED: accepted}, best, right, num_classes=3)
    rows = [counts.counts()]
    found = group_scores(rows, groups)["light"]
    assert found["accuracy"] == [[90.0, 60.0, 0.0]] and found["count"] == [10, 10, 1]
    assert (found["worst"], found["worst_accuracy"], found["disparity"]) == (["night"], [60.0], [30.0])
    assert found["unranked"] == ["dusk"], "fewer than ten images"
    assert accepted_scores(rows) == {"accuracy_curve": [70.0], "last_accuracy": 70.0, "counted": [10]}
    assert accepted_scores([{}]) is None


def test_a_run_tells_groups_and_accepted_classes_and_its_report_shows_them(tmp_path, make_dataset):
    from dataclasses import replace

    data = make_dataset([4] * 4, [10] * 4)
    slots = data.test.slots
    test, groups = with_columns(
        data.test, {"half": ["low" if slot < 2 else "high" for slot in slots.tolist()]}, slots[:, None]
    )
    stream = class_incremental(replace(data, test=test, groups=groups), increment=2, order="natural")
    options = {"device": "cpu", "progress": False, "root": tmp_path, "epochs": 1}
    record = train("finetune", stream, "smallconv", Budget(), **options)
    results = record.results
    assert results["accepted"]["accuracy_curve"] == results["accuracy_curve"], "where only its own class is accepted"
    half = results["groups"]["half"]
    assert half["names"] == ["high", "low"] and half["count"] == [20, 20]
    assert half["accuracy"][1] == [results["accuracy_matrix"][1][1], results["accuracy_matrix"][1][0]]
    assert half["accuracy"][0] == [None, results["accuracy_curve"][0]]
    assert half["worst"][0] == "low", "no class of the other was seen"
    assert min(half["accuracy"][1]) == half["worst_accuracy"][1]
    assert "By half" in to_text(table([record]), 200)
    lines = list(COMMANDS.result_lines(record))
    assert lines[2].startswith(f"  by half: worst {half['worst'][1]} ") and "several accepted classes" in lines[3]


def test_side_data_have_a_row_for_each_image():
    from cil.errors import ShapeError

    with pytest.raises(ShapeError, match="2 images but 3 rows of light"):
        Samples.from_arrays(torch.zeros(2, 1, 1, 1).byte(), torch.zeros(2)).with_extras({"light": torch.zeros(3)})
