"""The table of one pool of data sets in both orders: differences by image, class and set on shared seeds."""

import pytest

from cil.kinds.classes.set_order import in_turn, sets_met, share_of_pairs
from cil.report import table, to_text

MIXED, BY_SET = ["a", "b", "b", "a"], ["a", "a", "b", "b"]


def averages(image, by_class, by_set):
    return {"averages": {"by_image": [90.0, image], "by_class": [90.0, by_class], "by_set": [90.0, by_set], "sets": {}}}


def left(run, origins, seed, scores, strategy="icarl"):
    changes = {"pool": "one", "origins": origins, "fingerprint": "".join(origins) * 16}
    return run(
        strategy, seed, stream_changes=changes, results=averages(*scores), name=f"{''.join(origins)}-{strategy}{seed}"
    )


def test_differences_are_of_shared_seeds_with_their_interval(run):
    records = [left(run, BY_SET, seed, (50 + seed, 60, 70)) for seed in range(3)]
    records += [left(run, MIXED, seed, (50 + 2 * seed, 57, 71)) for seed in range(3)]
    records.append(left(run, MIXED, 0, (40, 40, 40), "wa"))  # in one order alone
    section = table(records).sections[-1]
    assert [row.label for row in section.rows] == ["icarl"]
    cells = section.grid.lines[0].cells
    assert cells["Δ image"] == "+1.00 ± 2.48", "differences 0, 1, 2"
    assert (cells["Δ class"], cells["Δ set"]) == ("-3.00 ± 0.00", "+1.00 ± 0.00")
    assert section.content["rows"][0]["last_mixed_image"] == pytest.approx(52)
    assert section.facts["mixed"].startswith("2.00 data sets an experience; 0.0 % of the pairs")
    assert "classes mixed, against one data set after the other" in to_text(table(records), 200)


def test_runs_of_one_order_or_of_no_pool_have_no_such_table(run):
    records = [left(run, BY_SET, 0, (50, 60, 70)), run("icarl", 1)]
    assert all("classes mixed" not in section.title for section in table(records).sections)


def test_sets_of_unlike_numbers_of_classes_come_in_turn_also_where_an_experience_has_two_of_them():
    slots = [[0, 1], [2, 3], [4]]
    assert in_turn({"new_slots": slots, "origins": ["a", "a", "a", "b", "b"]})
    assert not in_turn({"new_slots": slots, "origins": ["a", "a", "b", "b", "a"]})


def test_an_order_by_set_whose_experiences_meet_two_sets_has_its_table(run):
    records = [left(run, ["a", "b", "b", "b"], 0, (50, 60, 70)), left(run, ["b", "a", "b", "b"], 0, (40, 50, 60))]
    assert "classes mixed, against one data set after the other" in table(records).sections[-1].title


def test_how_mixed_an_experience_is():
    stream = {"new_slots": [[0, 1, 2], [3]], "origins": ["a", "a", "b", "b"]}
    assert sets_met(stream) == [2, 1]
    assert share_of_pairs(stream) == pytest.approx(1 / 3)
    assert share_of_pairs({"new_slots": [[0], [1]], "origins": ["a", "b"]}) is None
