"""Wrong configurations: each is refused before training, in one line that names the key and what it may be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")
RUN = ("run", "stream=split_digits", "progress=false")

BAD = {
    # keys and names
    "unknown key": ((*RUN, "trainer.epoch=3"), "unknown key trainer.epoch", "did you mean 'trainer.epochs'?"),
    "unknown section": ((*RUN, "trainr.epochs=3"), "unknown key trainr.epochs", "'trainer.epochs'"),
    "key without its section": ((*RUN, "epochs=3"), "unknown key epochs", "'trainer.epochs'"),
    "key that was added": ((*RUN, "+trainer.epoch=3"), "unknown key trainer.epoch", "did you mean 'trainer.epochs'?"),
    "unknown hyperparameter": ((*RUN, "strategy.tempratur=2"), "key strategy.tempratur", "'strategy.temperature'"),
    "added hyperparameter": ((*RUN, "+strategy.tempratur=2"), "key strategy.tempratur", "'strategy.temperature'"),
    "unknown strategy": ((*RUN, "strategy=icarll"), "no strategy 'icarll'", "'icarl'"),
    "unknown stream": (("run", "stream=split_digit"), "no stream 'split_digit'", "'split_digits'"),
    "unknown model file": ((*RUN, "model=resnet23"), "no model 'resnet23'", "'resnet26'"),
    "unknown model name": ((*RUN, "model.name=resnet33"), "resnet33", "'resnet32'"),
    "unknown group": ((*RUN, "strateg=wa"), "unknown key strateg", "'strategy'"),
    "unknown experiment": (("run", "experiment=demmo"), "no experiment 'demmo'", "'demo'"),
    "unknown data set": ((*RUN, "stream.dataset=digit"), "digit", "'digits'"),
    "unknown optimizer option": ((*RUN, "+optimizer.momentun=0"), "optimizer.momentun", "'optimizer.momentum'"),
    "own class that is not there": ((*RUN, "strategy=no_module:Mine"), "strategy=no_module:Mine", "cannot be imported"),
    "value without key": ((*RUN, "trainer.epochs"), "'trainer.epochs' is no override", "key=value"),
    "no key": ((*RUN, "=3"), "'=3' names no key", "key=value"),
    "broken list": ((*RUN, "stream.order=[1,2"), "'stream.order=[1,2' is no override", "key=value"),
    "a sweep in one run": ((*RUN, "strategy=wa,icarl"), "strategy=wa,icarl names several values", "cil compare"),
    "unknown option": ((*RUN, "--cfgg"), "no option '--cfgg'", "'--cfg'"),
    "misspelt dry run": ((*RUN, "--dryrun"), "no option '--dryrun'", "'--dry-run'"),
    "a section at once": ((*RUN, "budget.caps={a:1}"), "budget.caps has keys of its own", "as budget.caps.NAME=VALUE"),
    "no value": (
        ("run", "stream=split_npz", "scale=quick"),
        "stream.path has no value",
        "must be given",
    ),
    "key of another logger": ((*RUN, "logger.mode=disabled"), "logger.mode belongs to logger=wandb", "not chosen"),
    "key of another schedule": (
        (*RUN, "scheduler.milestones=[3]"),
        "scheduler.milestones belongs to scheduler=multistep",
        "not chosen",
    ),
    "unknown command": (("rum",), "no command 'rum'", "'run'"),
    # values
    "text for a number": ((*RUN, "trainer.epochs=abc"), "trainer.epochs is 'abc'", "whole number of 1 or more"),
    "no epochs": ((*RUN, "trainer.epochs=0"), "trainer.epochs is 0", "whole number of 1 or more"),
    "half a batch": ((*RUN, "trainer.batch_size=0.5"), "trainer.batch_size is 0.5", "whole number of 1 or more"),
    "no steps": ((*RUN, "trainer.max_steps=0"), "trainer.max_steps is 0", "or null"),
    "first epochs": ((*RUN, "trainer.first.epochs=-1"), "trainer.first.epochs is -1", "whole number of 1 or more"),
    "section for a value": ((*RUN, "trainer.first=3"), "trainer.first is 3", "trainer.first.epochs=..."),
    "unknown precision": ((*RUN, "trainer.precision=fp8"), "trainer.precision is 'fp8'", "'fp32'"),
    "negative learning rate": ((*RUN, "optimizer.lr=-0.1"), "optimizer", "-0.1"),
    "learning rate that is no number": ((*RUN, "optimizer.lr=nan"), "optimizer.lr is nan", "finite"),
    "infinite learning rate": ((*RUN, "optimizer.lr=inf"), "optimizer.lr is inf", "finite"),
    "warm-up that is no number": ((*RUN, "scheduler.warmup_factor=nan"), "scheduler.warmup_factor is nan", "finite"),
    "text for a learning rate": ((*RUN, "optimizer.lr=fast"), "optimizer.lr is 'fast'", "a number"),
    "text for a hyperparameter": ((*RUN, "strategy.temperature=hot"), "strategy.temperature is 'hot'", "a number"),
    "wrong word": ((*RUN, "strategy=wa", "strategy.strength=much"), "strategy.strength", "balanced"),
    "unknown selection": ((*RUN, "strategy.selection=herdin"), "herdin", "'herding'"),
    "unknown codec": ((*RUN, "strategy.codec=jpg"), "jpg", "'jpeg'"),
    "unknown device": ((*RUN, "device=gpu"), "device is 'gpu'", "cuda"),
    "negative seed": ((*RUN, "seed=-1"), "seed is -1", "whole number of 0 or more"),
    "unknown retention": ((*RUN, "checkpoint.keep=first"), "checkpoint.keep is 'first'", "last"),
    "unknown logger": ((*RUN, "logger=wandbb"), "no logger 'wandbb'", "'wandb'"),
    "unknown logger mode": ((*RUN, "logger=wandb", "logger.mode=on"), "logger.mode", "'online'"),
    "order that is no permutation": ((*RUN, "stream.order=[0,0,1]"), "stream.order", "permutation"),
    "too many new classes": ((*RUN, "stream.increment=11"), "stream.increment is 11", "1 to 10"),
    "key that was taken away": ((*RUN, "~trainer.epochs"), "trainer.epochs is missing", "whole number of 1 or more"),
    "no model head": ((*RUN, "model.head=cosin"), "head", "cosine"),
    # values without meaning
    "a rate below zero at the end": ((*RUN, "scheduler.minimum=-1"), "scheduler.minimum is -1", "0 or more"),
    "a rate that rises to the end": ((*RUN, "scheduler.minimum=5"), "scheduler.minimum is 5", "optimizer.lr"),
    "a negative factor": ((*RUN, "scheduler=multistep", "scheduler.gamma=-1"), "scheduler.gamma is -1", "above 0"),
    "a negative milestone": ((*RUN, "scheduler=multistep", "scheduler.milestones=[-1]"), "is [-1]", "above 0"),
    "a milestone of text": ((*RUN, "scheduler=multistep", "scheduler.milestones=[a]"), "is ['a']", "numbers"),
    "a negative warm-up": ((*RUN, "scheduler.warmup=-1"), "scheduler.warmup is -1", "whole number of 0 or more"),
    "no learning rate": ((*RUN, "optimizer.lr=null"), "optimizer.lr is None", "number of 0 or more"),
    "a momentum of two": ((*RUN, "optimizer.momentum=2"), "optimizer.momentum is 2", "below 1"),
    "a norm that is no number": ((*RUN, "trainer.clip_norm=nan"), "trainer.clip_norm is nan", "finite"),
    "more threads than sense": ((*RUN, "trainer.threads=1000"), "trainer.threads is 1000", "cores"),
    "one of several processors": ((*RUN, "device=cpu:7"), "device is 'cpu:7'", "cpu"),
    "a hole larger than the image": ((*RUN, "stream.augment={cutout: 100}"), "stream.augment.cutout is 100", "8"),
    "padding larger than the image": (
        (*RUN, "stream.augment={crop_padding: 1000}"),
        "stream.augment.crop_padding is 1000",
        "8",
    ),
    "experiences without end": (
        ("run", "stream=permuted_digits", "stream.experiences=100000"),
        "stream.experiences is 100000",
        "to 10000",
    ),
    "pictures without end": (("show", "stream=split_digits", "--count", "100000"), "--count is 100000", "at most 500"),
    "batch norm on one image": (
        (*RUN, "model=resnet18", "trainer.batch_size=1"),
        "trainer.batch_size",
        "more than 1 value",
    ),
    # what would be forgotten without a word
    "a list of streams": (("run", "stream=[split_digits,split_mnist5k]"), "stream is [split_digits", "one name"),
    "a list of strategies": ((*RUN, "strategy=[icarl,wa]"), "strategy is [icarl,wa]", "cil compare strategy=a,b"),
    "a key twice": ((*RUN, "strategy=icarl", "strategy=wa"), "strategy is given twice, icarl and wa", "leave one out"),
    "a key of adapters": ((*RUN, "adaptation.batch_size=3"), "adaptation.batch_size is read with an adapter", "tent"),
    "images of no evaluation": ((*RUN, "anytime.images=5"), "anytime.images is 5", "anytime.every"),
    # budgets
    "bytes without a limit": ((*RUN, "budget=bytes"), "budget.limit is missing", "budget.limit=8000000"),
    "a limit without bytes": ((*RUN, "budget.limit=1000"), "budget.limit is 1000", "budget=bytes budget.limit=1000"),
    "a negative limit": ((*RUN, "budget=bytes", "budget.limit=-5"), "budget.limit is -5", "positive whole number"),
    "a limit that nothing fits": ((*RUN, "budget=bytes", "budget.limit=5000"), "budget.limit is 5,000", "parameters"),
    "exemplars without that budget": (
        (*RUN, "budget=none", "budget.exemplars=5"),
        "budget.exemplars is 5, but budget=none",
        "budget=exemplars",
    ),
    "exemplars of a class beside exemplars": (
        (*RUN, "budget.per_class=20"),
        "budget.per_class is 20, but budget=exemplars with budget.exemplars=200, and both count exemplars",
        "say budget=per_class budget.per_class=20",
    ),
    "negative exemplars": ((*RUN, "budget.exemplars=-1"), "budget.exemplars is -1", "whole number of 0 or more"),
    "aligned to a strategy that is not there": ((*RUN, "budget=aligned", "budget.to=dor"), "budget.to=dor", "'der'"),
    "aligned to nothing": ((*RUN, "budget=aligned", "budget.to=null"), "budget.to is missing", "budget.to=der"),
    "aligned to the bound": ((*RUN, "budget=aligned", "budget.to=joint"), "budget.to=joint", "bound"),
    "to without aligned": ((*RUN, "budget.to=der"), "budget.to is der", "budget=aligned budget.to=der"),
    "each without bytes": ((*RUN, "budget.at=each"), "budget.at is each", "bytes or aligned"),
    "each with the final size": ((*RUN, "budget=aligned", "budget.at=each"), "budget.at=each", "budget.reserve=now"),
    "too few limits": (
        (*RUN, "budget=bytes", "budget.at=each", "budget.limit=[90000,90000]"),
        "budget.limit has 2 numbers",
        "5 experiences",
    ),
    "points in one run": ((*RUN, "budget.points=[1,2]"), "budget.points", "cil compare"),
    "unknown convention": ((*RUN, "budget.convention=exakt"), "budget.convention is 'exakt'", "'exact'"),
    "unknown scope": ((*RUN, "budget.scope=incoming"), "budget.scope is 'incoming'", "'carried+incoming'"),
    "each with incoming images": (
        (*RUN, "budget=bytes", "budget.at=each", "budget.limit=[90000,90000]", "budget.scope=carried+incoming"),
        "budget.at=each",
        "budget.scope=carried+incoming needs one",
    ),
    "a further budget below zero": ((*RUN, "budget.caps.energy=-1"), "budget.caps is {'energy': -1}", "above 0"),
    "a further budget that no package brings": ((*RUN, "budget.caps.energy=1"), "budget.caps has no 'energy'", "known"),
    "a further budget of an adapter": (
        ("run", "adapter=tent", "stream=split_digits", "budget.caps.energy=1"),
        "budget.caps.energy=1 with adapter=tent",
        "of strategies alone",
    ),
    "unknown enforcement": ((*RUN, "budget.enforce=stop"), "budget.enforce is 'stop'", "report"),
    # other commands
    "compare: wrong jobs": (("compare", *RUN[1:], "jobs=two"), "jobs is 'two'", "whole number of 1 or more"),
    "compare: one of many is wrong": (("compare", *RUN[1:], "strategy=wa,wap"), "no strategy 'wap'", "'wa'"),
    "compare: a key that not all strategies have": (
        ("compare", *RUN[1:], "strategy=replay,finetune,wa,lwf", "strategy.codec=raw"),
        "strategy.codec is a key of replay, wa and not of finetune, lwf",
        "leave it out, or choose strategy=replay,wa alone",
    ),
    "compare: a swept key that not all have": (
        ("compare", *RUN[1:], "strategy=replay,finetune", "strategy.codec=raw,jpeg"),
        "strategy.codec is a key of replay and not of finetune",
        "strategy=replay alone",
    ),
    "compare: a key that not all strategies of the experiment have": (
        ("compare", "experiment=demo", "strategy.selection=random"),
        "strategy.selection is a key of replay, icarl, wa and not of finetune, joint",
        "leave it out",
    ),
    "compare: a key that not all adapters have": (
        ("compare", "stream=mnist5k_corrupted", "adapter=tent,bn_stats", "adapter.alpha=1"),
        "adapter.alpha is a key of bn_stats and not of tent",
        "adapter=bn_stats alone",
    ),
    "compare: a key that no strategy has": (
        ("compare", *RUN[1:], "strategy=replay,finetune", "strategy.codc=raw"),
        "unknown key strategy.codc",
        "'strategy.codec'",
    ),
    "compare: a run directory": (("compare", *RUN[1:], "run_dir=here"), "run_dir is of cil run", "out=DIR"),
    "report: no such folder": (("report", "nowhere"), "nowhere", "does not exist"),
    "report: unknown option": (("report", "--pdf"), "no option '--pdf'", "--figures"),
    "evaluate: no run": (("evaluate",), "cil evaluate needs one run directory", "key=value"),
    "evaluate: no such run": (("evaluate", "nowhere"), "nowhere is no run directory", "record.json"),
    "list: unknown kind": (("list", "strategy"), "no kind 'strategy'", "'strategies'"),
    "host that is not there": (
        (*RUN, "strategy=rmm", "strategy.host=icarll"),
        "no strategy 'icarll'",
        "(key strategy.host)",
        "'icarl'",
    ),
    "check: options alone": (("check", "strategy.size=64"), "cil check needs a strategy", "module:Class"),
    "check: an option": (("check", "icarl", "--foo"), "no option '--foo'", "key=value"),
    "check: the second name": (("check", "icarl", "nobody"), "no strategy 'nobody'", "known"),
    "check: unknown option": (("check", "ranpac", "strategy.siz=64"), "unknown key strategy.siz", "'strategy.size'"),
    "check: another key": (("check", "ranpac", "trainer.epochs=2"), "not 'trainer.epochs=2'", "strategy.KEY=VALUE"),
    "check: no class": (("check", "no_module:Mine"), "no_module:Mine", "cannot be imported"),
    "show: count": (("show", "stream=split_digits", "--count", "0"), "0", "1 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case, cil, tmp_path):
    arguments, *parts = BAD[case]
    said = cil(*arguments)
    assert said.code == 2
    assert said.line.startswith("cil: ")
    for part in parts:
        assert part in said.line
    trained = [path for path in tmp_path.rglob("metrics.jsonl") if path.stat().st_size]
    assert not trained


def test_a_traceback_is_shown_only_when_asked_for(cil, monkeypatch):
    assert "Traceback" not in cil(*RUN, "trainer.epochs=0").err
    monkeypatch.setenv("CIL_TRACEBACK", "1")
    assert "Traceback" in cil(*RUN, "trainer.epochs=0").err


def test_what_is_not_the_users_fault_ends_with_1(cil, monkeypatch):
    def broken(*job):
        raise RuntimeError("a\nbug")

    monkeypatch.setattr("cil.cli.run.execute", broken)
    said = cil("run", *DIGITS)
    assert said.code == 1
    assert said.line.startswith("cil: RuntimeError: a bug (") and "test_bad_input.py:" in said.line
    assert said.line.endswith(", in broken); CIL_TRACEBACK=1 shows how it came there")


def test_a_wrong_key_is_told_without_importing_torch(tmp_path):
    code = "import sys; from cil.cli.main import main; print(main(['run', 'trainer.epochs=0']), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
