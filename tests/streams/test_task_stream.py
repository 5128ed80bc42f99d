"""Streams of tasks: heads and slots, order, splits that are evaluated, and what training cannot reach."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from cil.errors import ConfigError, DataError, StreamError
from cil.streams import TaskKey, task_stream
from cil.streams.manifest import Manifest, ManifestTask, StreamInfo
from cil.streams.manifest_data import lock_path, validate_data, write_lock
from cil.streams.manifest_files import to_yaml
from cil.testing import check_stream, toy_run, toy_tasks

SHARED = {"year": 2000, "domain": "other", "license": {"name": "made", "redistributable": True}}


def task(name: str, dataset: str, classes: int, kind: str = "multiclass", **more: object) -> ManifestTask:
    source = {"type": "npz", "file": f"{dataset}.npz"}
    given = SHARED | {"splits": {"rule": "A", "seed": 0}, "preprocess": {"resize": 8, "hflip": False}} | more
    return ManifestTask(id=name, dataset=dataset, kind=kind, classes=classes, source=source, **given)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three data sets of 8 x 8 pixels: two, three, and three labels an image."""
    folder = tmp_path_factory.mktemp("tasks")
    draws = np.random.Generator(np.random.PCG64(0))
    for name, count in (("two", 40), ("three", 60), ("several", 50)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(count) % (2 if name == "two" else 3)
        if name == "several":
            labels = (draws.random((count, 3)) > 0.4).astype(np.int64)
            labels[:, 0] |= labels.sum(1) == 0
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    return folder


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    tasks = (
        task("late", "three", 3, year=2004),
        task("first", "two", 2, preprocess={"resize": 8, "hflip": True}),
        task("labels", "several", 3, "multilabel", year=2002),
        task("again", "two", 2, year=2006, preprocess={"resize": 8, "hflip": True}),
    )
    return Manifest(StreamInfo("made", image_size=8, final_year_from=2004), tasks)


def test_slots_are_given_in_order_of_arrival_and_a_repeat_has_those_that_it_had(manifest, root):
    stream = task_stream(manifest, root=root)
    assert [event.id for event in stream.events] == ["first", "labels", "late", "again"]
    keys = [signature.task for signature in stream.signatures]
    assert keys[0] == keys[3] == TaskKey("two", 0, 2)
    assert keys[1:3] == [TaskKey("several", 2, 3, True, False), TaskKey("three", 5, 3, mirrored=False)]
    assert [s.new_slots for s in stream.signatures] == [(0, 1), (2, 3, 4), (5, 6, 7), ()]
    assert [s.num_classes for s in stream.signatures] == [2, 5, 8, 8]
    assert stream[2].train.counts() == {5: 11, 6: 11, 7: 11}  # 56 % of 20
    assert stream[1].train.targets.shape == (28, 3) and set(stream[1].train.slots.tolist()) == {2}
    assert [event.final for event in stream.events] == [False, False, True, True]
    check_stream(stream)


def test_a_repeat_has_the_same_images_in_the_same_splits(manifest, root):
    stream = task_stream(manifest, root=root, splits=["dev_test", "test"])
    assert torch.equal(stream[0].train.pixels, stream[3].train.pixels)
    assert torch.equal(stream[0].validation.slots, stream[3].validation.slots)
    for split in ("dev_test", "test"):
        assert torch.equal(stream.test(0, split).pixels, stream.test(3, split).pixels)


def test_training_cannot_open_what_is_evaluated(manifest, root):
    half = task_stream(manifest, root=root, splits=["test", "dev_test"]).training_half()
    assert len(half[0].train) and len(half[0].validation)
    for split in (None, "test", "dev_test"):
        with pytest.raises(StreamError, match="no test data"):
            half.test(0, split)


def test_with_offset_the_stream_is_class_incremental_and_numbers_survive_a_filter(manifest, root):
    with pytest.raises(StreamError, match=r"labels may have several; set stream.kinds=\[multiclass\]"):
        task_stream(manifest, root=root, heads="offset")
    whole = task_stream(manifest, root=root, heads="offset", kinds=["multiclass"])
    assert not whole.task_known_at_test and whole.signatures[0].task is None
    assert [s.new_slots for s in whole.signatures] == [(0, 1), (2, 3, 4), ()]
    assert whole.order == (0, 1, 2, 3, 4)
    later = task_stream(manifest, root=root, heads="offset", ids=["late"])
    assert later.signatures[0].new_slots == (0, 1, 2) and later.order == (2, 3, 4)
    check_stream(whole)


def test_with_offset_a_repeat_is_trained_on_again_and_evaluated_once(manifest, root, tmp_path):
    """Four test images of each class: each counts once, also after "two" came again."""
    stream = task_stream(manifest, root=root, heads="offset", kinds=["multiclass"], splits=["test"])
    assert [len(stream.test(index)) for index in range(3)] == [8, 12, 0]
    assert stream[2].validation is None and len(stream[2].train) == len(stream[0].train)
    results = toy_run("finetune", stream, tmp_path).execute().results
    assert results["class_counts"] == [4] * 5
    last = results["accuracy_matrix"][2]
    assert last[2] is None and results["last_accuracy"] == pytest.approx((8 * last[0] + 12 * last[1]) / 20)


def test_mirror_images_are_made_where_a_task_allows_them(manifest, root):
    stream = task_stream(manifest, root=root)
    assert [stream.augment_of(index).flip for index in range(4)] == [True, False, False, True]
    assert not any(task_stream(manifest, root=root, augment={}).augment_of(index).flip for index in range(4))
    together = task_stream(manifest, root=root, heads="offset", kinds=["multiclass"])
    assert not any(together.augment_of(index).flip for index in range(3))
    assert task_stream(manifest, root=root, heads="offset", ids=["first"]).augment.flip


def test_the_fingerprint_sees_order_heads_and_pixels(manifest, root, tmp_path):
    own = task_stream(manifest, root=root).fingerprint
    assert task_stream(manifest, root=root).fingerprint == own
    others = [
        task_stream(manifest, root=root, shuffle="all", order_seed=3).fingerprint,
        task_stream(manifest, root=root, train_per_class=5).fingerprint,
        task_stream(manifest, root=root, ids=["first"]).fingerprint,
    ]
    for name in ("two", "three", "several"):
        held = dict(np.load(root / f"{name}.npz"))
        held["images"][0, 0, 0, 0] ^= 1
        np.savez(tmp_path / f"{name}.npz", **held)
    others.append(task_stream(manifest, root=tmp_path).fingerprint)
    assert len({own, *others}) == 5


def locked(manifest, root):
    """The manifest as a file with its lock beside it."""
    path = root / "made.yaml"
    path.write_text(to_yaml(manifest))
    write_lock(lock_path(path), validate_data(manifest, root).lock)
    return path


def test_a_run_meets_the_data_that_were_validated(manifest, root, tmp_path):
    for name in ("two", "three", "several"):
        shutil.copy(root / f"{name}.npz", tmp_path)
    assert task_stream(manifest, root=root).description()["lock"] is None
    path = locked(manifest, tmp_path)
    whole = task_stream(path, root=tmp_path)
    assert len(whole.description()["lock"]) == 64 != task_stream(path, root=tmp_path, first=2).description()["lock"]
    assert [event.id for event in task_stream(path, root=tmp_path, min_size=25).events] == ["labels", "late"]
    held = dict(np.load(tmp_path / "two.npz"))
    np.savez(tmp_path / "two.npz", **{name: values[:-1] for name, values in held.items()})
    for heads, kinds in (("per_task", None), ("offset", ["multiclass"])):
        with pytest.raises(StreamError, match=r"first: lock.counts: dev was 6, is 5.*validate .*made.yaml --data"):
            task_stream(path, root=tmp_path, heads=heads, kinds=kinds)
    assert len(task_stream(path, root=tmp_path, ids=["late"])) == 1


def test_class_numbers_are_those_that_were_validated(manifest, root, tmp_path):
    for name in ("two", "three", "several"):
        shutil.copy(root / f"{name}.npz", tmp_path)
    path = locked(manifest, tmp_path)
    tasks = [replace(task, year=1999) if task.id == "late" else task for task in manifest]
    path.write_text(to_yaml(Manifest(manifest.stream, tuple(tasks))))
    assert task_stream(path, root=tmp_path).events[0].id == "late"
    with pytest.raises(StreamError, match=r"lock\.offset: it was 0, is 3"):
        task_stream(path, root=tmp_path, heads="offset", kinds=["multiclass"])


def test_a_package_is_asked_for_by_the_tasks_that_are_chosen(monkeypatch, caplog):
    monkeypatch.setattr("cil.streams.task_data.find_spec", lambda name: None if name == "skimage" else object())
    stream = task_stream("embedded_tasks", ids=["digit-parity"])
    assert [event.id for event in stream.events] == ["digit-parity"] and not caplog.records
    reduced = task_stream("embedded_tasks", ids=["textures", "dot-count"])
    assert [event.id for event in reduced.events] == ["dot-count"] and "reduced to dot-count" in caplog.text
    with pytest.raises(StreamError, match="textures need a package"):
        task_stream("embedded_tasks", ids=["textures"])


def test_a_variant_is_the_tasks_that_the_manifest_lists_in_its_years(manifest, root):
    listed = replace(manifest.stream, variants={"short": {"again": None, "first": 2009, "late": 2001}})
    whole = Manifest(listed, manifest.tasks)
    stream = task_stream(whole, variant="short", root=root)
    assert [event.id for event in stream.events] == ["late", "again", "first"]
    assert [event.id for event in task_stream(whole, variant="short", first=1, root=root).events] == ["late"]
    with pytest.raises(ConfigError, match=r"'made' has no variant 'shrot'.*short"):
        task_stream(whole, variant="shrot", root=root)


def test_tasks_whose_data_are_not_there_are_left_out_if_asked_for(manifest, root, tmp_path, caplog):
    gone = Manifest(manifest.stream, (*manifest.tasks, task("gone", "nowhere", 3, year=2003)))
    with pytest.raises(DataError, match="gone"):
        task_stream(gone, root=root)
    stream, plain = task_stream(gone, missing="skip", root=root), task_stream(manifest, root=root)
    assert [event.id for event in stream.events] == [event.id for event in plain.events]
    assert [s.new_slots for s in stream.signatures] == [s.new_slots for s in plain.signatures]
    assert "gone" in caplog.text and "left out, as stream.missing=skip" in caplog.text
    with pytest.raises(StreamError, match=r"no data set of 'made' is there, of 4"):
        task_stream(gone, missing="skip", root=tmp_path)
    with pytest.raises(ConfigError, match=r"stream\.missing is 'ignore'"):
        task_stream(manifest, missing="ignore", root=root)


def test_a_split_without_an_example_is_refused_before_training(manifest, root, tmp_path):
    splits = {"rule": "X", "by": "index_ranges", "ranges": {"train": [[0, 20]], "test": [[20, 40]]}}
    own = Manifest(manifest.stream, (task("gaps", "two", 2, splits=splits),))
    with pytest.raises(StreamError, match="gaps: no example in dev_test"):
        task_stream(own, root=root)
    assert task_stream(own, root=root, splits=["test"])[0].validation is None


def test_caps_take_so_many_of_a_class(manifest, root):
    stream = task_stream(manifest, root=root, train_per_class=4, test_per_class=1)
    assert stream[0].train.counts() == {0: 4, 1: 4} and len(stream[1].train) == 12
    assert stream.test(0).counts() == {0: 1, 1: 1} and len(stream[0].validation) > 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"heads": "shared"}, "stream.heads is 'shared'"),
        ({"splits": ["train"]}, "stream.splits has 'train'"),
        ({"reevaluate": "some"}, "stream.reevaluate is 'some'"),
        ({"reevaluate": "every_0"}, "stream.reevaluate is 'every_0'"),
        ({"heads": "offset", "kinds": ["multiclass"], "splits": ["dev_test", "test"]}, "give one of"),
        ({"augment": {"flipp": True}}, "did you mean 'flip'"),
        ({"shuffle": "some"}, "no shuffle 'some'"),
    ],
)
def test_what_cannot_be_meant_is_refused(manifest, root, given, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        task_stream(manifest, root=root, **given)


def test_the_record_is_told_what_the_tasks_are(manifest, root):
    said = task_stream(manifest, root=root).description()
    assert said["task_known_at_test"] is True and said["heads"] == "per_task" and said["splits"] == ["dev_test"]
    assert said["tasks"][1] | {"counts": None} == {
        "id": "labels", "dataset": "several", "year": 2002, "domain": "other", "kind": "multilabel", "classes": 3,
        "first_slot": 2, "final": False, "counts": None,
    }  # fmt: skip


def test_the_toy_tasks_keep_the_contract_of_streams():
    check_stream(toy_tasks())
