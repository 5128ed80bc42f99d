"""The bridge to Avalanche: streams both ways, its strategies under our boundary and ledger."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from cil import Budget, class_incremental, plan
from cil.errors import ConfigError, DataError, StreamError
from cil.interop.avalanche import avalanche_stream, from_avalanche, to_avalanche
from cil.interop.avalanche.carried_images import evenly, shares
from cil.interop.avalanche.methods import METHODS, REFUSED, checked_options, method
from cil.interop.avalanche.strategy import AvalancheBound, AvalancheStrategy
from cil.strategies import find
from cil.streams import stream_builder

OPTIONS = {"ER_ACE": {"batch_size_mem": 4}, "DER": {"batch_size_mem": 4}, "AGEM": {"sample_size": 8}}


def test_names_and_options_are_checked_before_anything_is_trained():
    assert method("Replay", bound=False) is METHODS["Replay"]
    for name, reason in REFUSED.items():
        with pytest.raises(ConfigError, match="cannot be run here") as told:
            method(name, bound=False)
        assert reason in str(told.value)
    with pytest.raises(ConfigError, match="Replay"):
        method("Replya", bound=False)
    with pytest.raises(ConfigError, match="set strategy=avalanche_bound"):
        method("Cumulative", bound=False)
    with pytest.raises(ConfigError, match=r"set strategy=avalanche$"):
        method("Naive", bound=True)
    with pytest.raises(ConfigError, match="is set by the budget"):
        checked_options("Replay", METHODS["Replay"], {"mem_size": 3})
    with pytest.raises(ConfigError, match="ewc_lambda"):
        checked_options("EWC", METHODS["EWC"], {"lambda": 3})
    assert checked_options("LwF", METHODS["LwF"], {"alpha": 3}) == {"alpha": 3, "temperature": 2.0}


def test_the_bridges_are_found_by_name():
    assert find("avalanche") is AvalancheStrategy and find("avalanche_bound").bound
    assert stream_builder("avalanche") is avalanche_stream


def test_a_memory_is_divided_as_avalanche_divides_it():
    assert shares(17, 3) == [6, 6, 5] and shares(2, 3) == [1, 1, 0] and shares(5, 0) == []
    assert evenly(6, {0: 12, 1: 12}) == {0: 3, 1: 3}
    assert evenly(6, {0: 1, 1: 12}) == {0: 1, 1: 5} and evenly(9, {0: 1, 1: 2}) == {0: 1, 1: 2}


# with the library -----------------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    return pytest.importorskip("avalanche", reason="avalanche-lib is not installed: pip install 'cil[avalanche]'")


def toy_benchmark():
    """Named by tests as ``module:function`` would be."""
    return to_avalanche(_stream(), normalise=False)


def _stream():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (20, 1, 6, 6), generator=generator, dtype=torch.uint8)
    from cil.data import Dataset, Samples

    train = Samples.from_arrays(pixels[:12], torch.arange(12) % 4)
    test = Samples.from_arrays(pixels[12:], torch.arange(8) % 4)
    return class_incremental(Dataset("noise", train, test, list("abcd")), base=1, increment=[2, 1], order=[2, 0, 3, 1])


def test_a_stream_comes_back_as_it_went(library):
    stream = _stream()
    benchmark = to_avalanche(stream, normalise=False)
    assert [exp.classes_in_this_experience for exp in benchmark.train_stream] == [[0], [1, 2], [3]]
    back = from_avalanche(benchmark)
    assert [s.new_slots for s in back.signatures] == [(0,), (1, 2), (3,)]
    for index, experience in enumerate(stream):
        for slot in experience.new_slots:  # the scenario has the images class by class
            assert torch.equal(back[index].train.of_class(slot).pixels, experience.train.of_class(slot).pixels)
            assert torch.equal(back.test(index).of_class(slot).pixels, stream.test(index).of_class(slot).pixels)
    with pytest.raises(DataError, match=r"stream\.normalised"):
        from_avalanche(to_avalanche(stream))
    undone = from_avalanche(to_avalanche(stream), normalised=[stream.mean, stream.std])
    assert torch.equal(undone[1].train.pixels, back[1].train.pixels)


def test_a_benchmark_that_shares_labels_between_tasks_is_refused(library):
    from avalanche.benchmarks import benchmark_from_datasets

    from cil.data import Samples
    from cil.interop.avalanche.library import ToInput, dataset_of

    samples = Samples.from_arrays(torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    first = dataset_of(samples, ToInput(), ToInput())
    second = first.update_data_attribute("targets_task_labels", [1] * 4)
    with pytest.raises(StreamError, match="2 tasks that share the labels"):
        from_avalanche(benchmark_from_datasets(train=[first, second], test=[first]))


def test_a_stream_of_a_function_and_a_wrong_name(library):
    stream = avalanche_stream(f"{__name__}:toy_benchmark", augment={"flip": True})
    assert len(stream) == 3 and stream.augment.flip and stream.classes == ("0", "1", "2", "3")
    with pytest.raises(ConfigError, match="SplitMNIST"):
        avalanche_stream("SplitMNITS")
    with pytest.raises(ConfigError, match=r"stream.options.shufle"):
        avalanche_stream("SplitMNIST", options={"shufle": True})


def test_caps_that_its_loop_cannot_keep_are_refused(library, toy_stream):
    with pytest.raises(ConfigError, match=r"budget\.flops is 10"):
        plan(AvalancheStrategy, toy_stream, "smallconv", Budget(flops=10)).work.check()


@pytest.mark.parametrize("name", ["Replay", "EWC"])
def test_what_is_carried_is_what_was_billed(library, name, tmp_path):
    """Three images a class, one step an experience: the ledger, own steps and the state of the next experience."""
    make = partial(AvalancheStrategy, name=name, epochs=2, batch_size=8)
    run = plan(make, _stream(), "smallconv", Budget(exemplars=3, updates=1), run_dir=tmp_path, progress=False)
    record = run.execute()
    carried = [sum(e["bytes"] for e in at["entries"] if e["lifetime"] == "carried") for at in record.results["ledger"]]
    assert carried == [bill.total["exact"] for bill in run.work.bill]
    assert record.results["own_updates"] == [1, 1, 1]
    assert record.results["exemplars"] == ([3, 3, 3] if name == "Replay" else [0, 0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_each_strategy_carries_what_was_billed(library, name, toy_stream, tmp_path):
    kind = AvalancheBound if METHODS[name].bound else AvalancheStrategy
    make = partial(kind, name=name, options=OPTIONS.get(name, {}), epochs=1, batch_size=8)
    run = plan(make, toy_stream, "smallconv", Budget(exemplars=17), run_dir=tmp_path, progress=False)
    record = run.execute()
    carried = [sum(e["bytes"] for e in at["entries"] if e["lifetime"] == "carried") for at in record.results["ledger"]]
    assert carried == [bill.total["exact"] for bill in run.work.bill]
