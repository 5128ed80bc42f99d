"""Which example goes where: exact shares class by class, whole groups, the same rows every time."""

import zlib

import numpy as np
import pytest

from cil.data.tasks import SPLITS, apportion, split_rows
from cil.errors import DataError

LABELS = np.repeat([0, 1, 2], [50, 25, 3])
EMPTY = {}


def parts(**counts):
    return {"part": np.repeat(list(counts), list(counts.values()))}


def by_class(found, labels):
    return [[int((labels[found[name]] == label).sum()) for name in SPLITS] for label in np.unique(labels)]


def disjoint(found):
    rows = np.concatenate(list(found.values()))
    return len(set(rows.tolist())) == len(rows)


@pytest.mark.parametrize(
    ("count", "shares", "wanted"),
    [
        (100, {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.2}, [56, 12, 12, 20]),
        (10, {"train": 0.7, "dev": 0.15, "dev_test": 0.15}, [7, 2, 1]),  # a tie: the earlier one
        (3, {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.2}, [2, 0, 0, 1]),  # 1.68 .36 .36 .6
        (1, {"train": 0.1, "test": 0.9}, [1, 0]),  # at least one in train
        (24, {"train": 16, "dev": 2, "dev_test": 2, "test": 4}, [16, 2, 2, 4]),
        (0, {"train": 0.5, "test": 0.5}, [0, 0]),
    ],
)
def test_largest_remainders_make_whole_numbers(count, shares, wanted):
    assert list(apportion(count, shares).values()) == wanted


def test_no_official_part_gives_56_12_12_20_percent_of_each_class():
    found = split_rows({"rule": "A"}, "any", LABELS, EMPTY)
    assert by_class(found, LABELS) == [[28, 6, 6, 10], [14, 3, 3, 5], [2, 0, 0, 1]]
    assert disjoint(found) and sum(map(len, found.values())) == len(LABELS)


def test_an_official_test_part_is_kept_and_the_training_part_cut():
    labels = np.array([0] * 20 + [1] * 40 + [0] * 5 + [1] * 5)
    found = split_rows({"rule": "T"}, "any", labels, parts(train=60, test=10))
    assert by_class(found, labels) == [[14, 3, 3, 5], [28, 6, 6, 5]]
    assert found["test"].tolist() == list(range(60, 70))


def test_official_validation_data_become_dev_test():
    labels = np.array([0, 1] * 10)
    found = split_rows({"rule": "V"}, "any", labels, parts(train=10, val=6, test=4))
    assert by_class(found, labels) == [[4, 1, 3, 2], [4, 1, 3, 2]]
    assert found["dev_test"].tolist() == list(range(10, 16)) and found["test"].tolist() == list(range(16, 20))


def test_multilabel_examples_are_cut_as_a_whole():
    labels = np.zeros((100, 3), np.int64)
    labels[:10] = 1
    assert [len(rows) for rows in split_rows({"rule": "A"}, "any", labels, EMPTY).values()] == [56, 12, 12, 20]


def test_the_rows_depend_on_seed_and_key_alone():
    def rows(dataset="a", seed=0):
        return {
            name: own.tolist() for name, own in split_rows({"rule": "A", "seed": seed}, dataset, LABELS, {}).items()
        }

    assert rows() == rows()
    assert rows() != rows(seed=1) != rows(dataset="b")


def test_the_draw_is_the_published_one():
    """Generator(PCG64(seed, crc32(dataset))), class by class: here by hand."""
    draw = np.random.Generator(np.random.PCG64([5, zlib.crc32(b"digits")]))
    first, second = draw.permutation(10), 10 + draw.permutation(10)
    found = split_rows({"rule": "T", "seed": 5}, "digits", np.repeat([0, 1, 0], [10, 10, 2]), parts(train=20, test=2))
    assert found["train"].tolist() == sorted([*first[:7], *second[:7]])
    assert found["dev"].tolist() == sorted([*first[7:9], *second[7:9]])
    assert found["dev_test"].tolist() == sorted([first[9], second[9]])


def test_as_the_reference_code_draws_every_example_or_cuts_by_index():
    labels = np.zeros(2000, np.int64)
    drawn = split_rows({"rule": "A", "compat": "nevis"}, "any", labels, EMPTY)
    counts = np.array([len(own) for own in drawn.values()])
    assert disjoint(drawn) and counts.sum() == 2000
    assert (abs(counts - [1120, 240, 240, 400]) < 100).all() and counts.tolist() != [1120, 240, 240, 400]
    rule = {"rule": "T", "compat": "nevis", "catalogue": True}
    cut = split_rows(rule, "any", np.zeros(110, np.int64), parts(train=105, test=5))
    edges = [(own[0], own[-1] + 1) for own in (cut[name] for name in SPLITS)]
    assert edges == [(0, 73), (73, 88), (88, 105), (105, 110)]  # int(0.7 * 105) = 73, int(0.15 * 105) = 15


def test_a_column_names_the_split_or_values_for_it():
    column = np.array(["train", "test", "dev", "train", "spare"])
    found = split_rows({"rule": "X", "by": "column"}, "any", np.zeros(5, int), {"split": column})
    assert {name: own.tolist() for name, own in found.items()} == {
        "train": [0, 3], "dev": [2], "dev_test": [], "test": [1]
    }  # fmt: skip
    rule = {"rule": "X", "by": "column", "column": "pose", "values": {"test": [3], "train": [1, 2]}}
    found = split_rows(rule, "any", np.zeros(5, int), {"pose": np.array([1, 2, 3, 1, 4])})
    assert found["train"].tolist() == [0, 1, 3] and found["test"].tolist() == [2]


def test_a_column_of_domains_is_divided_domain_by_domain():
    domain = np.repeat(["photo", "sketch"], [20, 10])
    rule = {"rule": "X", "by": "column", "column": "domain",
            "shares": {"photo": {"train": 0.8, "dev": 0.2}, "sketch": {"dev_test": 0.5, "test": 0.5}}}  # fmt: skip
    found = split_rows(rule, "any", np.zeros(30, int), {"domain": domain})
    assert [len(own) for own in found.values()] == [16, 4, 5, 5]
    assert set(domain[found["train"]]) == set(domain[found["dev"]]) == {"photo"}
    assert set(domain[found["dev_test"]]) == set(domain[found["test"]]) == {"sketch"}


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole(seed):
    people = np.random.default_rng(seed).integers(0, 24, 500)
    rule = {"rule": "X", "by": "group", "column": "who", "seed": seed,
            "shares": {"train": 16, "dev": 2, "dev_test": 2, "test": 4}}  # fmt: skip
    found = split_rows(rule, "any", np.zeros(500, int), {"who": people})
    groups = [set(people[own]) for own in found.values()]
    assert [len(own) for own in groups] == [16, 2, 2, 4]
    assert len(set.union(*groups)) == 24  # so none is shared
    assert sum(map(len, found.values())) == 500


def test_listed_groups_lists_and_ranges():
    rule = {"rule": "X", "by": "group", "column": "who", "groups": {"train": ["ann"], "test": ["bob"]}}
    found = split_rows(rule, "any", np.zeros(4, int), {"who": np.array(["ann", "bob", "cem", "ann"])})
    assert found["train"].tolist() == [0, 3] and found["test"].tolist() == [1]

    names = {"name": np.array(["a.png", "b.png", "c.png"])}
    rule = {"rule": "X", "by": "list", "lists": {"train": [2, "a.png"], "test": "lists/test.txt"}}
    found = split_rows(rule, "any", np.zeros(3, int), names, {"lists/test.txt": ["b.png"]}.get)
    assert found["train"].tolist() == [0, 2] and found["test"].tolist() == [1]

    rule = {"rule": "X", "by": "index_ranges", "ranges": {"test": [[4, 6]], "train": [[0, 2], [3, 4]]}}
    found = split_rows(rule, "any", np.zeros(6, int), EMPTY)
    assert found["train"].tolist() == [0, 1, 3] and found["test"].tolist() == [4, 5]


BAD = {
    "no such part": ({"rule": "V"}, parts(train=3, test=2), "rule V needs a part 'val', the source has: test, train"),
    "no such column": ({"rule": "X", "by": "column", "column": "slit"}, {"split": np.zeros(5)}, "did you mean 'split'"),
    "no such value": (
        {"rule": "X", "by": "column", "values": {"train": ["trian"]}},
        {"split": np.array(["train"] * 5)},
        "no example has the value 'trian' asked for in train",
    ),
    "overlap": (
        {"rule": "X", "by": "list", "lists": {"train": [0, 1], "test": [1, 2]}}, {}, "example 1 is in train and in test"
    ),
    "beyond": ({"rule": "X", "by": "index_ranges", "ranges": {"train": [[0, 6]]}}, {}, "go to 6, the source has 5"),
    "not listed": ({"rule": "X", "by": "list", "lists": {"train": ["x.png"]}}, {}, "has 'x.png', which is no example"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_split_is_said(what):
    rule, columns, message = BAD[what]
    with pytest.raises(DataError) as caught:
        split_rows(rule, "any", np.zeros(5, int), columns)
    assert message in str(caught.value)
