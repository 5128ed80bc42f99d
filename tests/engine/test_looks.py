"""How often images of an experience are read: what counts, who is named, what is refused, what the record says."""

import pickle
from collections import deque
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from itertools import chain
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from toys import SHAPE, Interrupt, Learner, Rehearse, TwoStages, plain, small_run, some_samples

from cil.data import Samples
from cil.data.looks import Looks, counted, uncounted
from cil.engine.held_images import HeldImages
from cil.engine.recipe import Recipe
from cil.errors import BudgetExceeded, ConfigError, ContractError
from cil.memory import Budget, ExemplarMemory
from cil.report.runs import RunSummary
from cil.strategies import Phase
from cil.strategies.parts import features
from cil.testing.toy import RECIPE, toy_run, toy_stream
from cil.tracking import Record


def test_reads_count_by_image_and_by_reader_and_copies_do_not():
    looks, both = Looks(6), some_samples(4) + some_samples(2, seed=1)
    seen = counted(both[torch.tensor([5, 0, 1, 2, 3, 4])], looks)
    assert torch.equal(seen.pixels, both.pixels[[5, 0, 1, 2, 3, 4]])  # one look at each
    with looks.by("prepare"):
        assert len(list(seen[torch.tensor([0, 0, 2])].batches(2))) == 2  # two at image 0, one at image 2
    kept = seen[1:3].sealed()
    assert looks.counts.tolist() == [3, 1, 2, 1, 1, 1]
    memory = ExemplarMemory(selection="random")
    memory.rebuild(kept, 5, lambda samples: torch.zeros(len(samples), 1), torch.Generator())
    assert len(memory) == 2 and looks.counts.sum() == 9  # copying an image into a memory is no look
    kept.pixels.sum()
    assert looks.summary() == {
        "images": 6, "mean": 1.8333, "most": 3, "by_reader": {"a hook": 1.3333, "prepare": 0.5},
    }  # fmt: skip
    again = Looks(6)
    again.load(looks.state())
    assert again.summary() == looks.summary()


def test_encoded_copies_count_by_their_bytes_once_they_are_cut_to_their_capacity():
    """Images of 4 bytes, and 8 beside: encoded ones weigh more, so each counts as one."""
    looks = Looks(6)
    seen = counted(some_samples(6), looks)
    looks.copies = 3
    memory = ExemplarMemory("jpeg:90", selection="random")
    each = int(memory.codec.encode(some_samples(1).pixels)[1][0]) + 1 + 4  # a label, and where it ends
    memory.rebuild(
        seen, 6, lambda samples: torch.zeros(len(samples), 1), torch.Generator(), capacity=3 * each + each // 2
    )
    assert len(memory) <= 3 and not looks.counts.any()  # all six were in it before it was cut
    few = Looks(6)
    few.copies = 1
    few.copy(np.arange(6), np.full(6, 0.25))  # four of them weigh as much as a raw image
    assert few.counts.tolist() == [0, 0, 0, 0, 1, 1]
    again = Looks(6)
    again.load(few.state())
    again.allow_copies(0)
    assert again.counts.tolist() == [1, 1, 1, 1, 2, 2]


def test_the_engine_knows_which_rows_of_a_phase_are_new_images():
    looks, old = Looks(3), some_samples(2, seed=1)
    whole = counted(some_samples(3), looks)
    plain_samples, images, found = uncounted(old + whole[torch.tensor([2, 0])])
    assert images.tolist() == [-1, -1, 2, 0] and found is looks
    assert len(plain_samples.pixels) == 4 and not looks.counts.any()
    assert uncounted(old) == (old, None, None)


def test_one_look_too_many_is_refused_in_one_line():
    looks = Looks(30, 1, "mine", 2)
    looks.read(np.arange(20))
    with looks.by("after_experience"), pytest.raises(BudgetExceeded) as refused:
        looks.read(np.array([25, 17, -1]))
    assert str(refused.value) == (
        "mine reads image 17 of experience 2 for the 2nd time, in after_experience; trainer.looks is 1: set "
        "trainer.looks=2 or free, or train less"
    )
    with pytest.raises(BudgetExceeded, match=r"reads 2 images, the first of them 3, of experience 2 for the 2nd time"):
        looks.read(np.array([4, 3]))


@pytest.mark.parametrize("line", [None, 1, 5, 9])
def test_all_that_reads_is_counted_also_across_an_interruption(tmp_path, line):
    """TwoStages: an epoch, two passes between its phases, two epochs of a second phase."""
    if line is not None:
        recipe = plain(log_every=1, snapshot_steps=1)
        with pytest.raises(KeyboardInterrupt):
            small_run(TwoStages, tmp_path, recipe=recipe, loggers=[Interrupt(line)]).execute()
    done = small_run(TwoStages, tmp_path, recipe=plain(log_every=1, snapshot_steps=1)).execute()
    by_reader = {"phase 'main'": 1.0, "phases": 2.0, "phase 'head'": 2.0}
    assert done.results["looks"] == [{"images": 16, "mean": 5.0, "most": 5, "by_reader": by_reader}] * 3


def test_exemplars_of_earlier_experiences_are_no_new_images(tmp_path):
    done = small_run(Rehearse, tmp_path, recipe=plain(looks=1)).execute()
    assert [one["mean"] for one in done.results["looks"]] == [1.0, 1.0, 1.0]
    assert RunSummary(done).looks == 1.0


class Statistics(Learner):
    """Takes a mean of features after each experience but the first."""

    def after_experience(self, experience):
        if experience.index:
            features(self, experience.train)


class Copying(Learner):
    """Trains on pixels that it copied by hand."""

    def phases(self, experience):
        data = experience.train
        yield Phase("copies", Samples.from_arrays(data.pixels, data.slots), self.loss, epochs=3, main=False)


def test_a_hook_that_looks_again_is_refused_and_the_record_keeps_what_was_done(tmp_path):
    free = small_run(Statistics, tmp_path / "free").execute()
    assert [one["mean"] for one in free.results["looks"]] == [1.0, 2.0, 2.0]
    run = small_run(Statistics, tmp_path / "one", recipe=plain(looks=1))
    with pytest.raises(BudgetExceeded, match=r"^Statistics reads 16 images, .* 1 for .*, in after_experience;"):
        run.execute()
    record = Record.load(tmp_path / "one")
    assert record.status == "over_budget" and "trainer.looks is 1" in str(record.error)
    assert len(record.results["accuracy_curve"]) == 1
    two = small_run(Statistics, tmp_path / "two", recipe=plain(looks=2)).execute()
    assert two.results["accuracy_curve"] == free.results["accuracy_curve"]


def test_a_copy_of_the_images_is_looked_at_as_they_are(tmp_path):
    class Copies(Statistics):
        def after_experience(self, experience):
            super().after_experience(replace(experience, train=deepcopy(experience.train)))

    class Trains(Learner):
        def training_set(self, experience):
            return deepcopy(super().training_set(experience))

    class Pickles(Learner):
        def after_experience(self, experience):
            pickle.dumps(experience.train)

    with pytest.raises(BudgetExceeded, match=r"in after_experience; trainer.looks is 1"):
        small_run(Copies, tmp_path / "copies", recipe=plain(looks=1)).execute()
    trained = small_run(Trains, tmp_path / "trains", recipe=plain(looks=1)).execute()
    assert [one["mean"] for one in trained.results["looks"]] == [1.0] * 3
    with pytest.raises(ContractError, match="Pickles: images of experience 0 are not pickled, as their looks are"):
        small_run(Pickles, tmp_path / "pickles", recipe=plain(looks=1)).execute()


def test_a_phase_on_copies_made_by_hand_is_refused_where_looks_are_capped(tmp_path):
    small_run(Copying, tmp_path / "free").execute()
    with pytest.raises(ContractError, match=r"phase 'copies' of Copying is trained on images that are neither"):
        small_run(Copying, tmp_path / "one", recipe=plain(looks=1)).execute()


class Hoarding(Rehearse):
    """Puts all images of an experience into its memory before training, and drops most of them after it."""

    def prepare(self, experience):
        self.memory.replace([self.memory.samples(), experience.train])

    def phases(self, experience):
        yield Phase("hoard", self.memory.samples(), self.loss, epochs=3, main=False)


class Reading(Rehearse):
    """Takes statistics of copies in a memory that it keeps nowhere."""

    def after_experience(self, experience):
        copies = ExemplarMemory(selection="random")
        copies.replace([experience.train])
        features(self, copies.samples())
        super().after_experience(experience)


class ReadingEncoded(Rehearse):
    """The same with a codec of variable size."""

    def after_experience(self, experience):
        copies = ExemplarMemory("jpeg:95", selection="random")
        copies.replace([experience.train])
        features(self, copies.samples())
        super().after_experience(experience)


class Padded(Learner):
    """Trains on copies with a frame of one pixel."""

    def phases(self, experience):
        data = experience.train
        framed = torch.nn.functional.pad(data.pixels, (1, 1, 1, 1))
        yield Phase("framed", Samples.from_arrays(framed, data.slots), self.loss, epochs=3, main=False)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Hoarding, r"phase 'hoard' of Hoarding is trained on 16 exemplars, the budget lets 8 be carried"),
        (Reading, r"Reading reads .* for the 2nd time, in after_experience"),
        (ReadingEncoded, r"ReadingEncoded reads .* for the 2nd time, in after_experience"),
        (Padded, r"phase 'framed' of Padded is trained on images that are neither"),
    ],
)
def test_copies_beyond_what_may_be_carried_are_no_way_around_the_cap(tmp_path, kind, words):
    with pytest.raises((ContractError, BudgetExceeded), match=words):
        small_run(kind, tmp_path, recipe=plain(looks=1), budget=Budget(exemplars=8)).execute()


class Ring(Learner):
    """Trains on all batches so far, which it holds for this experience alone."""

    def __init__(self, make_net, budget):
        super().__init__(make_net, budget)
        self.keep("ring", None, kind="temporary")

    def loss(self, batch):
        self.ring = batch.images.clone() if self.ring is None else torch.cat([self.ring, batch.images])
        return self.net(self.ring).logits.square().mean()


class Listed(Learner):
    """The same in a list, which is empty again where a boundary looks for it."""

    def __init__(self, make_net, budget):
        super().__init__(make_net, budget)
        self.seen = []

    def loss(self, batch):
        self.seen.append(batch.images)
        return self.net(torch.cat(self.seen)).logits.square().mean()

    def after_experience(self, experience):
        self.seen = []


class Batches(Listed):
    """The same with whole batches."""

    def loss(self, batch):
        self.seen.append(batch)
        return self.net(torch.cat([one.images for one in self.seen])).logits.square().mean()


class Box:
    """An object with a list."""

    def __init__(self):
        self.images = deque()


class Boxed(Listed):
    """The same in an object of its own."""

    def loss(self, batch):
        self.seen = Box() if not self.seen else self.seen
        self.seen.images.append(batch.images)
        return self.net(torch.cat(list(self.seen.images))).logits.square().mean()


class InTheNetwork(Listed):
    """The same in a list that a layer of the network has."""

    def loss(self, batch):
        held = vars(self.net.head).setdefault("seen", [])
        held.append(batch.images)
        return self.net(torch.cat(held)).logits.square().mean()

    def after_experience(self, experience):
        del self.net.head.seen


class InAPhase(Learner):
    """The same in a list that the loss of a phase closes over."""

    def phases(self, experience):
        seen = []

        def loss(batch):
            seen.append(batch.images)
            return self.net(torch.cat(seen)).logits.square().mean()

        yield Phase("main", self.training_set(experience), loss)


class Turned(Listed):
    """The same with channels last."""

    def loss(self, batch):
        self.seen.append(batch.images.permute(0, 2, 3, 1))
        return self.net(torch.cat(self.seen).permute(0, 3, 1, 2)).logits.square().mean()


class Written(Listed):
    """The same in another form, which ``write`` makes and ``read`` undoes."""

    write = staticmethod(lambda images: images.flatten(1))
    read = staticmethod(lambda seen: torch.cat(seen))

    def loss(self, batch):
        self.seen.append(self.write(batch.images))
        return self.net(self.read(self.seen).view(-1, *SHAPE)).logits.square().mean()


def bytes_of(images):
    return (images * 255).byte().numpy().tobytes()


def from_bytes(seen):
    return torch.frombuffer(bytearray(b"".join(seen)), dtype=torch.uint8) / 255


class OneRow(Written):
    write = staticmethod(lambda images: images.flatten())


class Columns(Written):
    write = staticmethod(lambda images: images.flatten(1).t().contiguous())
    read = staticmethod(lambda seen: torch.cat([one.t() for one in seen]))


class Halved(Written):
    write = staticmethod(lambda images: images.half().flatten(1))
    read = staticmethod(lambda seen: torch.cat(seen).float())


class Normalised(Written):
    write = staticmethod(lambda images: (images.flatten(1) - 0.4) * 3)
    read = staticmethod(lambda seen: torch.cat(seen) / 3 + 0.4)


class AsBytes(Written):
    write, read = staticmethod(bytes_of), staticmethod(from_bytes)


class AsNumbers(Written):
    write = staticmethod(lambda images: images.flatten().tolist())
    read = staticmethod(lambda seen: torch.tensor(list(chain.from_iterable(seen))))


class InAStream(Listed):
    """The same in a file in memory."""

    def loss(self, batch):
        self.seen = self.seen or BytesIO()
        self.seen.write(bytes_of(batch.images))
        return self.net(from_bytes([self.seen.getvalue()]).view(-1, *SHAPE)).logits.square().mean()


class OnTheClass(Listed):
    """The same on the class."""

    past: ClassVar[list] = []

    def loss(self, batch):
        self.past.append(batch.images)
        return self.net(torch.cat(self.past)).logits.square().mean()


class Reservoir(Rehearse):
    """Puts each batch into its memory, and trains on all of that."""

    def loss(self, batch):
        pixels = (batch.images * 255).byte()
        self.memory.replace([self.memory.samples(), Samples.from_arrays(pixels, batch.slots)])
        return self.net(self.memory.samples().pixels / 255).logits.square().mean()


WRITTEN = [Written, OneRow, Columns, Halved, Normalised, AsBytes, AsNumbers, InAStream]


@pytest.mark.parametrize(
    "kind", [Ring, Listed, Batches, Boxed, Turned, InTheNetwork, InAPhase, Reservoir, OnTheClass, *WRITTEN]
)
def test_images_held_beyond_what_may_be_carried_are_no_way_around_the_cap(tmp_path, kind):
    words = rf"{kind.__name__} holds \d+ images in training, the budget lets \d be carried beside the batch in hand"
    with pytest.raises(ContractError, match=words):
        small_run(kind, tmp_path / "few", recipe=plain(looks=1), budget=Budget(exemplars=3)).execute()
    if kind not in WRITTEN:
        small_run(kind, tmp_path / "free", budget=Budget(exemplars=50)).execute()


def test_numbers_that_are_no_images_of_the_batch_are_not_counted():
    images = torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    others = torch.rand(400, 4, generator=torch.Generator().manual_seed(1))
    held = HeldImages(SHAPE, images)
    assert held.count([others, [0.5] * 64, bytes(64), nn.Linear(4, 4)]) == 0
    assert HeldImages(SHAPE, images).count([{"a": [others, images.flatten(1) * 2 - 1]}]) == 416


def test_new_images_of_a_balanced_set_are_looked_at(tmp_path):
    """PODNet with random selection: an epoch of all images, then two of the balanced set."""
    given = {"budget": Budget(exemplars=8), "recipe": replace(RECIPE, epochs=1)}
    own = {"tune_epochs": 2, "selection": "random"}
    looks = toy_run("podnet", toy_stream(), tmp_path, hyperparameters=own, **given).execute().results["looks"]
    assert looks[0]["mean"] == 1.0 and looks[1]["most"] == 3
    assert set(looks[1]["by_reader"]) == {"phase 'main'", "phase 'tune'"}


def test_epochs_beyond_the_looks_are_refused_before_training():
    with pytest.raises(ConfigError, match=r"^trainer\.epochs is 3 with trainer\.looks=2, .* set it to 2, or"):
        Recipe(epochs=3, looks=2)
    with pytest.raises(ConfigError, match=r"^trainer\.first\.epochs is 5 with trainer\.looks=2"):
        Recipe(epochs=2, looks=2, first={"epochs": 5})
    with pytest.raises(ConfigError, match=r"^trainer\.looks is 0; it must be free or a whole number of 1 or more"):
        Recipe(looks=0)
    second_stage = Phase("tuning", some_samples(4), lambda batch: batch.images.mean(), main=False, epochs=9)
    assert Recipe(epochs=1, looks=1).of(second_stage, 0).epochs == 9  # may be of exemplars alone


@pytest.mark.parametrize(("pace", "looks"), [({"updates_per_batch": 3}, 1.0), ({"complexity": 2}, 0.5)])
def test_a_single_pass_is_one_look_at_what_it_does_not_miss(tmp_path, pace, looks):
    done = small_run(Learner, tmp_path, recipe=plain(looks=1, **pace)).execute()
    assert [one["mean"] for one in done.results["looks"]] == [looks] * 3


@pytest.mark.parametrize(("name", "looks"), [("finetune", 1.0), ("icarl", 2.0), ("er_ace", 1.0), ("simplecil", 2.0)])
def test_looks_of_methods(tmp_path, name, looks):
    """Herding of icarl and the means of simplecil, which trains its backbone first, are second looks."""
    recipe = replace(RECIPE, epochs=1)
    record = toy_run(name, toy_stream(), tmp_path, budget=Budget(exemplars=8), recipe=recipe).execute()
    assert record.results["looks"][0]["mean"] == looks
