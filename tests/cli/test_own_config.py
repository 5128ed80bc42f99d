"""A folder of configuration files of one's own: every command that composes a configuration sees it."""

import json

import pytest


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "small.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stream: split_digits\n"
        "trainer: {epochs: 1, max_steps: 1}\nprogress: false\nseed: 5\n"
    )
    return folder


def test_own_files_are_read_by_all_commands(own, cil, tmp_path):
    given = ("--config-dir", str(own), "experiment=small")
    assert "seed: 5" in cil("run", *given, "--cfg", "job").out
    assert cil("run", "--dry-run", *given).code == 0
    assert cil("budget", f"--config-dir={own}", "experiment=small", "strategy=finetune").code == 0
    said = cil("run", *given, "strategy=finetune", "run_dir=out", "trainer.threads=1")
    assert said.code == 0, said.err
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["identity"]["seed"] == 5
    assert record["environment"]["command"].startswith(f"cil run --config-dir {own} experiment=small")
    assert "no experiment 'small'" in cil("run", "experiment=small").line  # of that command alone
    assert "give --config-dir yourself" in cil("audit", "out").line  # a record alone names no files that may name code
    assert "the same bits" in cil("audit", "out", "--experience", "0", "--config-dir", str(own)).out


def test_a_folder_that_cannot_be_meant_is_refused(own, cil, tmp_path):
    assert "--config-dir nowhere is no folder" in cil("run", "--config-dir", "nowhere").line
    (tmp_path / "empty").mkdir()
    assert "--config-dir empty has no folder of a group; files go into" in cil("run", "-cd", "empty").line
    assert "--config-dir needs a folder" in cil("run", "--config-dir").line
    (own / "experiment" / "demo.yaml").write_text("seed: 1\n")
    assert "experiment/demo.yaml has the name of a file that is built in" in cil("run", "--config-dir", str(own)).line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "cannot be read as YAML"),
        (b"a: \x00", "cannot be read as YAML"),
        (b"", "has no keys"),
        (b"[1, 2]", "has no keys"),
        (b"seed: 1", "needs the line '# @package _global_'"),
    ],
)
def test_an_own_file_that_says_nothing_is_named(own, cil, content, said):
    path = own / "experiment" / "odd.yaml"
    path.write_bytes(content)
    line = cil("run", "--config-dir", str(own), "experiment=odd").line
    assert f"{path} {said}" in line
