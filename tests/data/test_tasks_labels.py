"""Labels of a source become class numbers or rows of 0 and 1, by the transformations of a task."""

import numpy as np
import pytest

from cil.data.tasks import ExampleTable, label_examples
from cil.data.tasks.examples import FileImages, in_memory
from cil.errors import DataError


def table(labels, names=None, **columns):
    columns = {name: np.array(values) for name, values in columns.items()}
    labels = labels if isinstance(labels, list) and isinstance(labels[0], tuple) else np.array(labels)
    return ExampleTable(in_memory(np.zeros((len(labels), 2, 2), np.uint8)), labels, columns, names)


def multiclass(labels, classes, names=None, columns=None, **transform):
    found = label_examples(table(labels, names, **(columns or {})), "multiclass", classes, transform)
    return found.rows.tolist(), found.labels.tolist(), found.names


def multilabel(labels, classes, names=None, **transform):
    found = label_examples(table(labels, names), "multilabel", classes, transform)
    return found.labels.tolist(), found.names


def test_whole_numbers_are_class_numbers():
    assert multiclass([2, 0, 2], 3) == ([0, 1, 2], [2, 0, 2], ("0", "1", "2"))  # class 1 is empty, not gone
    assert multiclass([1, 0], 2, names=("cat", "dog"))[2] == ("cat", "dog")
    assert multiclass([1, 0], ["Katze", "Hund"], names=("cat", "dog"))[2] == ("Katze", "Hund")


def test_names_are_sorted_unless_they_are_listed():
    assert multiclass(["b", "a", "b"], 2) == ([0, 1, 2], [1, 0, 1], ("a", "b"))
    assert multiclass(["b", "a", "b"], ["b", "a"]) == ([0, 1, 2], [0, 1, 0], ("b", "a"))
    assert multiclass(["10", "9", "9"], 2)[1:] == ([1, 0, 0], ("9", "10"))  # numerals by value


def test_a_label_map_merges_renames_and_drops():
    found = multiclass(["cat", "dog", "wolf", "tree"], ["cat", "dog"], label_map={"wolf": "dog", "tree": None})
    assert found == ([0, 1, 2], [0, 1, 1], ("cat", "dog"))
    assert multiclass([3, 5, 9], 2, label_map={3: 0, 5: 1, 9: None}) == ([0, 1], [0, 1], ("0", "1"))
    with pytest.raises(DataError, match="label_map has 'wulf', no class of the source; did you mean 'wolf'"):
        multiclass(["wolf"], 1, label_map={"wulf": "dog"})


def test_small_classes_go_and_the_others_are_numbered_anew():
    assert multiclass([0, 1, 1, 2, 2, 2], 2, drop_classes_below=2) == ([1, 2, 3, 4, 5], [0, 0, 1, 1, 1], ("1", "2"))
    with pytest.raises(DataError, match="no example is left"):
        multiclass([0, 1], 2, drop_classes_below=2)


def test_buckets_have_equal_mass_or_given_edges():
    values = [5.0, 1.0, 3.0, 2.0, 4.0, 6.0]
    found = multiclass([0] * 6, 3, columns={"count": values}, buckets={"column": "count", "n": 3})
    assert found[1] == [2, 0, 1, 0, 1, 2]
    found = multiclass(values, 2, buckets={"mode": "edges", "edges": [4.0]})
    assert found[1] == [1, 0, 0, 0, 0, 1]  # up to and including the edge
    with pytest.raises(DataError, match=r"transform\.buckets needs numbers, the source has text"):
        multiclass(["a", "b"], 2, buckets={"n": 2})


def test_binarise_compares_with_a_threshold():
    assert multiclass([0.2, 0.7, 0.5], 2, binarise={"threshold": 0.5})[1] == [0, 1, 0]
    votes = np.array([[0.0, 0.3], [1.0, 0.0]])
    assert multilabel(votes, ["old", "new"], binarise={"threshold": 0})[0] == [[0, 1], [1, 0]]


def test_sets_of_names_become_rows():
    sets = [("dog", "cat"), (), ("cat",)]
    assert multilabel(sets, 2) == ([[1, 1], [0, 0], [1, 0]], ("cat", "dog"))
    assert multilabel(sets, ["dog", "cat"])[0] == [[1, 1], [0, 0], [0, 1]]
    mapped = multilabel(sets, 1, names=("cat", "dog"), label_map={"dog": None})
    assert mapped == ([[1], [0], [1]], ("cat",))


def test_boxes_are_cut_out_and_small_ones_go():
    columns = {"l": np.array([0, 2, 1]), "t": np.array([0, 0, 1]), "r": np.array([8, 3, 9]), "b": np.array([8, 9, 9])}
    files = ExampleTable(FileImages(["a", "a", "b"]), np.array([0, 1, 1]), columns)
    found = label_examples(files, "multiclass", 2, {"crop": {"columns": ["l", "t", "r", "b"], "min_side": 4}})
    assert found.rows.tolist() == [0, 2] and found.labels.tolist() == [0, 1]
    assert found.table.images.boxes[2].tolist() == [1, 1, 9, 9]
    with pytest.raises(DataError, match="crop needs image files"):
        multiclass([0, 1], 2, columns=columns, crop={"columns": ["l", "t", "r", "b"]})


BAD = {
    "two labels an example": (([("a", "b")], 2), "is it kind: multilabel"),
    "columns": (([[0, 1]], 2), "labels of shape"),
    "beyond": (([0, 3], 3), "labels go from 0 to 3; classes is 3, so 0 to 2"),
    "from one": (([1, 2], 2), "labels go from 1 to 2"),
    "fractions": (([0.5, 1.5], 2), "numbers with fractions"),
    "fewer names": ((["a", "b"], 3), "classes is 3, the source has 2"),
    "a name that classes lacks": ((["a", "bb"], ["a", "b"]), "the class 'bb', which classes lacks; did you mean 'b'"),
    "an empty label": ((["a", ""], 2), "an example has an empty label"),
    "another number of names": (([0, 1], 2, ("a", "b", "c")), "classes is 2, the source has 3"),
    "another order": (([0, 1], ["b", "a"], ("a", "b")), "in another order than its class numbers"),
}
BAD_SETS = {
    "one label an example": (([0, 1], 2), "need"),
    "counts": ((np.array([[0, 2]]), 2), "must be 0 or 1, one is 2"),
    "more columns": ((np.array([[0, 1, 1]]), 2), "classes is 2, the source has 3"),
    "a name that classes lacks": (([("a", "bb")], ["a", "b"]), "the label 'bb'"),
    "a map of columns": ((np.array([[0, 1]]), 2, None), "label_map is for labels by name"),
}


@pytest.mark.parametrize("what", BAD)
def test_multiclass_labels_must_agree_with_classes(what):
    given, message = BAD[what]
    with pytest.raises(DataError) as caught:
        multiclass(*given)
    assert message in str(caught.value)


@pytest.mark.parametrize("what", BAD_SETS)
def test_multilabel_labels_must_agree_with_classes(what):
    given, message = BAD_SETS[what]
    with pytest.raises(DataError) as caught:
        multilabel(*given, **({"label_map": {"0": "a"}} if what == "a map of columns" else {}))
    assert message in str(caught.value)
