"""What a step will hold is what it holds: measured without values, on the CPU, and in a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.adapt import Adapter, SourceModel
from cil.adapt.rotta import RoTTA
from cil.adapt.tent import Tent
from cil.data import Samples
from cil.engine.measured_step import noise_samples
from cil.engine.recipe import Recipe
from cil.engine.shape_inference import OnMeta
from cil.engine.strategy_steps import fill
from cil.errors import BudgetExceeded, ConfigError
from cil.kinds.adaptation.steps import AdapterSteps, admission
from cil.memory import Budget, ExemplarMemory, FeatureMemory, SavedBytes
from cil.strategies.finetune import Finetune
from cil.testing.toy import toy_run, toy_stream


@pytest.fixture(scope="module")
def stream():
    return toy_stream()


def steps_of(strategy, stream, tmp_path: Path, **options):
    run = toy_run(strategy, stream, tmp_path / "unused", **options)
    return run.work.steps()


@pytest.mark.parametrize("strategy", ["finetune", "icarl", "der"])
def test_what_is_told_is_what_a_run_bills_at_every_experience(strategy, stream, tmp_path):
    recipe = Recipe(epochs=1, batch_size=8, max_steps=2)
    steps = steps_of(strategy, stream, tmp_path, recipe=recipe)
    record = toy_run(strategy, stream, tmp_path / "run", recipe=recipe).execute()
    for index, ledger in enumerate(record.results["ledger"]):
        told = steps.at(index)
        assert told.device == "meta"
        billed = dict.fromkeys(told.kinds, 0)
        for lifetime in ("exact", "training"):
            for kind, size in ledger["totals"][lifetime].items():
                if kind != "total":
                    billed[kind] += size
        assert dict(told.kinds) == billed
    assert steps.largest().total == record.results["peak_training_bytes"]


class AsksForValues(Finetune):
    """As Finetune, but for a look at the loss."""

    def loss(self, batch):
        loss = super().loss(batch)
        if loss > 1e6:
            raise AssertionError
        return loss


class Refuses(Finetune):
    def loss(self, batch):
        raise ConfigError("strategy.x is wrong")


class Breaks(Finetune):
    def loss(self, batch):
        raise ZeroDivisionError("no such thing")


def test_where_values_are_asked_for_a_step_on_the_cpu_holds_the_same(stream, tmp_path):
    told, measured = (steps_of(kind, stream, tmp_path).at(2) for kind in (Finetune, AsksForValues))
    assert (told.device, measured.device) == ("meta", "cpu")
    assert measured.refused.startswith("RuntimeError: ") and not told.refused
    assert (measured.kinds, measured.parts, measured.dtypes) == (told.kinds, told.parts, told.dtypes)
    assert measured.published == told.published


def test_a_refusal_is_passed_on_and_a_fault_is_told_in_a_line(stream, tmp_path):
    with pytest.raises(ConfigError, match=r"^strategy\.x is wrong$"):
        steps_of(Refuses, stream, tmp_path).at(0)
    with pytest.raises(ConfigError, match="experience 2 cannot make a step on images of noise: ZeroDivisionError"):
        steps_of(Breaks, stream, tmp_path).at(1)


def test_the_batch_may_be_another_one_and_activations_grow_with_it(stream, tmp_path):
    steps = steps_of(Finetune, stream, tmp_path)
    small, large = steps.at(0, 6), steps.at(0, 12)
    assert (small.batch_size, large.batch_size) == (6, 12)
    grown = large.kinds["activations"] - small.kinds["activations"]
    assert small.kinds["activations"] == pytest.approx(grown, rel=0.05)  # but for what each layer has by channel
    assert large.kinds["gradients"] == small.kinds["gradients"] == small.kinds["optimizer"]


def test_a_memory_is_filled_as_planned_without_a_pixel():
    memory = ExemplarMemory()
    fill(memory, {0: 3, 2: 100_000}, (3, 224, 224))
    assert memory.counts() == {0: 3, 2: 100_000}
    assert memory.samples()[torch.tensor([5])].pixels.shape == (1, 3, 224, 224)
    assert memory.samples().parts[0][0].tensor.untyped_storage().nbytes() == 1
    vectors = FeatureMemory(dim=4, bits=8)
    fill(vectors, {1: 2}, (3, 8, 8))
    assert vectors.features().shape == (2, 4)
    jpeg = ExemplarMemory("jpeg:50")
    fill(jpeg, {1: 2}, (3, 8, 8))
    assert jpeg.samples().pixels.shape == (2, 3, 8, 8)


# without values -------------------------------------------------------------------------------------------------------


def test_what_meets_meta_goes_there_and_nothing_comes_back():
    x, slots = torch.zeros(4, 3, device="meta"), torch.tensor([0, 1, 2, 1])
    with OnMeta():
        assert F.cross_entropy(x, slots).is_meta
        assert x.cpu().is_meta and x.to("cpu", torch.float64).is_meta and x.to(device=torch.device("cpu")).is_meta
        assert slots.unique().tolist() == [0, 1, 2]
        assert torch.zeros(3).index_add_(0, slots[:2], x[:2, 0]).is_meta
        with torch.no_grad():
            assert bool((x > 0).any())
        with pytest.raises(RuntimeError):
            bool((x > 0).any())
        assert next(nn.Linear(2, 2).to("meta").parameters()).is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.cpu()


def test_a_storage_that_goes_to_meta_twice_is_one_there():
    x, slots = torch.zeros(4, 3, device="meta", requires_grad=True), torch.tensor([0, 1, 2, 1])
    with OnMeta(), SavedBytes([x]) as meter:
        x.gather(1, slots[:, None]).sum() + x.gather(1, slots[:, None]).sum()
    assert meter.bytes == 4 * 8


# adapters -------------------------------------------------------------------------------------------------------------


def source(device: torch.device) -> SourceModel:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    return SourceModel(nn.Sequential(*net, nn.Flatten(), nn.Linear(8, 4)).eval().to(device), 4, (3, 8, 8))


def test_an_update_of_tent_by_hand():
    found = AdapterSteps(Tent, source, "tent").at(2)
    assert found.device == "meta" and found.batch_size == 2
    assert found.kinds["gradients"] == 4 * 16
    assert found.kinds["optimizer"] == 2 * 4 * 16 + 4
    rule = found.published
    assert (rule.trainable, rule.frozen, rule.inputs, rule.relus) == (16, 216 + 36, 2 * 8 * 64, 2 * 8 * 64)
    parts = {part.name: part for part in found.parts}
    # bn: its input and two statistics; relu's result
    assert parts["net.1"].activations == 4 * 2 * 8 * 64 + 64 and parts["net.2"].activations == 4 * 2 * 8 * 64
    assert parts["net.1"].optimizer + 1 >= 2 * 4 * 16  # its share of the count of steps is rounded


def test_an_update_of_rotta_is_told_with_a_full_bank_though_few_batches_make_one():
    rare, often = (
        AdapterSteps(partial(RoTTA, capacity=12, every=every), source, "rotta").at(2).kinds for every in (64, 1)
    )
    smaller = AdapterSteps(partial(RoTTA, capacity=6, every=1), source, "rotta").at(2).kinds
    assert rare == often
    assert 1.9 < rare["activations"] / smaller["activations"] <= 2
    large, small = (
        AdapterSteps(partial(RoTTA, capacity=capacity), source, "rotta").at(2).published for capacity in (12, 6)
    )
    assert (large.inputs, large.relus) == (2 * small.inputs, 2 * small.relus) and small.inputs == 6 * 8 * 64


class Warmed(Adapter):
    """Trains all of its network on source data, then counts how sure it is."""

    needs_source = True

    def phases(self, source: Samples):
        from cil.contract import Phase

        yield Phase("warmup", source, lambda batch: F.cross_entropy(self.net(batch.images), batch.slots), batch_size=6)

    def adapt_and_predict(self, images: Tensor) -> Tensor:
        scores = self.net(images)
        if scores.max() > 1e6:
            raise AssertionError
        return scores.detach()


def test_source_phases_are_told_apart_and_values_are_found_on_the_cpu():
    steps = AdapterSteps(Warmed, source, "warmed", Recipe(batch_size=8))
    assert AdapterSteps(Tent, source, "tent").source_phases() is None
    phase = steps.source_phases()
    assert phase is not None and phase.device == "meta"
    assert (phase.batch_size, phase.where) == (6, "source phase warmup")
    assert phase.kinds["gradients"] == phase.kinds["optimizer"] == 4 * (216 + 16 + 36)
    found = steps.at(5)
    assert found.device == "cpu" and found.refused
    assert found.kinds["activations"] > 0 and "gradients" not in found.kinds


def test_an_adaptation_run_may_ask_before_anything_is_done():
    steps = AdapterSteps(Tent, source, "tent")
    total = steps.at(8).total
    adapter = Tent(source(torch.device("cpu")))
    admission(Budget(training_bytes=total), steps)(adapter, (8, 3, 8, 8))
    with pytest.raises(BudgetExceeded, match=r"tent needs .* adaptation\.batch_size=7 is the largest that fits"):
        admission(Budget(training_bytes=total - 1), steps)(adapter, (8, 3, 8, 8))


def test_made_up_images_are_one_byte_or_noise():
    slots = torch.tensor([0, 1, 1])
    black, noise = (noise_samples(slots, (3, 4, 4), noise=noise) for noise in (False, True))
    assert black.counts() == noise.counts() == {0: 1, 1: 2}
    assert black.pixels.sum() == 0
    assert black.parts[0][0].tensor.untyped_storage().nbytes() == 1
    assert noise.pixels.float().std() > 50
