"""Odd values that reach Hydra, torch or a file reader: one line that names the key, before training; in one process."""

from __future__ import annotations

import pytest
import torch

from cil.models import build_backbone

RUN = ("run", "stream=split_digits", "progress=false", "trainer.max_steps=1", "trainer.epochs=1")
CASES = {  # arguments, or an override of a run: parts of the line
    (*RUN, "stream.augment.flip=true"): "stream.augment is null here: give it as a whole, stream.augment={flip: VALUE}",
    (*RUN, "model.options.width=3"): "model.options is {} here: give it as a whole, model.options={width: VALUE}",
    "strategy=null": "strategy is null; it must be the name of a file",
    "experiment=null": "experiment is null; it must be the name of a file of the group, as experiment=NAME, or left",
    "adapter=null": "as adapter=NAME, or left out; known: bn_stats,",
    "scale=null": "as scale=NAME, or left out; known: paper, quick, small",
    "recipe=null": "as recipe=NAME; known: default, nevis22, survey",
    "model=null": "model is null; it must be the name of a file of the group, as model=NAME; known: ",
    ("compare", "strategy=finetune", "experiment=null"): "experiment is null; it must be",
    "trainer=3": "trainer is 3; it must be the name of a file",
    "logger=null": "logger is null; it must be the name of a file",
    "strategy=../trainer/default": "strategy is ../trainer/default; it must be the name",
    "~strategy": "~strategy takes a group away that a run needs",
    "seed=${foo}": "seed=${foo} names foo, and there is no such key",
    "trainer.first=[1]": "trainer.first is [1]",
    "optimizer._target_=3": "optimizer._target_ is 3; it must be module.Name",
    "optimizer._target_=null": "optimizer._target_ is None; it must be module.Name",
    "stream.builder=null": "stream.builder is null; choose a file",
    (*RUN, "stream.order=[a,b]"): "stream.order has 'a', no class of data set 'digits'",
    "stream.mean=[a]": "stream.mean is ['a']; it must be a list of numbers or null",
    (*RUN, "optimizer=adam", "optimizer.betas=[0.9]"): "optimizer.betas is [0.9]; it must be a list of two numbers",
    (*RUN, "budget=aligned", "budget.to=dynamic"): "strategy dynamic (budget.to) must be told the task",
    ("run", "stream=split_npz", "stream.path=null", "stream.increment=2"): "stream.path is None; it must be text",
    ("run", "stream=blurry_digits", "stream.experiences=1000"): "10 classes are for at most 10",
    ("run", "stream=domain_files", "stream.path=folder.csv"): "folder.csv cannot be read as a table: Is a directory",
    ("run", "stream=domain_files", "stream.path=nul.csv"): "nul.csv line 2 has a NUL character",
    ("run", "stream=domain_files", "stream.path=head.csv"): "head.csv has no rows below its header",
    (*RUN, "--resolve"): "--resolve goes with --cfg",
    (*RUN, "--cfg", "foo"): "--cfg is 'foo'; it must be job, hydra or all",
    ("compare", *RUN[1:], "job=1"): "unknown key job; did you mean 'jobs'?",
    ("compare", *RUN[1:], "out=head.csv"): "out=head.csv is a file",
    ("compare", *RUN[1:], "out=head.csv/deep/x"): "out=head.csv/deep/x lies below head.csv, which is a file",
    ("sweep", *RUN[1:], "strategy=glob(zzz*)"): "strategy=glob(zzz*) is not known here; list the values",
    (
        "tune",
        *RUN[1:2],
        "tune.space={optimizer.lr:{uniform:[0.1,inf]}}",
    ): "tune.space.optimizer.lr is uniform: [0.1, inf]",
    ("stream", "validate", "bomb.yaml"): "with its aliases written out it has 4,4",
    ("stream", "validate", "self.yaml"): "an alias names itself",
    "model.weights=nan.pth": "nan.pth does not fit SmallConvNet: not finite stages.0.0.weight",
    "model.weights=complex.pth": "of another type stages.0.0.weight complex64 in place of float32",
    "model.weights=int.pth": "of another type stages.0.0.weight int8 in place of float32",
    "model.weights=empty.pth": "empty.pth is not a safetensors file or a torch file of plain tensors: it is empty",
    "model.weights=text.pth": "text.pth is not a safetensors file or a torch file of plain tensors: KeyError 101",
    "model.weights=pickled.pth": "it holds pickled objects, which are never read; save its tensors with safetensors",
}


@pytest.fixture
def files(tmp_path):
    """What the cases name."""
    header = b"image,label,domain,split\n"
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "nul.csv").write_bytes(header + b"a\0.png,x,y,train\n")
    (tmp_path / "head.csv").write_bytes(header)
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]")
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    (tmp_path / "self.yaml").write_text("a: &a [*a]\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pth")
    state = build_backbone("smallconv", 1, 8).state_dict()
    for name, change in {
        "nan": lambda tensor: tensor * float("nan"),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "int": lambda tensor: tensor.to(torch.int8),
    }.items():
        changed = {key: change(value) if value.is_floating_point() else value for key, value in state.items()}
        torch.save(changed, tmp_path / f"{name}.pth")


def test_odd_values_are_told_in_one_line(files, cil, tmp_path):
    wrong = {}
    for case, part in CASES.items():
        said = cil(*((*RUN, case) if isinstance(case, str) else case))
        lines = said.err.strip().splitlines()
        if said.code != 2 or len(lines) != 1 or part not in lines[0] or "weights_only" in said.err:
            wrong[case] = (said.code, said.err)
    assert not wrong
    assert not [path for path in tmp_path.rglob("metrics.jsonl") if path.stat().st_size]


def test_keys_that_a_strategy_does_not_read_are_told(cil):
    said = cil(
        "run", "stream=embedded_tasks", "strategy=independent", "trainer.epochs=7", "optimizer.lr=9", "--dry-run"
    )
    assert said.code == 0
    notes = set(said.err.strip().splitlines())
    assert (
        "cil: note: trainer.epochs does nothing with strategy=independent, which has strategy.search.steps in its place"
        in notes
    )
    assert (
        "cil: note: optimizer.lr does nothing with strategy=independent, which has strategy.search.lr in its place"
        in notes
    )


def test_a_working_directory_that_is_gone_is_said(cil, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    said = cil(*RUN)
    assert said.code == 2 and said.line == "cil: the working directory was deleted; change to another folder"
