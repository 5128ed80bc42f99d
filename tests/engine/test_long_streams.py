"""The cost of a boundary does not grow with the number of boundaries before it."""

from __future__ import annotations

import pytest
from toys import Interrupt, Rehearse, small_run, small_stream

from cil.engine import work
from cil.tracking import Record

EXPERIENCES, ALWAYS = 8, 3


@pytest.fixture(scope="module")
def rarely(tmp_path_factory):
    """A long stream, of which the whole results are written at the first boundaries and at the end; and how often."""
    saved: list[int] = []
    update = Record.update

    def counted(record, results):
        saved.append(len(results.get("ledger", ())))
        update(record, results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "ALWAYS_SETTLED", ALWAYS)
        patch.setattr(work, "SETTLING", 1e-9)
        patch.setattr(Record, "update", counted)
        record = _run(tmp_path_factory.mktemp("rarely") / "run").execute()
    return record, [count for count in saved if count]


def _run(folder, **options):
    stream = small_stream(EXPERIENCES, classes=1, train=2, test=2)
    return small_run(Rehearse, folder, stream, **options)


def _without_seconds(results):
    return {name: value for name, value in results.items() if name != "seconds"}


def test_whole_results_are_written_seldom_and_are_the_same(rarely, tmp_path):
    record, saved = rarely
    assert saved == [1, 2, 3, EXPERIENCES]
    always = _run(tmp_path / "always").execute()
    assert _without_seconds(always.results) == _without_seconds(record.results)
    assert Record.load(record.directory).results == record.results


def test_a_boundary_writes_what_it_counted_and_nothing_of_those_before(rarely):
    folder = rarely[0].directory
    parts = [(folder / f"arrays/boundary-{i:03d}.safetensors").stat().st_size for i in range(EXPERIENCES)]
    counted = [(folder / f"checkpoint/evaluation-{i:03d}.safetensors").stat().st_size for i in range(EXPERIENCES)]
    for sizes in (parts, counted):  # the last one has sample images
        for index, size in enumerate(sizes[:-1]):
            tested = 2 * (index + 1)  # images: a cell each at most, of three small numbers; and the header of the file
            assert size - sizes[0] <= 12 * (tested - 1) + 32
    lines = (folder / "arrays/index.jsonl").read_bytes().splitlines()
    assert len(lines) == EXPERIENCES and len(set(map(len, lines[:-1]))) == 1


def test_what_the_log_says_at_a_boundary_is_what_all_rows_together_say(rarely):
    record = rarely[0]
    said = [line["values"] for line in record.lines() if line["kind"] == "boundary"]
    results = record.results
    curve = results["accuracy_curve"]
    assert [one["accuracy"] for one in said] == curve
    assert [one["average_incremental_accuracy"] for one in said] == [
        pytest.approx(sum(curve[: count + 1]) / (count + 1)) for count in range(EXPERIENCES)
    ]
    assert said[-1]["average_incremental_accuracy"] == results["average_incremental_accuracy"]
    assert said[-1]["forgetting"] == results["forgetting"]


def test_the_confusions_come_back_dense_and_one_by_one(rarely):
    record = rarely[0]
    arrays = Record.load(record.directory).arrays()
    dense = arrays["confusion"]
    assert dense.shape == (EXPERIENCES, EXPERIENCES, EXPERIENCES)
    assert [one.tolist() for one in arrays.parts("confusion")] == dense.tolist()
    right = [100 * one.trace() / one.sum() for one in dense]
    assert right == pytest.approx(record.results["accuracy_curve"])


def test_an_interrupted_run_has_the_results_of_all_boundaries_and_ends_the_same(rarely, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "ALWAYS_SETTLED", 1)
    monkeypatch.setattr(work, "SETTLING", 1e-9)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", loggers=[Interrupt(3, ("boundary",))]).execute()  # in the fourth
    assert len(Record.load(tmp_path / "cut").results["accuracy_curve"]) == 3
    again = _run(tmp_path / "cut").execute()
    straight = rarely[0]
    assert _without_seconds(again.results) == _without_seconds(straight.results)
    assert (again.arrays()["confusion"] == straight.arrays()["confusion"]).all()
