"""cil budget: what it says before training is what the ledger says afterwards."""

from __future__ import annotations

import json

import pytest

import cil.testing  # noqa: F401  its toy models have names
from cil.cli.build import build
from cil.cli.compose import compose
from cil.cli.names import choices
from cil.strategies import find
from cil.tracking import Record

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "optimizer.lr=0.01", "progress=false")


def toy_model(strategy: str) -> list[str]:
    """Overrides that make a strategy small, and give one which cannot work with any model one that it can."""
    kind = find(strategy)
    small = [f"strategy.{key}={value}" for key, value in kind.toy.items()]
    options = [f"++model.options.{key}={value}" for key, value in kind.toy_model.get("options", {}).items()]
    return [*small, f"model.name={kind.toy_model['name']}", *options] if kind.toy_model else small


SMALL = ("stream.increment=5", "stream.train_per_class=20", "stream.test_per_class=10")  # two experiences


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("stream=split_fashion_mnist",), "fashion_mnist_b0_inc2, 5 experiences; 2,000 exemplars"),
        (("stream=split_imagenet100", "model=resnet18"), "imagenet100_b0_inc10, 10 experiences; 2,000 exemplars"),
        (("stream=split_cifar100", "stream.base=50", "stream.shots=5"), "cifar100_b50_inc10_5shots, 6 experiences; 2"),
    ],
)
def test_bills_of_official_sets_need_no_images(cil, tmp_path, asked, says):
    found = cil("budget", *asked, "strategy=finetune", "budget.exemplars=2000", f"data_root={tmp_path}")
    assert found.code == 0 and found.out.startswith(says), found.err


def test_more_classes_than_an_official_set_has_are_no_bill(cil, tmp_path):
    found = cil(
        "budget", "stream=split_imagenet100", "stream.classes=500", "strategy=finetune", f"data_root={tmp_path}"
    )
    assert found.code == 2 and not found.out


TRAINED = ("avalanche", "avalanche_bound", "finetune", "icarl", "der", "gdumb", "slda", "l2p", "dytox", "rmm")
ALONE = [name for name in choices("strategy") if not find(name).takes_task]


@pytest.mark.parametrize("strategy", ALONE)
def test_every_strategy_is_built_and_billed_by_its_name(strategy, tmp_path):
    """What its file says beside is what its class has by default: test_config_files.py; its runs: testing/."""
    chosen = (f"strategy={strategy}", *toy_model(strategy), *SMALL)
    work = build(compose([*DIGITS, *chosen]), root=tmp_path).work
    work.check()
    assert work.method is find(strategy) and len(work.bills()["bills"]) == 2


# The others with -m slow: bills are held against ledgers of each in strategies/test_all_strategies.py.
@pytest.mark.parametrize("strategy", [pytest.param(n, marks=() if n in TRAINED else pytest.mark.slow) for n in ALONE])
def test_every_strategy_runs_by_its_name_and_carries_what_its_bill_said(cil, strategy):
    chosen = (f"strategy={strategy}", *toy_model(strategy), *SMALL)
    assert f"{strategy} on digits_b0_inc5, seed 0: finished" in cil("run", *DIGITS, *chosen, "run_dir=a").out
    results = Record.load("a").results
    for told, ledger, exemplars in zip(results["bills"], results["ledger"], results["exemplars"], strict=True):
        assert told["total"]["exact"] == ledger["totals"]["exact"]["total"]
        assert told["total"]["survey"] == ledger["totals"]["survey"]["total"]
        assert told["exemplars"] == exemplars


@pytest.mark.parametrize("strategy", ["replay", "der", "l2p"])
def test_the_command_says_the_bill_that_the_run_begins_with(cil, strategy):
    chosen = (f"strategy={strategy}", *toy_model(strategy), *SMALL)
    (said,) = json.loads(cil("budget", *chosen, "stream=split_digits", "--json").out)
    assert cil("run", *DIGITS, *chosen, "run_dir=a").code == 0
    bills = Record.load("a").results["bills"]
    assert len(bills) == 2
    for told, bill in zip(said["bills"], bills, strict=True):
        assert all(told["total"][key] == bill["total"][key] for key in ("exact", "survey"))
        assert told["exemplars"] == bill["exemplars"]


def test_all_strategies_are_billed_in_one_table(cil):
    said = cil("budget", "strategy=all", "stream=split_digits")
    assert said.code == 0
    for name in ("der", "ewc", "finetune", "icarl", "joint", "lwf", "replay", "wa"):
        assert said.out.count(f"\n{name} ") == 4  # exemplars, exact, survey, libcontinual
    assert "joint: a bound" in said.out


def test_who_cannot_work_with_the_model_is_named_among_others_and_refused_alone(cil):
    said = cil("budget", "strategy=finetune,l2p", "stream=split_digits")
    assert said.code == 0 and said.out.count("\nfinetune ") == 4
    assert "l2p does not fit: strategy l2p needs a timm vision transformer, not a SmallConvNet" in said.out
    said = cil("budget", "strategy=l2p", "stream=split_digits")
    assert said.code and "model.name" in said.line


def test_dytox_asks_for_its_model_itself_and_takes_no_other(cil):
    (bill,) = json.loads(cil("budget", "strategy=dytox", "stream=split_digits", "--json").out)
    shared = 10_683_564 - (64 - 4) * 384 - 2 * 16 * 384  # 2 x 2 patches of 4 x 4 grey pixels
    assert bill["bills"][0]["total"]["survey"] - 64 * bill["bills"][0]["exemplars"] == 4 * (shared + 384)
    said = cil("run", *DIGITS, "strategy=dytox", "model=smallconv", "run_dir=a")
    assert said.code and "strategy dytox needs the patches of a ConViT, not a SmallConvNet" in said.line


def test_who_does_not_fit_is_named(cil):
    said = cil("budget", "strategy=der,icarl", "stream=split_digits", "budget=bytes", "budget.limit=50_000")
    assert said.code == 0
    assert "der does not fit: der will carry" in said.out and "icarl does not fit" not in said.out


def test_what_a_budget_sets_is_said(cil):
    given = ("strategy=ranpac", "stream=split_digits", "budget=bytes", "budget.limit=400_000", "budget.fit=true")
    said = "ranpac: budget.fit sets strategy.size=303, the largest that fits: 399,336 of 400,000 bytes (exact)"
    assert said in cil("budget", *given).out.splitlines()
    assert json.loads(cil("budget", *given, "--json").out)[0]["fitted"] == said


def test_points_are_bills_of_their_own(cil):
    found = json.loads(cil("budget", "stream=split_digits", "budget.points=[10,50]", "seed=0,1", "--json").out)
    assert [item["bills"][-1]["exemplars"] for item in found] == [10, 50]


def test_aligned_gives_the_bytes_of_the_other_strategy(tmp_path):
    """Five backbones of 4,896 parameters and 200 exemplars of 64 bytes, as the survey counts."""
    job = compose(["stream=split_digits", "budget=aligned", "budget.convention=survey", "strategy=icarl"])
    run = build(job, root=tmp_path)
    assert run.work.budget.limits == [5 * 4 * 4896 + 200 * 64]
    assert run.work.budget.reserve == "final"


def test_aligned_each_follows_the_other_strategy(tmp_path):
    budget = ("budget=aligned", "budget.at=each", "budget.reserve=now", "budget.convention=survey")
    run = build(compose(["stream=split_digits", *budget]), root=tmp_path)
    assert run.work.budget.limits == [n * 4 * 4896 + 200 * 64 for n in (1, 2)] + run.work.budget.limits[2:]
    assert len(run.work.budget.limits) == 5


def test_the_other_strategy_is_measured_on_the_model_of_the_setting(cil, tmp_path):
    """dytox asks for a ConViT; der would run on smallconv here, as beside any other strategy."""
    budget = ("stream=split_digits", "budget=aligned", "budget.convention=survey", "budget.reserve=now")
    run = build(compose([*budget, "strategy=dytox"]), root=tmp_path)
    assert run.work.budget.limits == [5 * 4 * 4896 + 200 * 64]
    assert run.identity["budget"]["to_model"] == "smallconv"
    assert "those of der on smallconv with 200 exemplars" in cil("budget", *budget, "strategy=dytox").out
    given = build(compose([*budget, "strategy=dytox", "model=convit"]), root=tmp_path)
    assert given.identity["budget"]["to_model"] == "convit" and given.work.budget.limits[0] > 10**8
    own = build(compose([*budget, "strategy=replay", "budget.to=dytox"]), root=tmp_path)
    assert own.identity["budget"]["to_model"] == "convit" and own.work.budget.limits[0] > 4 * 10**7


def test_a_strategy_aligned_to_itself_keeps_the_exemplars_it_is_given(cil):
    budget = ("budget=aligned", "budget.to=der", "budget.exemplars=100")
    (bill,) = json.loads(cil("budget", "stream=split_digits", "strategy=der", *budget, "--json").out)
    assert [step["exemplars"] for step in bill["bills"]][-1] == 100


def test_the_survey_arithmetic_comes_out_of_the_command(cil, monkeypatch):
    """7,431 exemplars for one network at the size of DER, CIFAR-100 B0 Inc10 (specification 6.4)."""
    import torch

    from cil.data import ArrayStore, Dataset, Samples
    from cil.streams import class_incremental
    from cil.streams.registry import STREAMS

    def made(**options):
        labels = torch.arange(100).repeat_interleave(100)
        train = Samples(ArrayStore(torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(10_000, -1, -1, -1)), labels)
        data = Dataset("cifar", train, train, [str(i) for i in range(100)], mean=(0.5,) * 3, std=(0.5,) * 3)
        return class_incremental(data, increment=10)

    monkeypatch.setitem(STREAMS.registered, "made", made)
    stream = ("stream=split_digits", "~stream", "+stream.builder=made")
    budget = ("budget=aligned", "budget.exemplars=2000", "budget.convention=survey", "model=resnet32")
    run = build(compose([*stream, *budget, "strategy=icarl"]))
    (limit,) = run.work.budget.limits
    assert limit == 24_684_160
    assert (limit - 4 * 463_504) // 3072 == 7431
