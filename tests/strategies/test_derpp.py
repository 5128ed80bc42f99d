"""DER++: logits, images and labels of a reservoir, rehearsed from the second step on."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from recount import recount
from small_runs import ONE_STEP, PIXELS, Fixed, bare, batch, differing

from cil.data import Batch
from cil.engine.dry_run import dry_run
from cil.engine.keys import generator
from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.memory import Budget
from cil.strategies import derpp
from cil.strategies.derpp import DERpp
from cil.strategies.finetune import Finetune
from cil.strategies.parts.reservoir_sampling import NOT_HELD, NOT_OFFERED
from cil.testing import toy_run, toy_stream
from cil.testing.subject import Interruption
from cil.testing.toy import toy_factory

NONE = torch.empty(0).long()


class AllOutputs(Finetune):
    """Finetune with the cross-entropy over all outputs."""

    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


def held(learner, *logits, slots=(0, 1)):
    """``learner`` with as many exemplars, whose logits were these."""
    pixels = torch.zeros(len(logits), 3, 12, 12, dtype=torch.uint8)
    learner.memory.exchange(NONE, pixels, torch.tensor(slots), {"logits": torch.tensor(logits)})
    return learner


def test_the_loss_is_that_of_new_images_of_stored_logits_and_of_exemplars():
    learner = held(bare("derpp", classes=[1, 2], alpha=0.3, beta=0.5), [2.0, 1.0, 3.0], [0.0, 3.0, 1.0])
    learner.net = Fixed([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
    terms = learner.loss(batch(2, 0))
    # log(1 + e + e^3) = 3.169846; squared distances 4, 0, 0 and 0, 4, 4; exemplars of classes 0 and 1
    assert terms["classes"].item() == pytest.approx((0.169846 + 3.169846) / 2, abs=1e-5)
    assert terms["dark"].item() == pytest.approx(0.3 * 12 / 6, abs=1e-5)
    assert terms["exemplars"].item() == pytest.approx(0.5 * (3.169846 + 2.169846) / 2, abs=1e-5)


def test_the_distance_may_be_a_mean_over_all_outputs_of_the_stream():
    """(4 + 0 + 0 + 0 + 4 + 4) over two images of three outputs, or of ten as in the reference code."""
    for given, over in (({}, 3), ({"mean_over": 10}, 10)):
        learner = held(bare("derpp", classes=[1, 2], alpha=0.3, **given), [2.0, 1.0, 3.0], [0.0, 3.0, 1.0])
        learner.net = Fixed([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
        assert learner.loss(batch(2, 0))["dark"].item() == pytest.approx(0.3 * 12 / (2 * over), abs=1e-5)
    with pytest.raises(ConfigError, match=r"strategy\.mean_over of derpp is 2; it must be at least the 3 classes"):
        bare("derpp", classes=[1, 2], mean_over=2)


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_offered_at_each_epoch_copies_are_held_with_the_logits_of_one_step_each(learn, stream):
    Watched.answers = {}
    met = {}

    class Looking(Watched):
        def after_step(self, batch):
            for pixels, logits in zip(batch.pixels, self.outputs, strict=True):
                met.setdefault(pixels.numpy().tobytes(), []).append(logits)
            super().after_step(batch)

        def after_experience(self, experience):
            held = self.memory.samples()
            for pixels, logits in zip(held.pixels, held.extras["logits"], strict=True):
                assert any(torch.equal(logits[: len(one)], one) for one in met[pixels.numpy().tobytes()])
            images = [pixels.numpy().tobytes() for pixels in held.pixels]
            copies.append(len(images) - len(set(images)))

    copies = []
    given = {"hyperparameters": {"insert": "each_epoch"}, "recipe": Recipe(epochs=3, batch_size=7)}
    done = learn(Looking, stream, budget=Budget(exemplars=1000), **given)
    images = [sum(signature.counts.values()) for signature in done.stream.signatures]
    assert done.record.results["exemplars"] == [sum(images[: index + 1]) for index in range(3)]  # as the bill says
    assert all(copies) and int(done.learner(2).seen) == 3 * sum(images)


def test_without_alpha_or_beta_there_is_no_such_term_and_with_an_empty_memory_neither():
    for given, names in (({"beta": 0}, {"classes", "dark"}), ({"alpha": 0}, {"classes", "exemplars"})):
        assert held(bare("derpp", classes=[2], **given), [1.0, 2.0], [0.0, 0.0]).loss(batch(0, 1)).keys() == names
    assert bare("derpp", classes=[2]).loss(batch(0, 1)).keys() == {"classes"}


def test_outputs_that_come_later_are_matched_with_what_they_gave_before_they_were_trained(learn):
    """To the bits: a head that has just grown, on the exemplars as they are, in evaluation mode."""
    met = []

    class Looking(DERpp):
        def prepare(self, experience):
            super().prepare(experience)
            held = self.memory.samples()
            if not len(held):
                return
            with torch.no_grad():
                met.append((held.extras["logits"], self.net(held.pixels.float() / 255).logits, self.old_classes))

    done = learn(Looking, budget=Budget(exemplars=20))
    assert [len(stored) for stored, _, _ in met] == [20, 20]
    for index, (stored, given, old) in enumerate(met, 1):
        assert stored.shape == given.shape == (20, 2 * (index + 1))
        torch.testing.assert_close(stored[:, old:], given[:, old:])
        assert torch.equal(stored[:, :old], done.state(index - 1).tensors["memory.logits"])
        assert stored[:, old:].std() > 0 and not torch.allclose(stored[:, :old], given[:, :old])


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_with_both_weights_at_0_it_is_finetune_over_all_outputs_bit_for_bit(learn, stream):
    off, plain = learn("derpp", stream, hyperparameters={"alpha": 0, "beta": 0}), learn(AllOutputs, stream)
    for index in range(3):
        assert differing(off.net(index), plain.net(index)) == []
    assert off.record.results["exemplars"] == [10, 10, 10]
    assert differing(learn("derpp", stream).net(0), plain.net(0))


def test_without_room_for_an_exemplar_it_is_finetune_over_all_outputs_bit_for_bit(learn):
    none, plain = learn("derpp", budget=Budget(exemplars=0)), learn(AllOutputs)
    assert [differing(none.net(index), plain.net(index)) for index in range(3)] == [[]] * 3


class Watched(DERpp):
    """Keeps what it answered, by image, in a list that is the test's."""

    answers: dict = {}  # noqa: RUF012

    def loss(self, batch):
        result = super().loss(batch)
        for pixels, logits in zip(batch.pixels, self.outputs, strict=True):
            self.answers[pixels.numpy().tobytes()] = logits
        return result


@pytest.mark.parametrize("epochs", [1, 3])
def test_stored_are_images_before_augmentation_with_the_outputs_of_the_step_they_were_met_in_last(learn, epochs):
    Watched.answers = {}
    seen = []

    class Looking(Watched):
        def after_experience(self, experience):
            held = self.memory.samples()
            for pixels, logits in zip(held.pixels, held.extras["logits"], strict=True):
                answer = self.answers[pixels.numpy().tobytes()]
                assert torch.equal(logits[: len(answer)], answer)
            assert held.extras["logits"].shape[1] == self.num_classes
            seen.append(len(held))

    done = learn(Looking, budget=Budget(exemplars=1000), recipe=Recipe(epochs=epochs, batch_size=7))
    assert seen == [24, 48, 72]  # all of them
    pixels = {image.numpy().tobytes() for index in range(3) for image in done.stream[index].train.pixels}
    assert pixels == Watched.answers.keys()


def test_outputs_are_those_before_the_step_in_training_mode(learn):
    learner = bare("derpp", classes=[2])
    learner.train_mode()
    given, expected = batch(0, 1), bare("derpp", classes=[2])
    expected.train_mode()
    learner.loss(given)
    assert torch.equal(learner.outputs, expected.net(given.images).logits)
    assert not learner.outputs.requires_grad


def test_logits_of_earlier_experiences_stay_as_they_were(learn):
    done = learn("derpp", budget=Budget(exemplars=1000))
    logits = [done.learner(index).memory.samples().extras["logits"] for index in range(3)]
    assert torch.equal(logits[2][:24, :2], logits[0]) and torch.equal(logits[2][:48, :4], logits[1])


def test_every_image_is_offered_once_and_the_count_is_carried(learn):
    done = learn("derpp")  # two epochs of 24 images an experience
    assert [int(done.state(index).meta["seen"]) for index in range(3)] == [24, 48, 72]
    assert len({len(done.state(index).encoded_meta()) for index in range(3)}) == 1


def test_the_two_batches_are_drawn_independently_anew_at_every_step(learn, monkeypatch):
    drawn = []

    def watching(learner, samples, count, purpose):
        found = draw_batch(learner, samples, count, purpose)
        if found is not None and len(samples) == 10:
            drawn.append((purpose, tuple(found.rows.tolist())))
        return found

    draw_batch = derpp.draw_batch
    monkeypatch.setattr(derpp, "draw_batch", watching)

    class Anew(DERpp):
        pass

    learn(Anew)
    dark, known = ([rows for purpose, rows in drawn if purpose == name] for name in ("dark", "known"))
    assert len(dark) == len(known) > 6
    assert {len(rows) for rows in dark + known} == {8}
    assert sum(a == b for a, b in zip(dark, known, strict=True)) == 0
    assert len(set(dark)) == len(dark) and len(set(known)) == len(known)


def test_so_many_exemplars_are_replayed_as_asked_for():
    learner = held(bare("derpp", classes=[2], replay=3), *[[0.0, 0.0]] * 5, slots=(0, 0, 0, 1, 1))
    counts = []
    learner.net.register_forward_hook(lambda net, images, output: counts.append(len(images[0])))
    learner.loss(batch(0, 1))
    assert counts == [2, 3, 3]


@pytest.mark.parametrize(("name", "times"), [("derpp", 3), ("er_ace", 2)])
def test_replay_is_billed_in_the_first_experience_too(learn, name, times):
    given = {"task_free": True, "cosine": False} if name == "er_ace" else {}
    done, plain = learn(name, hyperparameters=given), learn(AllOutputs)
    spent, alone = (run.record.results["flops"]["training"][0] for run in (done, plain))
    steps = 6  # of which the first finds an empty memory
    assert spent == pytest.approx((1 + (steps - 1) * times) / steps * alone, rel=0.01)
    assert done.trained_with(0)["main.activations"] > 0.99 * times * plain.trained_with(0)["main.activations"]


@pytest.mark.parametrize("name", ["derpp", "er_ace"])
def test_replay_that_grows_while_the_memory_fills_is_billed_as_it_is(tmp_path, name):
    given = {"hyperparameters": {"replay": 20}, "budget": Budget(exemplars=30)}
    found = recount(toy_run(name, toy_stream(), tmp_path, recipe=Recipe(epochs=3, batch_size=4), **given))
    assert found.told == found.counted


# bytes --------------------------------------------------------------------------------------------------------------


def test_carried_bytes_are_those_of_the_formula(learn):
    """M (I + 4 C + 1), and fifteen digits."""
    done = learn("derpp")
    for index in range(3):
        ledger, classes = done.ledger(index), 2 * (index + 1)
        assert ledger["exemplars"] == 10 * PIXELS and ledger["labels"] == 10
        assert ledger["replay_logits"] == 10 * 4 * classes
        assert ledger["other"] == len('{"seen":"000000000000024"}')
        assert {k: ledger[k] for k in ("parameters", "buffers")} == learn("finetune").ledger(index)
        assert not any(name.startswith("outputs") for name in done.trained_with(index))


def test_as_logits_widen_fewer_exemplars_fit_and_each_boundary_is_full(learn):
    stream = toy_stream()
    fixed = [bill.fixed["exact"] for bill in dry_run(DERpp, lambda: toy_factory(stream, seed=0, meta=True),
             stream.signatures, Budget(exemplars=0))]  # fmt: skip
    limit = fixed[-1] + 25 * (PIXELS + 1 + 24) + 3
    done = learn("derpp", budget=Budget(limits=[limit]), recipe=Recipe(epochs=2, batch_size=8))
    room = [(limit - fixed[index]) // (PIXELS + 1 + 8 * (index + 1)) for index in range(3)]
    assert room == [27, 26, 25]
    assert done.record.results["exemplars"] == [24, 26, 25]  # the first experience has 24 images
    assert [bill["exemplars"] for bill in done.record.results["bills"]] == [24, 26, 25]
    for index in (1, 2):
        assert done.state(index).bytes <= limit < done.state(index).bytes + PIXELS + 1 + 8 * (index + 1)


@pytest.mark.parametrize("name", ["derpp", "er_ace"])
def test_where_there_is_more_room_than_images_it_holds_each_of_them_once(learn, name):
    done = learn(name, budget=Budget(exemplars=1000))  # two epochs
    assert done.record.results["exemplars"] == [24, 48, 72]
    for index in range(3):
        pixels = done.learner(index).memory.samples().pixels
        assert len(pixels.flatten(1).unique(dim=0)) == 24 * (index + 1)


def test_the_bill_holds_where_room_shrinks_and_grows(learn):
    done = learn("derpp", "uneven", budget=Budget(exemplars=12), recipe=ONE_STEP)
    assert done.record.results["exemplars"] == [12, 12, 12]
    item = PIXELS + 1 + 24
    fixed = done.record.results["bills"][-1]["fixed"]["exact"]
    limits = [fixed + 9 * item, fixed + 3 * item, fixed + 30 * item]
    done = learn("derpp", "uneven", budget=Budget(limits=limits))
    results = done.record.results
    assert [bill["exemplars"] for bill in results["bills"]] == results["exemplars"]
    assert results["exemplars"][1] < results["exemplars"][0] < results["exemplars"][2]


@pytest.mark.parametrize(("capacity", "epochs"), [(10, 1), (10, 3), (40, 3), (100, 2)])
def test_exemplars_of_all_experiences_are_held_in_proportion(capacity, epochs):
    """Of 144 images, 24 an experience, each is held with probability M / 144, whatever the number of epochs."""
    trials, totals = 60, torch.zeros(6)
    for key in range(trials):
        learner = bare("derpp", classes=[6])
        learner.context.generator = lambda purpose, key=key: generator(key, purpose)
        learner.capacity = capacity
        for index in range(6):
            learner.places = torch.full((24,), NOT_OFFERED)
            for step in range(3 * epochs):
                learner.progress.step = 1000 * index + step
                learner.outputs = torch.zeros(8, 6)
                learner.after_step(numbered(index, torch.arange(8) + step % 3 * 8))
                assert len(learner.memory) == min(capacity, 24 * index + min(24, 8 * (step + 1)))
        pixels = learner.memory.samples().pixels[:, 0, 0, 0]
        assert len(pixels.unique()) == capacity
        totals += torch.bincount(learner.memory.slots, minlength=6)
    expected, spread = capacity / 6, (capacity * (1 / 6) * (5 / 6) / trials) ** 0.5
    assert (totals / trials - expected).abs().max() < 4 * spread


def numbered(index, rows):
    """Images of an experience of 24, each of a colour of its own."""
    pixels = (24 * index + rows).byte().view(-1, 1, 1, 1).expand(-1, 3, 12, 12)
    return Batch(pixels.float(), torch.full((len(rows),), index), fetch=lambda: pixels, rows=rows)


def test_places_tell_where_each_image_of_the_experience_is():
    learner = bare("derpp", classes=[2])
    learner.capacity, learner.places = 6, torch.full((24,), NOT_OFFERED)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    for step, rows in enumerate([*order.split(5), *order.split(5)]):
        learner.progress.step, learner.outputs = step, rows[:, None] + 100.0 * step + torch.zeros(5, 2)[: len(rows)]
        learner.after_step(replace(numbered(0, rows), slots=rows % 2))
        held, places = learner.memory.samples(), learner.places
        inside = (places >= 0).nonzero().flatten()
        assert sorted(places[inside].tolist()) == list(range(len(held)))
        assert held.pixels[places[inside], 0, 0, 0].tolist() == inside.tolist()
        met = order[: 5 * (step + 1)]
        assert (places[met] >= NOT_HELD).all() and int((places == NOT_OFFERED).sum()) == 24 - len(met)
        steps = held.extras["logits"][:, 0].div(100, rounding_mode="floor")
        for row in inside.tolist():  # of the last step that it was met in
            last = max(k for k, own in enumerate([*order.split(5), *order.split(5)][: step + 1]) if row in own)
            assert steps[places[row]] == last


@pytest.mark.parametrize("name", ["derpp", "er_ace"])
def test_interrupted_in_the_second_epoch_and_resumed_it_ends_the_same(learn, tmp_path, name):
    recipe = Recipe(epochs=3, batch_size=8, log_every=1, snapshot_steps=1)
    straight = learn(name, recipe=recipe, budget=Budget(exemplars=30))
    for stop in (4, 13):  # an experience has nine steps
        for loggers in ([Interruption(stop)], []):
            run = toy_run(name, toy_stream(), tmp_path / str(stop), recipe=recipe, loggers=loggers, keep="all",
                          budget=Budget(exemplars=30))  # fmt: skip
            with suppress(KeyboardInterrupt):
                run.execute()
        for index in range(3):
            state, expected = run.checkpoints.state(index), straight.state(index)
            assert differing(dict(state.tensors), dict(expected.tensors)) == [] and state.meta == expected.meta


# what else ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["downsample:6", "jpeg:50"])
def test_other_codecs_serve_under_a_budget_of_exemplars(learn, codec):
    done = learn("derpp", hyperparameters={"codec": codec})
    assert done.record.results["exemplars"] == [10, 10, 10]


@pytest.mark.parametrize("name", ["derpp", "er_ace", "gdumb"])
def test_a_codec_of_variable_size_is_refused_under_a_budget_in_bytes_when_the_bill_is_made(tmp_path, name):
    run = toy_run(name, toy_stream(), tmp_path, budget=Budget(limits=[10**6]), hyperparameters={"codec": "jpeg"})
    for start in (run.work.check, run.execute):
        with pytest.raises(ConfigError, match=r"strategy\.codec"):
            start()
    assert not list(run.checkpoints.folder.glob("experience*"))


def test_logits_are_stored_at_the_width_of_the_head_whoever_brings_classes_back(learn):
    from small_runs import regrouped

    done = learn("derpp", regrouped((0, 1, 2), (3,), (4, 5)), budget=Budget(exemplars=30))
    logits = [done.state(index).tensors["memory.logits"] for index in range(3)]
    assert [values.shape[1] for values in logits] == [3, 4, 6]
    assert all(values.isfinite().all() and values.std(0).min() > 0 for values in logits)
