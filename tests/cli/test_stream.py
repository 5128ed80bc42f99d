"""``cil stream``: what is wrong with a manifest, and what is in it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

MANIFEST = """
version: 1
stream: {{name: mine, description: Two of mine., image_size: 8, final_year_from: 2015}}
task_defaults:
  domain: object
  kind: multiclass
  license: {{name: mine, redistributable: true}}
tasks:
  - {{id: pets, dataset: pets, year: 2010, classes: [cat, dog], source: {{type: npz, file: {file}}}}}
  - {{id: birds, dataset: birds, year: 2005, classes: 3, train_examples: 70,
     source: {{type: imagefolder, root: birds}}}}
  - {{id: pets-again, dataset: pets, year: 2020, classes: [cat, dog], source: {{type: npz, file: {file}}}}}
"""
HOUSE = """
  - id: house
    dataset: house
    year: 2021
    classes: 10
    license: {name: ask first, redistributable: false}
    source: {type: torchvision, name: SVHN, train: {split: train}, test: {split: test}}
    splits: {rule: T}
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with the pets, but no birds; the manifest in the folder of the test."""
    data = tmp_path / "data"
    data.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4)).astype(np.uint8)
    np.savez(data / "pets.npz", images=images, labels=np.arange(50) % 2)
    monkeypatch.setenv("CIL_DATA", str(data))
    (tmp_path / "mine.yaml").write_text(MANIFEST.format(file="pets.npz"))
    return data


def test_the_structure_alone_is_the_default(cil, root):
    for flags in ([], ["--offline"]):
        said = cil("stream", "validate", "mine.yaml", *flags)
        assert (said.code, said.err) == (0, "")
        assert said.out == "mine.yaml: 3 tasks, 0 errors, 0 warnings; structure only (--data opens the sources)\n"
    assert not (root.parent / "mine.lock.json").exists()


def test_every_error_has_a_line_with_task_and_place(cil, root):
    text = MANIFEST.format(file="/pets.npz").replace("year: 2005", "year: 205").replace("imagefolder", "folder")
    (root.parent / "mine.yaml").write_text(text)
    said = cil("stream", "validate", "mine.yaml", "--data")
    assert said.code == 1
    lines = said.out.splitlines()
    places = [line.split(": ")[:2] for line in lines[:-1]]
    assert places == [
        ["error    pets", "source.file"], ["error    birds", "year"], ["error    birds", "source.type"],
        ["error    pets-again", "source.file"],
    ]  # fmt: skip
    assert lines[-1].startswith("mine.yaml: no manifest, 4 errors")


def test_data_are_opened_locked_and_compared(cil, root):
    lock = root.parent / "mine.lock.json"
    said = cil("stream", "validate", "mine.yaml", "--data")
    assert said.code == 1
    assert f"error    birds: source: {root / 'birds'} does not exist; put CLASS/* there" in said.out
    assert "1 error, 0 warnings; data of 2 opened" in said.out and "lock written: mine.lock.json" in said.out
    assert lock.is_file()

    again = cil("stream", "validate", "mine.yaml", "--data", "--ids", "pets,pets-again")
    assert again.code == 0 and again.out == "mine.yaml: 2 tasks, 0 errors, 0 warnings; data of 2 opened\n"

    before = lock.read_bytes()
    images = np.random.default_rng(1).integers(0, 256, (50, 4, 4)).astype(np.uint8)
    np.savez(root / "pets.npz", images=images, labels=np.arange(50) % 2)
    changed = cil("stream", "validate", "mine.yaml", "--data", "--ids", "pets")
    assert changed.code == 1 and "error    pets: lock.sha256: it was" in changed.out and lock.read_bytes() == before
    relocked = cil("stream", "validate", "mine.yaml", "--data", "--ids=pets,pets-again", "--relock")
    assert relocked.code == 0 and lock.read_bytes() != before


def test_a_lock_may_lie_elsewhere_and_shipped_ones_in_the_data_root(cil, root):
    cil("stream", "validate", "mine.yaml", "--data", "--lock", "locks/own.json")
    assert (root.parent / "locks" / "own.json").is_file() and not (root.parent / "mine.lock.json").exists()
    said = cil("stream", "validate", "embedded_tasks", "--data", "--ids", "dot-count", "--relock", "--root", str(root))
    assert said.code == 0 and (root / "locks" / "embedded_tasks.lock.json").is_file()


def test_a_licence_is_accepted_for_one_call(cil, root):
    (root.parent / "mine.yaml").write_text(MANIFEST.format(file="pets.npz") + HOUSE)
    ids = ["--ids", "house"]
    assert "warning  house: license.accept" in cil("stream", "validate", "mine.yaml", *ids).out
    refused = cil("stream", "validate", "mine.yaml", "--data", *ids)
    assert (
        "error    house: license.accept: SVHN is not in" in refused.out and "warning" not in refused.out.split("\n")[0]
    )
    accepted = cil("stream", "validate", "mine.yaml", "--data", "--offline", "--accept", "house", *ids)
    assert "error    house: source: SVHN is not in" in accepted.out and "offline was asked for" in accepted.out
    assert (
        "no task 'hous'; did you mean 'house'" in cil("stream", "validate", "mine.yaml", "--data", "--accept=hous").line
    )


def test_show_is_a_table_in_the_order_of_the_stream(cil, root):
    before = cil("stream", "show", "mine.yaml")
    assert before.code == 0
    lines = before.out.splitlines()
    assert lines[0] == "mine: Two of mine."
    assert lines[1].startswith("3 tasks from 2005 to 2020, 2 data sets, 1 repeat, 0 multilabel; images 8 pixels")
    assert [" ".join(line.split()) for line in lines if re.match(r" +\d", line)] == [
        "1 2005 birds object multiclass 3 ~70 - - - imagefolder",
        "2 2010 pets object multiclass 2 - - - - npz",
        "3 2020 pets-again object multiclass 2 - - - - npz repeat of pets, final",
    ]
    cil("stream", "validate", "mine.yaml", "--data")
    after = cil("stream", "show", "mine.yaml").out.splitlines()
    counts = next(line.split()[6:10] for line in after if " pets " in line)
    assert counts == ["28", "6", "6", "10"]  # rule A of 25 + 25


def test_show_knows_the_shipped_manifests(cil, root):
    embedded = cil("stream", "show", "embedded_tasks").out
    assert "12 tasks from 1990 to 2021, 11 data sets, 1 repeat, 2 multilabel" in embedded
    assert re.search(r"11 +2019 +digits-again .* 1005 +217 +215 +360 .*repeat of digits, final", embedded)
    tiny = cil("stream", "show", "nevis22", "--variant", "tiny").out
    assert "7 tasks from 2004 to 2020, 6 data sets" in tiny
    assert max(map(len, embedded.splitlines())) <= 132


MISTAKES = {
    "no action": ([], "cil stream has no action ''; known: show, validate"),
    "another action": (["check"], "cil stream has no action 'check'"),
    "no manifest": (["show"], "cil stream show takes one manifest, given 0"),
    "another stream": (
        ["show", "split_imagenet_r"],
        "and no manifest: cil show stream=split_imagenet_r",
    ),
    "an unknown manifest": (["validate", "embedded"], "did you mean 'embedded_tasks'"),
    "an unknown option": (["validate", "mine.yaml", "--dat"], "no option '--dat'"),
    "an unknown variant": (["show", "nevis22", "--variant", "tini"], "no variant 'tini'; did you mean 'tiny'"),
    "an unknown task": (["show", "mine.yaml", "--ids", "pet"], "filter ids has 'pet'; did you mean 'pets'"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(cil, root, what):
    arguments, message = MISTAKES[what]
    said = cil("stream", *arguments)
    assert said.code == 2 and message in said.line


def test_help_of_the_command_imports_nothing_heavy():
    code = (
        "import sys; from cil.cli.main import main; main(['stream', '--help']);"
        "print([name for name in ('torch', 'numpy', 'omegaconf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "cil stream validate FILE" in done.stdout
