"""RMM: incoming images are given up for exemplars, classes get unequal shares, and the rest is the host."""

from dataclasses import replace
from functools import partial
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from small_runs import ONE_STEP, PIXELS, STREAMS, bare, differing, observed, signatures

import cil
from cil.data import Samples
from cil.engine.lifecycle import admit
from cil.errors import BudgetExceeded, ConfigError, ContractError
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Allowance, Budget, tensor_bytes
from cil.models import extract_outputs
from cil.strategies import find
from cil.strategies.parts import balanced_set
from cil.strategies.rmm import RMM
from cil.streams import Experience, Signature
from cil.testing import rules, toy_run, toy_stream

SCOPES = ("carried", "carried+incoming")
EVEN = {"rates": [0.0], "tilts": [0.0]}


def options(host="icarl", rates=(0.5,), tilts=(0.0,), **more):
    return {"host": host, "rates": list(rates), "tilts": list(tilts), **more}


def budget(scope="carried+incoming", exemplars=10):
    return Budget(exemplars=exemplars, scope=scope)


# the host -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("host", ["icarl", "der", "foster"])
def test_rates_of_0_are_the_host_bit_for_bit(learn, host, stream, scope):
    plain = learn(host, stream)
    done = learn("rmm", stream, budget=budget(scope), hyperparameters={**EVEN, "host": host})
    for index in range(3):
        assert differing(dict(plain.state(index).tensors), dict(done.state(index).tensors)) == []
        assert plain.state(index).meta == done.state(index).meta
        assert plain.ledger(index) == done.ledger(index)
    assert plain.record.results["accuracy_matrix"] == done.record.results["accuracy_matrix"]
    assert done.record.results["given_up"] == [0, 0, 0]


def test_it_is_the_host_with_the_options_given():
    learner = bare("rmm", host="wa", host_options={"strength": "balanced", "align": False})
    assert isinstance(learner, find("wa")) and isinstance(learner, RMM)
    assert (learner.strength, learner.align) == ("balanced", False)
    assert type(learner).__name__ == "RMM" and not issubclass(find("rmm"), find("wa"))


def test_options_reach_the_training(learn):
    one = learn("rmm", hyperparameters=options("icarl", host_options={"strength": 0.0}), budget=budget())
    two = learn("rmm", hyperparameters=options("replay"), budget=budget())
    other = learn("rmm", hyperparameters=options("icarl"), budget=budget())
    for index in range(3):
        assert differing(dict(one.state(index).tensors), dict(two.state(index).tensors)) == []
    assert differing(other.net(2), two.net(2))


# level 1 ------------------------------------------------------------------------------------------------------------


def test_the_fixture_of_the_survey():
    """CIFAR B50 Inc10, the second experience at m = 0.3: 2000 + 1500 exemplars, 58 a class."""
    learner = bare("rmm", budget=budget(exemplars=2000), rates=[0.0, 0.3], tilts=[0.0])
    for index, slots in enumerate((range(50), range(50, 60))):
        counts = dict.fromkeys(slots, 500)
        signature = Signature(index, tuple(slots), tuple(slots), counts, (3, 32, 32), slots.stop)
        taken = admit(learner, signature, learner.budget.budget)
        learner.grow(taken)
        assert set(taken.counts.values()) == {500 if index == 0 else 350}
        assert learner.budget.cap == (2000 if index == 0 else 3500)
    assert learner.budget.exemplar_slots(learner) // learner.num_classes == 58


@pytest.mark.parametrize(
    ("rate", "images", "kept"),
    [(0.3, 10, 7), (0.9, 10, 1), (0.9, 20, 2), (0.5, 5, 2), (0.25, 3, 2), (1.0, 10, 1), (0.0, 7, 7), (0.9, 2, 1)],
)
def test_of_each_class_the_share_that_is_not_given_up_is_kept_and_one_at_least(rate, images, kept):
    learner = bare("rmm", rates=[rate])
    assert learner.accepts(Signature(1, (0,), (0,), {0: images}, (3, 12, 12), 1)) == {0: kept}
    assert learner.accepts(Signature(0, (0,), (0,), {0: images}, (3, 12, 12), 1)) == {0: images}


@pytest.mark.parametrize(
    ("classes", "increment", "exemplars"), [(10, None, 3500), (10, 10, 3500), (50, 10, 3500), (50, None, 9500)]
)
def test_the_first_experience_keeps_all_images_and_enlarges_the_memory(classes, increment, exemplars):
    """B0 Inc10 and B50 Inc10 of CIFAR at m = 0.3: 2000 + 0.3 x 10 x 500, as in the survey's code."""
    learner = bare("rmm", budget=budget(exemplars=2000), increment=increment)
    slots = range(classes)
    signature = Signature(0, tuple(slots), tuple(slots), dict.fromkeys(slots, 500), (3, 32, 32), classes)
    assert admit(learner, signature, learner.budget.budget).counts == signature.counts
    assert learner.budget.cap == exemplars and learner.budget.boundary.given_up == 0
    learner = bare("rmm", budget=budget("carried", 2000), increment=increment)
    admit(learner, signature, learner.budget.budget)
    assert learner.budget.cap == 2000


def test_more_in_advance_than_there_are_images_is_refused():
    class Greedy(RMM):
        def in_advance(self, signature):
            return 21

    learner = Greedy(bare("rmm").make_net, budget())
    with pytest.raises(ContractError, match=r"in_advance gives 21; allowed: 0 to the 20 images"):
        admit(learner, signatures([2], 10)[0], budget())


def test_the_last_rate_holds_for_all_later_experiences():
    learner = bare("rmm", rates=[0.0, 0.5])
    for index, kept in enumerate((8, 4, 4, 4)):
        assert learner.accepts(Signature(index, (0,), (0,), {0: 8}, (3, 12, 12), 1)) == {0: kept}


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_the_learner_sees_other_images_in_no_hook(learn, stream):
    """The images kept are drawn without replacement, in their order, anew for each experience."""
    seen = {}

    def see(when, learner, experience):
        signature, train = experience.signature, experience.train
        assert train.counts() == signature.counts == learner.accepts(stream_of[0].signatures[experience.index])
        seen.setdefault(experience.index, train.pixels)
        assert torch.equal(seen[experience.index], train.pixels)

    stream_of = [STREAMS[stream]()]
    done = learn(observed("rmm", see), stream_of[0], hyperparameters=options(rates=[0.5, 0.25]), budget=budget())
    for index in range(3):
        whole = done.stream[index].train.pixels
        same = (seen[index].flatten(1)[:, None] == whole.flatten(1)[None]).all(2)
        rows = same.float().argmax(1)
        assert same.sum(1).tolist() == [1] * len(rows)
        assert (rows.diff() > 0).all()  # each once, none twice, in order
        assert sum(done.stream.signatures[index].counts.values()) - len(rows) == done.record.results["given_up"][index]


def test_another_seed_keeps_other_images(learn):
    kept = []

    def see(when, learner, experience):
        if when == "before" and experience.index == 1:
            kept.append(experience.train.pixels)

    for seed in (0, 0, 1):
        learn(observed("rmm", see), hyperparameters=options(), budget=budget(), seed=seed, recipe=ONE_STEP)
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


@pytest.mark.parametrize("rates", [(0.5,), (0.75, 0.25, 0.5), (0.9, 0.0, 0.0), (0.0, 0.5, 0.25), (1.0,)])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_old_exemplars_and_new_images_are_never_more_than_the_budget_and_what_arrives(learn, stream, rates):
    arriving = [sum(s.counts.values()) for s in STREAMS[stream]().signatures]
    held = {}

    def see(when, learner, experience):
        most = 10 + arriving[experience.index]
        if when != "before" and (experience.index or when != "done"):
            assert len(learner.memory) + len(experience.train) <= most
        held[when, experience.index] = len(learner.memory)

    done = learn(observed("rmm", see), stream, hyperparameters=options(rates=rates), budget=budget(), recipe=ONE_STEP)
    given_up = done.record.results["given_up"]
    assert given_up[0] == 0
    assert held["done", 0] <= 10 + rates[0] * arriving[0]
    for index, given in enumerate(given_up):
        assert done.record.results["exemplars"][index] == held["done", index]
        if index:
            assert held["done", index] <= 10 + given
        if index > 1 and given >= given_up[index - 1]:
            assert held["prepared", index] == held["done", index - 1]  # nothing is dropped without need


def test_a_rate_of_0_leaves_m_and_not_the_number_before(learn):
    done = learn("rmm", hyperparameters=options(rates=[0.5, 0.0]), budget=budget(), recipe=ONE_STEP)
    assert done.record.results["exemplars"] == [22, 8, 6]  # 22 allowed, of 24 images; then floor(10 / 4), floor(10 / 6)


@pytest.mark.parametrize(("scope", "exemplars"), [("carried", [10, 8, 6]), ("carried+incoming", [22, 20, 18])])
def test_only_where_incoming_images_count_do_they_buy_exemplars(learn, scope, exemplars):
    done = learn("rmm", hyperparameters=options(rates=[0.5]), budget=budget(scope), recipe=ONE_STEP)
    assert done.record.results["given_up"] == [0, 12, 12]
    assert done.record.results["exemplars"] == exemplars  # floor(22 / 4), floor(22 / 6) a class: 5 and 3


def test_bytes_buy_exemplars_too(learn):
    """The bytes of the images that are given up, and no more."""
    fixed = learn("rmm", hyperparameters=options(), budget=budget(exemplars=0), recipe=ONE_STEP)
    size = sum(fixed.ledger(2)[kind] for kind in ("parameters", "buffers"))
    limit = size + 10 * (PIXELS + 1)
    most = Budget(limits=[limit], scope="carried+incoming")
    done = learn("rmm", hyperparameters=options(rates=[0.5]), budget=most, recipe=ONE_STEP)
    # at the end: (10 * 433 + 12 * 432) // 433 = 21, three a class
    assert done.record.results["exemplars"][2] == 18
    assert limit < sum(done.ledger(2).values()) <= limit + 12 * PIXELS
    assert done.record.results["over_budget"] == [None] * 3


def test_images_of_variable_size_stay_as_long_as_their_bytes_fit():
    """A JPEG of one colour has a tenth of the raw bytes: more are held than raw images would fit."""
    learner = bare("rmm", rates=[0.5], tilts=[0.0], host_options={"codec": "jpeg:50"})
    for signature in signatures([2], 40):
        learner.grow(replace(signature, image_shape=(3, 64, 64)))
    pixels = torch.arange(80, dtype=torch.uint8)[:, None, None, None].expand(80, 3, 64, 64).contiguous()
    images = Samples.from_arrays(pixels, torch.arange(2).repeat_interleave(40))
    learner.memory.replace([images])
    size = sum(tensor_bytes(tensor) for tensor, _ in learner.memory.tensors(2).values())
    later = Experience(signatures([2, 2])[1], images)
    for room, held in ((size, 80), (size // 2, 40)):
        learner.budget = Allowance(Budget(limits=[learner.fixed_bytes() + room], scope="carried+incoming"))
        assert learner.budget.exemplar_slots(learner) < 10
        learner.before_experience(later)
        assert len(learner.memory) == pytest.approx(held, abs=1)


# level 2 ------------------------------------------------------------------------------------------------------------


def tilted(tilt, images, quota=58):
    """A learner for which classes with so many images arrive, from easy to hard."""
    learner = bare("rmm", tilts=[tilt])
    learner.tilt = tilt
    learner.arriving = dict(enumerate(images))
    return learner._tilt_quotas(list(learner.arriving), quota)


def test_the_easier_half_gets_more_and_the_harder_half_less():
    assert tilted(0.1, [500] * 4) == {0: 63, 1: 63, 2: 52, 3: 52}  # 63.8 and 52.2
    assert tilted(-0.1, [500] * 4) == {0: 52, 1: 52, 2: 63, 3: 63}
    assert tilted(1.0, [500] * 2) == {0: 116, 1: 0}
    assert tilted(0.0, [500] * 2) == {0: 58, 1: 58}


def test_a_middle_class_gets_the_quota_and_so_does_a_single_one():
    assert tilted(0.5, [500] * 3, 10) == {0: 15, 2: 5}  # class 1 is left to the quota
    assert tilted(0.5, [500], 10) == {}
    assert tilted(0.5, [], 10) == {}


def test_no_class_gets_more_than_there_are_and_small_classes_are_whole():
    assert tilted(0.5, [12, 30, 30, 4], 10) == {0: 12, 2: 5}  # of three that have more than 10
    assert tilted(0.5, [10, 10], 10) == {}
    assert tilted(0.2, [12, 12], 10) == {0: 12, 1: 8}


@pytest.mark.parametrize("tilt", [-1.0, -0.3, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("quota", [0, 1, 2, 7, 58])
def test_level_2_hands_out_no_more_than_the_quota_on_average(tilt, quota):
    for images in ([500] * 10, [500] * 3, [60, 500, 59], [3, 9, 100, 8]):
        found = tilted(tilt, images, quota)
        assert sum(found.values()) <= quota * len(found)
        assert all(0 <= count <= images[slot] for slot, count in found.items())


@pytest.mark.parametrize("tilt", [0.5, -0.5])
@pytest.mark.parametrize("host", ["icarl", "foster"])
def test_harder_is_a_larger_cross_entropy_on_the_own_images_after_training(learn, host, tilt):
    losses = {}

    def see(when, learner, experience):
        if when == "trained":
            for slot in experience.new_slots:
                images = experience.train.of_class(slot)
                net = learner.boosted if host == "foster" else learner.net
                losses[slot] = F.cross_entropy(extract_outputs(net, images).logits, images.slots).item()
        if when == "done":
            counts, quota = learner.memory.counts(), 4
            easy, hard = sorted(experience.new_slots, key=losses.__getitem__)
            few, many = (2, 6) if tilt > 0 else (6, 2)
            assert (counts[hard], counts[easy]) == (few, many)
            assert quota == learner.budget.exemplar_slots(learner) // learner.num_classes

    exemplars = Budget(exemplars=24)  # at the end 4 a class
    stream = STREAMS["toy"]()

    class Last(observed("rmm", lambda when, learner, e: e.index == 2 and see(when, learner, e))):
        pass

    done = learn(Last, stream, hyperparameters=options(host, rates=[0.25], tilts=[0.0, 0.0, tilt]), budget=exemplars)
    assert len(losses) == 2 and done.record.results["exemplars"][2] == 24


def test_around_foster_the_network_of_two_branches_says_which_classes_are_hard():
    learner = bare("rmm", classes=[2, 2], host="foster", tilts=[0.5])
    learner.boosted = learner._two_backbones()
    with torch.no_grad():
        for head, slot in ((learner.net.head, 2), (learner.boosted.head, 3)):
            head.weight.zero_()
            head.bias.copy_(2 * F.one_hot(torch.tensor(slot), 4))  # the other new class is the harder one
    images = Samples.from_arrays(torch.zeros(40, 3, 12, 12, dtype=torch.uint8), torch.tensor([2, 3] * 20))
    learner.arriving = {2: 20, 3: 20}
    experience = Experience(signatures([2, 2], images=20)[1], images)
    # cross-entropies of slots 2 and 3: log(e^2 + 3) = 2.34 and 0.34 there, the other way round by the student
    assert learner.quotas(experience, 10, learner.boosted) == {3: 15, 2: 5}


def test_old_classes_keep_the_quota(learn):
    done = learn("rmm", hyperparameters=options(rates=[0.0], tilts=[0.5]), budget=Budget(exemplars=24))
    for index, quota in ((1, 6), (2, 4)):
        counts = done.learner(index).memory.counts()
        before = done.learner(index - 1).memory.counts()
        assert all(counts[slot] == min(quota, before[slot]) for slot in before)


def test_a_tilt_moves_exemplars_alone_in_the_first_experience(learn):
    flat = learn("rmm", hyperparameters=options(rates=[0.0], tilts=[0.0]), budget=Budget(exemplars=10))
    tilt = learn("rmm", hyperparameters=options(rates=[0.0], tilts=[0.5]), budget=Budget(exemplars=10))
    assert differing(flat.net(0), tilt.net(0)) == []
    assert sorted(flat.learner(0).memory.counts().values()) == [5, 5]
    assert sorted(tilt.learner(0).memory.counts().values()) == [2, 7]  # floor(2.5), floor(7.5)


# the bill, and who enforces it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("host", ["icarl", "der", "foster"])
@pytest.mark.parametrize(
    "given", [{}, {"rates": [0.5, 0.0, 0.75], "tilts": [0.5, -0.5, 0.25]}], ids=["default", "steep"]
)
def test_the_bill_before_training_is_the_ledger_after_it(learn, host, stream, scope, given):
    done = learn("rmm", stream, budget=budget(scope, 25), recipe=ONE_STEP, hyperparameters={"host": host, **given})
    for index, bill in enumerate(done.record.results["bills"]):
        assert bill["by_kind"] == done.ledger(index)
        assert bill["exemplars"] == done.record.results["exemplars"][index]


def test_carried_is_the_host_and_its_exemplars(learn):
    plain = learn("icarl", recipe=ONE_STEP)
    done = learn("rmm", budget=budget(), recipe=ONE_STEP, hyperparameters=options(rates=[0.5]))
    for index, exemplars in enumerate([22, 20, 18]):
        own = plain.ledger(index)
        assert done.ledger(index) == own | {"exemplars": PIXELS * exemplars, "labels": exemplars}
        assert done.state(index).meta == {}


class Greedy(RMM):
    """Holds on to its exemplars when it takes more of what arrives."""

    def before_experience(self, experience):
        allowance = self.budget
        self.budget = Allowance(replace(allowance.budget, scope="carried"), allowance.boundary)
        super().before_experience(experience)
        self.budget = allowance


def test_who_takes_more_and_drops_nothing_is_stopped_before_it_trains(tmp_path):
    given = {"hyperparameters": options(rates=[0.75, 0.0]), "recipe": ONE_STEP}
    stream = toy_stream()
    run = toy_run(Greedy, stream, tmp_path / "a", budget=Budget(exemplars=3, scope="carried+incoming"), **given)
    with pytest.raises(
        BudgetExceeded, match=r"carries 20 exemplars, budget.exemplars is 3 with what arrives in experience 1"
    ):
        run.execute()
    shrunk = Budget(exemplars=3, scope="carried+incoming", enforce="shrink")
    record = toy_run(Greedy, stream, tmp_path / "b", budget=shrunk, **given).execute()
    assert record.results["exemplars"][0] == 20 and record.status == "finished"


@pytest.mark.parametrize("rule", ["a_resumed_run_ends_where_the_straight_run_ends", "processes_make_no_difference"])
def test_the_contract_holds_where_incoming_images_count(rule):
    given = options("foster", rates=[0.5, 0.25], tilts=[0.5])
    getattr(rules, rule)(StrategySubject("rmm", given, STREAMS["uneven"](), budget=budget()))


def test_a_finished_run_loads_with_the_same_answers(tmp_path):
    stream = toy_stream()
    make = partial(RMM, host="icarl", rates=[0.5], tilts=[0.5])
    record = cil.train(
        make, stream, "smallconv", budget(), epochs=1, run_dir=tmp_path, threads=1, device="cpu", batch_size=8
    )
    loaded = cil.load(tmp_path)
    assert isinstance(loaded.learner, find("icarl")) and len(loaded.learner.memory) == record.results["exemplars"][-1]
    answers = torch.cat([loaded(stream.test(i).images).argmax(1) == stream.test(i).slots for i in range(3)])
    assert 100 * answers.float().mean().item() == pytest.approx(record.results["last_accuracy"], abs=1e-3)
    assert list(accumulate(record.results["given_up"])) == [0, 12, 24]


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("feature_replay", {}),
        ("linear_probe", {"rehearsal": True}),
        ("bn_tuning", {"rehearsal": True}),
        ("ecotta_cil", {"rehearsal": True, "parts": 2}),
        ("ecotta_cil", {"rehearsal": True, "parts": 2, "head": "ncm"}),
    ],
)
def test_classes_are_tilted_around_hosts_whose_outputs_are_not_those_of_their_net(tmp_path, host, more):
    class Tilting(RMM):
        toy_model = find(host).toy_model

        def quotas(self, experience, quota, net):
            found = super().quotas(experience, quota, net)
            images = experience.train
            losses = F.cross_entropy(self._logits(images, net), images.slots, reduction="none")
            means = {slot: losses[images.slots == slot].mean().item() for slot in experience.new_slots}
            easy, hard = sorted(means, key=lambda slot: means[slot])
            assert found[easy] > quota > found[hard]
            tilted.append(experience.index)
            return found

    tilted = []
    given = options(host, rates=[0.0], tilts=[0.5], host_options=more)
    run = toy_run(Tilting, toy_stream(), tmp_path, budget=budget(exemplars=20), recipe=ONE_STEP, hyperparameters=given)
    record = run.execute()
    assert record.status == "finished" and tilted == [0, 1, 2][: len(tilted)] and len(tilted) >= 2


def with_held(host, tilts, held, **more):
    """A learner whose second experience begins, with so many exemplars of the classes of the first."""
    learner = bare("rmm", host=host, host_options=more, tilts=tilts, rates=[0.0], classes=[2, 2])
    images = toy_stream()[0].train.pixels
    slots = torch.repeat_interleave(torch.tensor([*held]), torch.tensor([*held.values()]))
    learner.memory.replace([Samples.from_arrays(images[: len(slots)], slots)])
    return learner, Experience(signatures([2, 2])[1], toy_stream()[1].train)


@pytest.mark.parametrize(("tilts", "quota"), [([0.5], 10), ([0.5, 0.0], 10), ([0.0, 0.5], 15), ([0.0], 15)])
def test_floor_of_m_over_c_is_the_mean_of_easy_and_hard_classes(tilts, quota):
    """15 and 5 exemplars: of q = 10, tilted by one half; not tilted, class 1 has no more images."""
    learner, experience = with_held("bic", tilts, {0: 15, 1: 5}, split=0.2)
    assert learner.held_quota([15, 5]) == quota
    _, validation = learner.stages(experience)
    assert validation.counts() == dict.fromkeys(range(4), quota // 5)
    learner, experience = with_held("podnet", tilts, {0: 15, 1: 5})
    found = balanced_set(learner, experience, rule="random").counts()
    assert found == {0: quota, 1: 5, 2: min(12, quota), 3: min(12, quota)}


# refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"host": "lwf"}, r"strategy\.host of rmm is 'lwf', which keeps no exemplars"),
        ({"host": "derpp"}, r"strategy\.host of rmm is 'derpp', whose exemplars are not floor"),
        ({"host": "joint"}, r"strategy\.host of rmm is 'joint', which is no learner"),
        ({"host": "rmm"}, r"strategy\.host of rmm is 'rmm', which is no learner"),
        ({"host": "icral"}, r"no strategy 'icral'.*icarl"),
        ({"host_options": {"strenght": 1}}, r"unknown key strategy\.host_options\.strenght; icarl has none.*strength"),
        ({"host_options": {"make_net": 1}}, r"unknown key strategy\.host_options\.make_net; icarl has none"),
        ({"host_options": {"budget": 1}}, r"unknown key strategy\.host_options\.budget; icarl has none"),
        ({"rates": 0.3}, r"strategy\.rates of rmm is 0\.3; it must be a list of numbers"),
        ({"rates": ["a"]}, r"strategy\.rates of rmm is \['a'\]; it must be a list of numbers"),
        ({"rates": []}, r"strategy\.rates of rmm is \[\]"),
        ({"rates": [0.5, 1.5]}, r"strategy\.rates of rmm is \[0\.5, 1\.5\]; it must be a list of numbers in \[0, 1\]"),
        ({"rates": [-0.1]}, r"strategy\.rates of rmm"),
        ({"tilts": [-1.1]}, r"strategy\.tilts of rmm is \[-1\.1\]; it must be a list of numbers in \[-1, 1\]"),
    ],
)
def test_what_is_out_of_range_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        bare("rmm", **given)
