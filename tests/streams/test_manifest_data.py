"""Data of a manifest: what is wrong with them is said task by task, and the lock knows them again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cil.errors import DataError, StreamError
from cil.streams.manifest_data import (
    known_lock,
    lock_path,
    lock_text,
    read_lock,
    sizes_of,
    validate_data,
    write_lock,
)
from cil.streams.manifest_files import read_manifest
from cil.streams.manifest_rules import parse
from cil.streams.task_data import available, load_task, open_task


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)


def manifest_of(*tasks, **stream):
    base = {"year": 2000, "domain": "object", "kind": "multiclass", "license": {"name": "mine"}}
    given = {"version": 1, "stream": {"name": "made", "image_size": 8, **stream},
             "tasks": [{**base, "id": own["dataset"], **own} for own in tasks]}  # fmt: skip
    manifest, problems = parse(given)
    assert manifest is not None, problems
    return manifest


def pets(root, images=None, labels=None, name="pets", **more):
    """A task of 40 examples of 2 classes in an .npz file."""
    images = pictures(40) if images is None else images
    labels = np.arange(len(images)) % 2 if labels is None else labels
    np.savez(root / f"{name}.npz", images=images, labels=labels)
    return {"dataset": name, "classes": 2, "source": {"type": "npz", "file": f"{name}.npz"}} | more


def problems_of(report, level):
    return [(item.task, item.path) for item in report.problems if item.level == level]


# --- what is found ---


def test_sound_data_have_no_problem_and_a_lock(tmp_path):
    report = validate_data(manifest_of(pets(tmp_path)), tmp_path)
    assert report.problems == ()
    entry = report.lock["pets"]  # 20 of each class by rule A: 11.2, 2.4, 2.4 and 4, so 11, 3, 2 and 4
    assert entry["counts"] == {"train": 22, "dev": 6, "dev_test": 4, "test": 8}
    assert entry["classes"]["train"] == [11, 11] and entry["offset"] == 0 and len(entry["sha256"]) == 64
    assert sizes_of(report.lock) == {"pets": 22}


def copies(root, how):
    """An exact copy in train and test."""
    images = pictures(40)
    images[39] = images[0]
    splits = {**by_ranges(RANGES), "duplicates": how}
    return manifest_of(pets(root, images, splits=splits))


@pytest.mark.parametrize(("how", "errors", "warnings"), [("error", 1, 0), ("warn", 0, 1), ("drop", 0, 0)])
def test_exact_copies_across_splits_are_an_error_a_warning_or_dropped(tmp_path, how, errors, warnings):
    manifest = copies(tmp_path, how)
    report = validate_data(manifest, tmp_path)
    assert len(problems_of(report, "error")) == errors and len(problems_of(report, "warning")) == warnings
    assert all((item.task, item.path) == ("pets", "splits.duplicates") for item in report.problems)
    assert "train (row 0) and test (row 39)" in str(report.problems) or how == "drop"
    data = open_task(manifest["pets"], tmp_path)
    assert (0 in data.rows["train"]) == (how != "drop") and 39 in data.rows["test"]
    assert data.dropped == ((0,) if how == "drop" else ())


def test_copies_go_before_splitting_where_asked(tmp_path):
    images = np.concatenate([pictures(20), pictures(20)])
    labels = np.tile(np.arange(20) % 2, 2)
    manifest = manifest_of(pets(tmp_path, images, labels, splits={"deduplicate": True}))
    data = open_task(manifest["pets"], tmp_path)
    assert sorted(np.concatenate(list(data.rows.values())).tolist()) == list(range(20))
    assert data.dropped == tuple(range(20, 40)) and validate_data(manifest, tmp_path).problems == ()


ONE = np.arange(40) % 2
TWO = np.stack([ONE, 1 - ONE], axis=1)
EARLY = np.stack([np.ones(40, int), ONE * (np.arange(40) < 20)], axis=1)  # the second label is in train alone
RANGES = {"train": [[0, 20]], "dev": [[20, 25]], "dev_test": [[25, 30]], "test": [[30, 40]]}
HOLE = {name: spans for name, spans in RANGES.items() if name != "dev_test"}
PATCHY = np.concatenate([TWO[:39], [[0, 0]]])


def by_ranges(ranges):
    return {"rule": "X", "by": "index_ranges", "ranges": ranges}


BAD = {  # what: (labels, what the task says, level, path)
    "labels beyond the classes": (ONE + 1, {}, "error", "classes"),
    "fewer names than classes": (np.where(ONE, "cat", "dog"), {"classes": 3}, "error", "classes"),
    "one label a row, multilabel": (ONE, {"kind": "multilabel"}, "error", "classes"),
    "rows of labels, multiclass": (TWO, {}, "error", "classes"),
    "counts in a multilabel task": (2 * TWO, {"kind": "multilabel"}, "error", "classes"),
    "no file": (ONE, {"source": {"type": "npz", "file": "gone.npz"}}, "error", "source"),
    "no such column": (ONE, {"splits": {"rule": "X", "by": "column", "column": "who"}}, "error", "splits"),
    "an empty split": (ONE, {"splits": by_ranges(HOLE)}, "error", "splits.dev_test"),
    "an empty class": (ONE, {"classes": 3}, "warning", "splits.train"),
    "a label without a positive in test": (
        EARLY, {"kind": "multilabel", "splits": by_ranges(RANGES)}, "warning", "splits.test"
    ),
    "images without a label": (PATCHY, {"kind": "multilabel"}, "warning", "empty_labels"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_the_data_is_said_at_its_place(tmp_path, what):
    labels, said, level, path = BAD[what]
    bad, sound = pets(tmp_path, labels=labels, **said), pets(tmp_path, pictures(40, seed=1), name="sound")
    report = validate_data(manifest_of(bad, sound), tmp_path)
    assert ("pets", path) in problems_of(report, level), report.problems
    assert {item.task for item in report.problems} == {"pets"}  # the others are looked at all the same
    assert set(report.lock) == ({"sound"} if level == "error" else {"pets", "sound"})


def test_what_is_wrong_with_data_keeps_their_repeats_out_of_the_lock(tmp_path):
    bad = pets(tmp_path, classes=3, splits=by_ranges(HOLE))
    report = validate_data(manifest_of(bad, {**bad, "id": "again", "year": 2001}), tmp_path)
    assert set(report.opened) == {"pets", "again"} and report.lock == {}


def test_a_download_without_an_accepted_licence_is_refused(tmp_path):
    source = {"type": "torchvision", "name": "SVHN", "train": {"split": "train"}, "test": {"split": "test"}}
    own = {"dataset": "svhn", "classes": 10, "source": source, "splits": {"rule": "T"},
           "license": {"name": "for research", "redistributable": False}}  # fmt: skip
    (problem,) = validate_data(manifest_of(own), tmp_path).problems
    assert (problem.task, problem.path, problem.level) == ("svhn", "license.accept", "error")
    assert "its licence (for research) is not accepted" in problem.message
    (problem,) = validate_data(manifest_of(own), tmp_path, offline=True, accept=["svhn"]).problems
    assert problem.path == "source" and "may not be downloaded: offline was asked for" in problem.message


def test_without_a_package_the_stream_is_reduced_and_says_so(monkeypatch):
    manifest = read_manifest("embedded_tasks")
    assert available(manifest)[1] == [] or pytest.importorskip("skimage")
    monkeypatch.setattr("cil.streams.task_data.find_spec", lambda name: None if name == "skimage" else object())
    left, notes = available(manifest)
    assert [item.id for item in left] == ["shapes", "shapes-present", "dot-count"]
    assert (
        "scikit-image, by pip install 'cil[samples]'" in notes[0] and "face-or-not, textures, photo-patches" in notes[0]
    )
    assert "reduced to shapes, shapes-present, dot-count" in notes[1]
    assert left.offsets() == {"shapes": 21, "dot-count": 25}  # as in the whole stream
    report = validate_data(manifest)
    assert problems_of(report, "error") == [] and problems_of(report, "warning") == [("", "stream.fallback")] * 2


def test_without_a_fallback_the_package_is_asked_for(monkeypatch):
    manifest = manifest_of({"dataset": "faces", "classes": 2, "source": {"type": "skimage", "generator": "faces"}})
    monkeypatch.setattr("cil.streams.task_data.find_spec", lambda name: None)
    with pytest.raises(StreamError, match=r"faces need a package that is not installed: scikit-image"):
        available(manifest)


# --- samples ---


def test_images_are_cut_to_their_square_resized_and_coloured(tmp_path):
    wide = np.zeros((4, 4, 8), np.uint8)
    wide[:, :, 2:6] = 200  # the central square
    np.savez(tmp_path / "wide.npz", images=wide + np.arange(4, dtype=np.uint8)[:, None, None], labels=[0, 1, 0, 1])
    source = {"type": "npz", "file": "wide.npz"}
    ranges = {name: [[k, k + 1]] for k, name in enumerate(("train", "dev", "dev_test", "test"))}
    splits = {"rule": "X", "by": "index_ranges", "ranges": ranges}
    manifest = manifest_of({"dataset": "wide", "classes": 2, "source": source, "splits": splits})
    samples = load_task(manifest["wide"], tmp_path)
    for row, split in enumerate(samples.values()):
        assert split.shape == (3, 8, 8) and split.slots.tolist() == [row % 2]
        assert (split.pixels == 200 + row).all()
    grey = manifest_of({"dataset": "wide", "classes": 2, "source": source, "splits": splits, "channels": 1})
    assert load_task(grey["wide"], tmp_path)["train"].shape == (1, 8, 8)


def test_multilabel_tasks_have_targets(tmp_path):
    labels = np.array([[0, 1], [1, 0]] * 20)
    manifest = manifest_of(pets(tmp_path, labels=labels, kind="multilabel"))
    samples = load_task(manifest["pets"], tmp_path)
    assert [len(split) for split in samples.values()] == [22, 5, 5, 8]
    for split in samples.values():
        assert split.targets.shape == (len(split), 2) and (split.targets.sum(dim=1) == 1).all()
        assert (split.slots == 0).all()


def test_image_files_are_decoded_ahead_or_when_needed(tmp_path):
    from PIL import Image

    for name in ("ant", "cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for row, image in enumerate(pictures(10, seed=len(name) + ord(name[0]))):
            Image.fromarray(image).save(tmp_path / "pets" / name / f"{row}.png")
    own = {"dataset": "pets", "classes": 2, "source": {"type": "imagefolder", "root": "pets"}}
    now, later = (
        load_task(manifest_of({**own, "preprocess": {"lazy": lazy}})["pets"], tmp_path)["train"]
        for lazy in (False, True)
    )
    assert now.in_memory and not later.in_memory and torch.equal(now.pixels, later.pixels)
    (tmp_path / "pets" / "ant" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^pets: .*3\.png cannot be read as an image"):
        load_task(manifest_of(own)["pets"], tmp_path)


def test_images_that_cannot_be_read_are_named_and_kept_out_of_the_lock(tmp_path):
    from PIL import Image

    for kind in ("cat", "dog"):
        folder = tmp_path / "pets" / kind
        folder.mkdir(parents=True)
        for number, image in enumerate(pictures(20, len(kind))):
            Image.fromarray(image).save(folder / f"{number:02}.png")
    own = {"dataset": "pets", "classes": 2, "source": {"type": "imagefolder", "root": "pets"}}
    (tmp_path / "pets" / "dog" / "05.png").write_text("not a picture")
    report = validate_data(manifest_of({**own, "splits": {"duplicates": "warn"}}), tmp_path)
    (error,) = [problem for problem in report.problems if problem.level == "error"]
    assert "dog/05.png cannot be read as an image" in str(error) and (error.task, error.path) == ("pets", "source")
    assert report.lock == {}


def test_boxes_are_cut_out_of_files(tmp_path):
    from PIL import Image

    canvas = np.zeros((8, 16), np.uint8)
    canvas[:, 8:] = 90
    Image.fromarray(canvas).save(tmp_path / "pair.png")
    rows = ["image,label,l,t,r,b"] + [f"pair.png,{side},{8 * side},0,{8 * side + 8},8" for side in (0, 1)] * 20
    (tmp_path / "boxes.csv").write_text("\n".join([*rows, "pair.png,1,3,0,4,8"]))
    transform = {"crop": {"columns": ["l", "t", "r", "b"], "min_side": 2}}
    own = {"dataset": "boxes", "classes": 2, "source": {"type": "csv", "file": "boxes.csv"}, "transform": transform}
    samples = load_task(manifest_of(own)["boxes"], tmp_path)
    assert sum(map(len, samples.values())) == 40  # the box one pixel wide is gone
    for split in samples.values():
        assert torch.equal(split.pixels, (90 * split.slots.view(-1, 1, 1, 1)).expand(-1, 3, 8, 8).byte())


def test_splits_may_be_listed_in_files(tmp_path):
    (tmp_path / "test.txt").write_text("38\n39\n\n")
    lists = {"train": list(range(30)), "dev": [30, 31], "dev_test": [32], "test": "test.txt"}
    manifest = manifest_of(pets(tmp_path, splits={"rule": "X", "by": "list", "lists": lists}))
    assert open_task(manifest["pets"], tmp_path).rows["test"].tolist() == [38, 39]
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match=r"pets: list file .*test\.txt does not exist \(splits\.lists\)"):
        open_task(manifest["pets"], tmp_path)


def test_repeats_are_byte_identical_and_the_splits_disjoint():
    embedded = read_manifest("embedded_tasks")
    once, again = (load_task(embedded[name]) for name in ("digits", "digits-again"))
    for name, split in once.items():
        assert torch.equal(split.pixels, again[name].pixels) and torch.equal(split.slots, again[name].slots)
    seen = [{row.numpy().tobytes() for row in split.pixels} for split in once.values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 1797


# --- the lock ---


def test_the_lock_is_that_of_the_embedded_stream_as_shipped():
    """Built anew here: counts, classes and class numbers of all twelve tasks, and of digits the pixels too."""
    pytest.importorskip("skimage")
    manifest = read_manifest("embedded_tasks")
    shipped = read_lock(manifest.path.with_name("embedded_tasks.lock.json"))
    report = validate_data(manifest)
    assert report.problems == ()
    for key in ("counts", "classes", "offset"):
        assert {name: own.get(key) for name, own in report.lock.items()} == {
            name: own.get(key) for name, own in shipped.items()
        }
    trained = ("face-or-not", "textures", "photo-patches", "digit-pairs")
    assert [shipped[name]["counts"]["train"] for name in trained] == [112, 180, 320, 600]
    for name in ("digits", "digit-parity", "digits-rot"):
        assert report.lock[name]["sha256"] == shipped[name]["sha256"]
    assert report.lock["digits"] == report.lock["digits-again"]


PROGRAM = """
from cil.streams.manifest_files import read_manifest
from cil.streams.manifest_data import lock_text, validate_data
print(lock_text(validate_data(read_manifest("embedded_tasks").select(ids=["digits", "dot-count"])).lock))
"""


def test_the_lock_is_the_same_in_other_processes_and_with_other_threads():
    environment = {**os.environ, "PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    report = validate_data(read_manifest("embedded_tasks").select(ids=["digits", "dot-count"]))
    assert done.stdout.strip() == lock_text(report.lock).strip()


def test_the_lock_names_what_changed(tmp_path):
    task = pets(tmp_path)
    lock = validate_data(manifest_of(task), tmp_path).lock
    assert validate_data(manifest_of(task), tmp_path, lock=lock).problems == ()

    def after(images=None, labels=None, **changes):
        report = validate_data(manifest_of(pets(tmp_path, images, labels, **changes)), tmp_path, lock=lock)
        assert report.lock == {}  # what differs does not go into a lock
        (problem,) = report.errors
        return problem.path, problem.message

    other = pictures(40)
    other[7, 0, 0, 0] ^= 1
    assert after(other)[0] == "lock.sha256"  # one bit of one pixel
    assert after(splits={"seed": 1})[0] == "lock.sha256"
    path, said = after(pictures(44))
    assert path == "lock.counts" and said.startswith("train was 22, is 24")
    path, said = after(labels=np.array([0] * 22 + [1] * 18))
    assert path in ("lock.counts", "lock.classes")
    before = manifest_of(pets(tmp_path, pictures(40, 1), name="older", year=1990), pets(tmp_path))
    problems = validate_data(before, tmp_path, lock=lock).errors
    assert [(item.task, item.path, item.message[:18]) for item in problems] == [
        ("pets", "lock.offset", "it was 0, is 2; wh")
    ]  # fmt: skip


def test_a_filter_keeps_the_lock(tmp_path):
    whole = manifest_of(pets(tmp_path), pets(tmp_path, pictures(40, 1), name="later", year=2010))
    lock = validate_data(whole, tmp_path).lock
    assert lock["later"]["offset"] == 2
    assert validate_data(whole.select(last=1), tmp_path, lock=lock).problems == ()


def test_locks_are_files_beside_the_manifest_or_in_the_data_root(tmp_path):
    own = tmp_path / "mine.yaml"
    assert lock_path(own) == tmp_path / "mine.lock.json"
    shipped = read_manifest("embedded_tasks").path
    assert lock_path(shipped, tmp_path) == tmp_path / "locks" / "embedded_tasks.lock.json"
    assert set(known_lock(shipped, tmp_path)) == {item.id for item in read_manifest(shipped)}  # what is shipped
    lock = {"b": {"counts": {"train": 1}}, "a": {"sha256": "0"}}
    write_lock(lock_path(shipped, tmp_path), lock)
    assert known_lock(shipped, tmp_path) == lock and list(json.loads(lock_text(lock))["tasks"]) == ["a", "b"]
    assert read_lock(own.with_suffix(".none")) == {}
    for text in ("{}", '{"version": 99, "tasks": {}}', '{"tasks": {"a": 3}}', "[]"):
        lock_path(own).write_text(text)
        with pytest.raises(StreamError, match=r"mine\.lock\.json is no lock file"):
            known_lock(own)
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamError, match="cannot be written"):
        write_lock(tmp_path / "file" / "x.json", lock)
