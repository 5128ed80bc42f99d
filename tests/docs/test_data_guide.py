"""The examples of the guide on data that need images on disk, run on small ones."""

import numpy as np
import pytest
from in_process import run_command
from markdown_pages import ROOT, blocks
from PIL import Image
from test_docs import shortened

BLOCKS = {b.reason: b for b in blocks() if b.path == ROOT / "docs" / "guides" / "data.md" and b.reason}


def leave_folder(where):
    for number, name in enumerate(("ant", "cat", "dog")):
        for split, count in (("train", 4), ("test", 2)):
            for place in range(count):
                file = where / split / name / f"{place}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (70, 70), (60 * number, place, len(split))).save(file)


def leave_arrays(where):
    where.mkdir()
    for first, split in enumerate(("train", "test")):
        images = np.full((8, 8, 8, 1), first, np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None] * 20
        np.savez(where / f"{split}.npz", images=images, labels=np.arange(8) % 4)


@pytest.mark.parametrize(
    ("reason", "leave"),
    [("needs a folder of images", leave_folder), ("needs a folder of arrays", leave_arrays)],
)
def test_commands_on_ones_own_images_run(reason, leave, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leave(tmp_path / "DIR")
    for words in BLOCKS[reason].commands:
        small = [word for word in shortened(words[1:]) if not word.startswith(("stream.train_per", "stream.test_per"))]
        code = run_command([*small, f"data_root={tmp_path}", *(["model=smallconv"] if words[1] == "run" else [])])
        assert code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


def test_a_benchmark_that_is_not_there_says_what_goes_where(tmp_path, capsys):
    (words,) = BLOCKS["needs the data set"].commands
    assert run_command([*words[1:], f"data_root={tmp_path}"]) == 2
    assert "put there train/CLASS/* and test/CLASS/* (200 classes, 9,430 and 2,358 images" in capsys.readouterr().err
