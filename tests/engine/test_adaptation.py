"""An adaptation run: what is counted, charged, committed and put back, on numbers that can be found by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from cil.adapt import Adapter, SourceModel
from cil.contract import Phase
from cil.data import Samples
from cil.engine.driver import Run
from cil.engine.recipe import Recipe
from cil.errors import ConfigError, ContractError, StateError, StreamError, TrainingError
from cil.streams.shifts import Segment, ShiftStream
from cil.testing.shifts import adaptation_run
from cil.tracking import Record

SHAPE = (1, 1, 2)
PLAIN = partial(torch.optim.SGD, lr=1.0)


class Net(nn.Module):
    """Scores (a, b) of an image of two pixels: the pixels, times a weight of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, images):
        return images.flatten(1) * self.weight


def samples(pixels, slots) -> Samples:
    return Samples.from_arrays(torch.tensor(pixels, dtype=torch.uint8).view(-1, *SHAPE), torch.tensor(slots))


A, B = (255, 0), (0, 255)  # predicted 0 and 1


def stream(**changes) -> ShiftStream:
    """Five images of 'x' (2 wrong), four of 'y' and 'x' in turn (1 of y, 2 of x wrong), three of 'y' (0 wrong)."""
    given = [
        ("one", [A, A, B, B, A], [0, 1, 1, 0, 0], [0] * 5, False),
        ("two", [A, A, B, A], [1, 1, 1, 1], [1, 0, 1, 0], False),
        ("three", [B, A, B], [1, 0, 1], [1] * 3, True),
    ]
    segments = tuple(
        Segment(name, partial(samples, pixels, slots), len(slots), torch.tensor(domains), reset)
        for name, pixels, slots, domains, reset in given
    )
    whole = ShiftStream(
        "hand", ("a", "b"), ("x", "y"), segments, SHAPE, (0.0,), (1.0,), "f",
        source=partial(samples, [A, B], [0, 1]), clean=partial(samples, [A, B, B], [0, 1, 0]),
    )  # fmt: skip
    return replace(whole, **changes)


class Watcher(Adapter):
    """Predicts by the network, and counts the batches since it was deployed."""

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        self.keep("met", torch.zeros(1), kind="statistics")

    def adapt_and_predict(self, images):
        self.met += 1
        return self.logits(images)


class Learns(Watcher):
    """One gradient step a batch on the mean score."""

    def adapt_and_predict(self, images):
        scores = self.logits(images)
        scores.square().mean().backward()
        with torch.no_grad():
            self.net.weight -= 0.1 * self.net.weight.grad
        self.net.weight.grad = None
        self.met += 1
        return scores


def run_of(kind, folder, given=None, **options) -> Run:
    shifting = stream() if given is None else given
    defaults = {"recipe": Recipe(epochs=1, batch_size=2, log_every=1, optimizer=PLAIN), "batch_size": 2, "keep": "all"}
    return adaptation_run(
        kind, shifting, folder, name=kind.__name__, make_source=lambda device: SourceModel(Net(), 2, SHAPE, "hand"),
        **{**defaults, **options},
    )  # fmt: skip


def test_wrong_answers_are_counted_by_domain_segment_and_batch(tmp_path):
    run = run_of(Watcher, tmp_path)
    record = run.execute()
    results, arrays = record.results, record.arrays()
    assert results["domain_errors"] == pytest.approx([100 * 4 / 7, 100 * 1 / 5])
    assert results["mean_error"] == pytest.approx((100 * 4 / 7 + 20) / 2)
    assert results["segment_errors"] == pytest.approx([40, 75, 0])
    assert results["online_error"] == pytest.approx(100 * 5 / 12)
    assert arrays["wrong"].tolist() == [1, 1, 0, 2, 1, 0, 0]
    assert arrays["count"].tolist() == [2, 2, 1, 2, 2, 2, 1]  # no batch reaches over the end of a segment
    assert arrays["segment"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert arrays["running_error"][[0, 4, 6]].tolist() == pytest.approx([50, 500 / 9, 500 / 12])
    assert results["clean_error_before"] is None
    tables = {table.name: table.rows for table in run.work.panels(record)}  # for dashboards
    assert [error for _, error in tables["domain_errors"]] == results["domain_errors"]
    assert [row[0] for row in tables["ledger"]] == [0, 1, 2], "the deployment is no segment"


def test_each_image_is_handed_over_once_in_order_and_nothing_else_is(tmp_path):
    seen = []

    class Sees(Watcher):
        def adapt_and_predict(self, *given, **named):
            assert not named and len(given) == 1 and type(given[0]) is torch.Tensor
            assert torch.is_grad_enabled() and not given[0].requires_grad
            seen.append(given[0].clone())
            return super().adapt_and_predict(*given)

    run_of(Sees, tmp_path).execute()
    expected = torch.cat([segment.samples().images for segment in stream().segments])
    assert torch.equal(torch.cat(seen), expected)
    assert [len(batch) for batch in seen] == [2, 2, 1, 2, 2, 2, 1]


def test_a_segment_with_a_reset_starts_from_the_deployed_state(tmp_path):
    run = run_of(Watcher, tmp_path, keep="last")
    run.execute()
    assert [float(run_of(Watcher, tmp_path / "all", keep="all").execute().results["segment_errors"][0])] == [40.0]
    kept = run_of(Watcher, tmp_path / "all")
    assert [float(kept.checkpoints.state(index).tensors["met"]) for index in range(4)] == [0, 3, 5, 2]
    assert float(run.checkpoints.state(3).tensors["met"]) == 2  # though only the last state was to be kept


def test_the_bill_is_of_what_is_kept_and_of_what_an_update_needs(tmp_path):
    record = run_of(Learns, tmp_path).execute()
    exact = record.results["ledger"][-1]["totals"]["exact"]
    assert exact == {"parameters": 8, "statistics": 4, "total": 12}
    training = record.results["ledger"][1]["totals"]["training"]
    assert training["gradients"] == 8
    # images (2, 2) for the weight's gradient and scores (2, 2) for the square: four bytes each
    assert training["activations"] == 16 + 16
    assert record.results["peak_training_bytes"] == 12 + 8 + 32
    assert run_of(Watcher, tmp_path / "none").execute().results["ledger"][1]["totals"]["training"]["total"] == 16


def test_clean_images_are_met_by_a_copy(tmp_path):
    run, plain = run_of(Learns, tmp_path / "clean", clean=True), run_of(Learns, tmp_path / "plain")
    results = run.execute().results
    expected = plain.execute().results
    assert results["clean_error_before"] == pytest.approx(100 / 3)
    assert results["clean_error_after"] == pytest.approx(100 / 3)
    assert results["segment_errors"] == expected["segment_errors"]
    for index in range(4):
        one, two = run.checkpoints.state(index), plain.checkpoints.state(index)
        assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in two.tensors)


def test_slots_of_the_stream_may_be_other_columns_of_the_network(tmp_path):
    turned = run_of(Watcher, tmp_path, columns=torch.tensor([1, 0]))
    results = turned.execute().results
    assert results["segment_errors"] == pytest.approx([60, 25, 100])  # right is now wrong
    assert turned.checkpoints.evaluated(3)["predictions"].tolist() == [0, 1, 0]  # slots of the stream
    assert turned.work._source().slots.tolist() == [1, 0]


def test_columns_are_turned_into_slots_again(tmp_path):
    run = run_of(Watcher, tmp_path, columns=torch.tensor([1, 2, 0]))
    assert run.work._truth(torch.tensor([0, 1, 2, 1])).tolist() == [1, 2, 0, 2]
    assert run.work._slots(torch.tensor([1, 2, 0, 2])).tolist() == [0, 1, 2, 1]


class Warm(Watcher):
    """Trains its weight on source data before it is deployed, and notes how many images there were."""

    needs_source = True

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        self.keep("images", torch.zeros(1), kind="statistics")
        self.net.eval()

    def phases(self, source):
        yield Phase("warm-up", source, lambda batch: self.logits(batch.images).sum(), epochs=2, lr=0.25)

    def deploy(self, source):
        assert not self.net.training  # as __init__ left it
        self.images += len(source)


def test_source_phases_are_the_engines_and_end_before_the_stream(tmp_path):
    run = run_of(Warm, tmp_path, recipe=Recipe(epochs=9, batch_size=2, log_every=1, optimizer=PLAIN))
    record = run.execute()
    # two steps; the gradient of each weight is 1 (one image has that pixel at 1); cosine over two epochs: 0.25, 0.125
    assert torch.allclose(run.checkpoints.state(0).tensors["net.weight"], torch.full((2,), 1 - 0.375))
    assert run.checkpoints.state(0).tensors["images"].tolist() == [2]
    assert record.results["flops"]["source"] == 0 and record.results["peak_source_training_bytes"] > 16
    phases = [line["phase"] for line in record.lines() if line["kind"] == "step"]
    assert phases == ["warm-up"] * 2 + ["one"] * 3 + ["two"] * 2 + ["three"] * 2
    steps = [line["step"] for line in record.lines() if line["kind"] == "step"]
    assert steps == list(range(1, 10))


def test_an_adapter_that_wants_source_data_is_refused_where_there_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r"Warm reads labelled source data .*; stream 'hand' has none"):
        run_of(Warm, tmp_path, stream(source=None)).execute()
    with pytest.raises(ConfigError, match=r"adaptation\.clean=true, but stream 'hand' has no clean images"):
        run_of(Watcher, tmp_path, stream(clean=None), clean=True)
    assert not list(tmp_path.iterdir())


def test_scores_that_are_no_numbers_stop_the_run_with_their_place(tmp_path):
    class Diverges(Watcher):
        def adapt_and_predict(self, images):
            return super().adapt_and_predict(images) * (float("nan") if self.met == 5 else 1)

    with pytest.raises(TrainingError, match="scores that are not numbers in segment two, batch 1;"):
        run_of(Diverges, tmp_path).execute()
    found = Record.load(tmp_path)
    assert found.status == "failed" and "segment two, batch 1" in found.error
    assert found.results["segment_errors"] == [40]


def test_what_cannot_be_carried_or_counted_is_refused(tmp_path):
    class Grows(Watcher):
        def adapt_and_predict(self, images):
            self.keep("more", torch.zeros(1), kind="statistics")
            return super().adapt_and_predict(images)

    class Narrow(Watcher):
        def adapt_and_predict(self, images):
            return super().adapt_and_predict(images)[:, :1]

    class Blind(Learns):
        def logits(self, images, net=None):
            return super().logits(images, net).detach()

    with pytest.raises(StateError, match="differ in more"):
        run_of(Grows, tmp_path / "a").execute()
    with pytest.raises(ContractError, match=r"Narrow gave scores \(2, 1\) in place of \(2, 2\) in one, batch 0"):
        run_of(Narrow, tmp_path / "b").execute()
    with pytest.raises(ConfigError, match="Blind needs gradients through the predictions of its source"):
        run_of(Blind, tmp_path / "c").execute()
    broken = stream()
    short = replace(broken.segments[1], samples=partial(samples, [A], [0]))
    with pytest.raises(StreamError, match="two: 4 images were announced, 1 came"):
        run_of(Watcher, tmp_path / "d", replace(broken, segments=(broken.segments[0], short))).execute()


@pytest.mark.parametrize("place", [1, 4, 6])
def test_a_killed_run_goes_on_from_its_last_boundary_or_snapshot(tmp_path, place):
    expected = run_of(Learns, tmp_path / "straight").execute()
    calls = []

    class Dies(Learns):
        def adapt_and_predict(self, images):
            calls.append(len(images))
            if len(calls) == place + 1:
                raise KeyboardInterrupt
            return super().adapt_and_predict(images)

    Dies.__name__ = "Learns"
    with pytest.raises(KeyboardInterrupt):
        run_of(Dies, tmp_path / "other").execute()
    assert Record.load(tmp_path / "other").status == "interrupted"
    record = run_of(Learns, tmp_path / "other").execute()
    assert [*record.lines()] == [*expected.lines()]
    mine, theirs = ({k: v for k, v in r.results.items() if k != "seconds"} for r in (record, expected))
    assert mine == theirs


def test_a_wish_to_stop_is_heard_after_the_batch_and_nothing_is_met_twice(tmp_path):
    met = []

    class Counts(Learns):
        def adapt_and_predict(self, images):
            met.append(images.clone())
            if len(met) == 2:
                run._stop.asked = True
            return super().adapt_and_predict(images)

    run = run_of(Counts, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.execute()
    assert run.checkpoints.snapshot_content("now")["tally"]["wrong"] == [1, 1]
    run = run_of(Counts, tmp_path)
    record = run.execute()
    assert torch.equal(torch.cat(met), torch.cat([segment.samples().images for segment in stream().segments]))
    expected = run_of(Learns, tmp_path / "straight").execute()
    assert record.results["ledger"] == expected.results["ledger"]
    assert run.checkpoints.evaluated(1)["predictions"].tolist() == [0, 0, 1, 1, 0]


def test_draws_are_keyed_by_seed_segment_and_batch(tmp_path):
    drawn = []

    class Draws(Watcher):
        def adapt_and_predict(self, images):
            drawn.append(tuple(torch.rand(2, generator=self.generator("a")).tolist()))
            drawn.append(tuple(torch.rand(2, generator=self.generator("b")).tolist()))
            return super().adapt_and_predict(images)

    run_of(Draws, tmp_path / "one", seed=1).execute()
    first = list(drawn)
    assert len(set(first)) == len(first) == 14
    drawn.clear()
    run_of(Draws, tmp_path / "two", seed=1).execute()
    assert drawn == first
    drawn.clear()
    run_of(Draws, tmp_path / "three", seed=2).execute()
    assert not set(drawn) & set(first)


def test_source_and_stream_must_fit(tmp_path):
    run = run_of(Watcher, tmp_path, stream(classes=("a", "b", "c")))
    with pytest.raises(ConfigError, match=r"the source has 2 classes of images \(1, 1, 2\); stream 'hand' has 3 of"):
        run.execute()


def test_whoever_admits_may_refuse_before_anything_is_done(tmp_path):
    def never(adapter, shape):
        assert shape == (2, 1, 1, 2)
        raise ConfigError("too large")

    with pytest.raises(ConfigError, match="too large"):
        run_of(Watcher, tmp_path, admit=never).execute()
    assert not list(tmp_path.iterdir())
