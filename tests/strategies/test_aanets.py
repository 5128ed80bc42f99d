"""AANets: a stable and a plastic branch, shares that balanced data train, the losses of LUCIR."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_runs import OF_SETTINGS, ONE_STEP, PIXELS, bare, batch, below, bits, differing, observed, signatures
from torch import nn

from cil.contract import Phase
from cil.data import Samples
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory, extract
from cil.models.base import count_parameters
from cil.strategies import find
from cil.strategies.aanets import AANets
from cil.strategies.parts import cosine_distance, margin_ranking
from cil.streams import Experience
from cil.testing import check_strategy

LEARNING = {"mixture_lr": 0.1}


def with_balanced(learner, *slots):
    """A batch beside a balanced one, as the two streams of the phase give it."""
    main, other = batch(0, 1, 2, 3), batch(*slots)
    return type(main)(main.images, main.slots, streams={"everything": main, "balanced": other})


def between(**hyperparameters):
    """Two branches, of which the plastic one has moved; a teacher of one."""
    learner = bare("aanets", classes=[2], **hyperparameters)
    learner.before_experience(Experience(signatures([2])[0], None))
    learner.grow(signatures([2, 2])[1])
    with torch.no_grad():
        for parameter in learner.net.backbone.branches[1].parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return learner


# losses -------------------------------------------------------------------------------------------------------------


def test_all_data_teach_the_branches_and_a_balanced_batch_teaches_the_shares():
    learner = between()
    learner.train_mode()
    terms = learner.loss(with_balanced(learner, 0, 3))
    shares, branches = learner.net.backbone.mixture, learner._branches()
    assert terms.keys() == {"classes", "features", "ranking", "mixture"}
    upper = torch.autograd.grad(terms["mixture"], [shares, *branches], allow_unused=True)
    assert upper[0].all() and all(gradient is None for gradient in upper[1:])
    lower = torch.autograd.grad(terms["classes"] + terms["features"], [shares, *branches], allow_unused=True)
    assert lower[0] is None and all(gradient is not None for gradient in lower[1:])
    assert len(lower) == 1 + sum(p.requires_grad for p in learner.net.parameters()) - 1
    assert all(p.requires_grad for p in [shares, *branches])  # as before


def test_the_shares_see_the_cross_entropy_of_the_balanced_batch_in_evaluation_mode():
    learner = between()
    learner.train_mode()
    statistics = bits(learner.net)
    given = with_balanced(learner, 3, 0, 3)
    term = learner.loss(given)["mixture"]
    assert learner.net.training
    learner.net.load_state_dict(statistics)
    learner.net.eval()
    logits = learner.net(given.balanced.images).logits
    assert term.item() == pytest.approx(F.cross_entropy(logits, given.balanced.slots).item(), rel=0.2)
    # the statistics that the term saw are those after the main batch
    learner.net.train()
    learner.net(given.images)
    learner.net.eval()
    logits = learner.net(given.balanced.images).logits
    assert term.item() == pytest.approx(F.cross_entropy(logits, given.balanced.slots).item(), rel=1e-5)


@pytest.mark.parametrize("mode", ["alone", "beside a balanced batch"])
def test_the_branches_learn_by_the_losses_of_lucir(mode):
    learner = between(host_options={"strength": 3.0, "ranking": 0.5, "margin": 0.4, "negatives": 1})
    learner.net.eval()
    given = batch(0, 1, 2, 3) if mode == "alone" else with_balanced(learner, 0, 3)
    terms, output = learner.loss(given), learner.net(given.images)
    old = learner.teacher(given.images).features
    cosines = output.logits / learner.net.head.scale
    assert terms["classes"].item() == pytest.approx(F.cross_entropy(output.logits, given.slots).item(), abs=1e-6)
    assert terms["features"].item() == pytest.approx(3.0 * cosine_distance(output.features, old).item(), abs=1e-5)
    expected = 0.5 * margin_ranking(cosines, given.slots, 2, 1, 0.4)
    assert terms["ranking"].item() == pytest.approx(expected.item(), abs=1e-5) and expected.item() > 0
    learner.num_classes, learner.old_classes = 60, 50
    weighed = learner.loss(given)["features"].item()
    assert weighed == pytest.approx(3 * math.sqrt(5) * cosine_distance(output.features, old).item(), rel=1e-5)


# branches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_the_first_experience_is_that_of_lucir_bit_for_bit(learn, stream):
    lucir, aanets = learn("lucir", stream).net(0), learn("aanets", stream).net(0)
    assert aanets.pop("net.backbone.mixture").numel() == 0
    assert differing({k.replace("backbone.branches.0", "backbone"): v for k, v in aanets.items()}, lucir) == []


def branch(weights, number):
    return below(weights, f"net.backbone.branches.{number}")


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_the_kernels_of_the_stable_branch_are_those_of_the_first_network_for_good(learn, stream):
    done = learn("aanets", stream)
    nets = [done.net(index) for index in range(3)]
    kernels = [f"stages.{k}.0.{part}" for k in (0, 1) for part in ("weight", "bias")]
    for before, after in ((nets[0], nets[1]), (nets[1], nets[2])):
        for name in kernels:
            assert torch.equal(branch(before, 0)[name], branch(after, 0)[name])
    stable, plastic = (differing(branch(nets[1], number), branch(nets[2], number)) for number in (0, 1))
    assert stable == sorted(set(branch(nets[2], 0)) - set(kernels))  # factors, batch norm and its statistics
    assert plastic == sorted(branch(nets[2], 1))
    assert branch(nets[0], 1) == {}


def test_a_frozen_branch_is_the_first_network_for_good(learn):
    done = learn("aanets", hyperparameters={"stable": "frozen"})
    first = branch(done.net(0), 0)
    for index in (1, 2):
        assert differing(first, branch(done.net(index), 0)) == []
        assert len(differing(first, branch(done.net(index), 1))) == len(first)


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_when_an_experience_begins_the_network_answers_as_it_did(learn, stream):
    checked = []

    def see(when, learner, experience):
        if when != "prepared" or not experience.index:
            return
        learner.net.eval()
        first = next(experience.train.batches(8))
        one, other = learner.net(first.images), learner.teacher(first.images)
        torch.testing.assert_close(one.features, other.features)
        torch.testing.assert_close(one.logits[:, : learner.old_classes], other.logits)
        assert abs(learner.loss(first)["features"].item()) < 1e-5
        checked.append(experience.index)

    learn(observed("aanets", see), stream, recipe=ONE_STEP)
    assert checked == [1, 2]


def test_new_rows_are_imprinted_and_old_ones_held_unless_told_otherwise(learn):
    seen = {}

    def see(when, learner, experience):
        seen[experience.index, when] = bits(learner.net.head)
        if when == "prepared" and experience.index:
            unit = F.normalize(extract(learner.net, experience.train.of_class(learner.num_classes - 1))).mean(0)
            found = F.normalize(learner.net.head.weight[-1], dim=0)
            assert torch.allclose(found, F.normalize(unit, dim=0), atol=1e-5) == learner.imprint

    for free in (False, True):
        given = {"hold_old": False, "imprint": False} if free else {}
        learn(observed("aanets", see), hyperparameters={"host_options": given})
        for index, old in ((1, 2), (2, 4)):
            before, after = (seen[index, when]["weight"] for when in ("prepared", "trained"))
            assert torch.equal(before[:old], after[:old]) != free
            assert (before[old:] != after[old:]).any(1).all()


# shares -------------------------------------------------------------------------------------------------------------


def shares_of(done):
    return [done.net(index)["net.backbone.mixture"].tolist() for index in range(3)]


def test_shares_start_at_one_half_are_learned_and_go_on_where_they_were(learn):
    starts = {}

    def see(when, learner, experience):
        if when == "prepared":
            starts[experience.index] = learner.net.backbone.mixture.tolist()

    done = learn(observed("aanets", see), hyperparameters=LEARNING)
    found = shares_of(done)
    assert starts == {0: [], 1: [0.5, 0.5], 2: found[1]} and found[0] == []
    assert all(0.001 < abs(a - 0.5) < 0.5 for a in found[1]) and found[2] != found[1]


def test_their_rate_is_their_own_and_at_0_they_stay(learn):
    assert shares_of(learn("aanets", hyperparameters={"mixture_lr": 0.0})) == [[], [0.5, 0.5], [0.5, 0.5]]
    slow, fast = (shares_of(learn("aanets", hyperparameters={"mixture_lr": lr}, recipe=ONE_STEP)) for lr in (0.1, 1.0))
    assert slow[1] == fast[1] == [0.5, 0.5]  # branches that are equal give no gradient, and nothing decays
    moved = [[a - 0.5 for a in found[2]] for found in (slow, fast)]
    assert all(moved[0]) and moved[1] == pytest.approx([10 * step for step in moved[0]], rel=1e-2)


def test_at_the_authors_rate_they_hardly_move(learn):
    assert all(abs(a - 0.5) < 1e-5 for found in shares_of(learn("aanets")) for a in found)


def test_as_in_the_authors_runs_their_gradients_add_up_over_an_experience_those_on_all_data_too():
    learner = between(share_gradients="accumulated")
    learner.net.eval()
    shares, given, expected = learner.net.backbone.mixture, with_balanced(learner, 0, 3), 0
    for _ in range(3):
        terms = learner.loss(given)
        own = [torch.autograd.grad(term, shares, retain_graph=True, allow_unused=True)[0] for term in terms.values()]
        assert sum(gradient is not None and bool(gradient.any()) for gradient in own) >= 3  # not the mixture alone
        expected = expected + sum(gradient for gradient in own if gradient is not None)
        sum(terms.values()).backward()
        learner.adjust_gradients(given)
        torch.testing.assert_close(shares.grad, expected, rtol=1e-4, atol=1e-6)
        learner.net.zero_grad(set_to_none=True)


def test_added_up_they_move_further_and_nothing_of_it_is_carried(learn):
    fresh, added = (
        learn("aanets", hyperparameters={"mixture_lr": 1e-3, "share_gradients": how})
        for how in ("fresh", "accumulated")
    )
    moved = [sum(abs(a - 0.5) for a in shares_of(done)[1]) for done in (fresh, added)]
    assert moved[1] > 2 * moved[0] > 0
    assert fresh.ledger(2) == added.ledger(2)


@pytest.mark.parametrize(("stream", "counts"), [
    ("toy", {1: [5] * 4, 2: [2] * 6}), ("uneven", {1: [3] * 4, 2: [2] * 6}),
])  # fmt: skip
def test_shares_are_trained_on_as_many_images_of_each_class(learn, stream, counts):
    found = {}

    class Watched(AANets):
        def phases(self, experience):
            for phase in super().phases(experience):
                found[experience.index] = phase.data, self.memory.samples().pixels, experience.train
                yield phase

    learn(Watched, stream, recipe=ONE_STEP)
    assert not isinstance(found[0][0], dict)
    for index in (1, 2):
        data, held, new = found[index]
        assert list(data["balanced"].counts().values()) == counts[index]
        assert len(data["everything"]) == len(held) + len(new)
        assert torch.equal(data["balanced"].pixels[: len(held)], held)


def test_without_exemplars_the_shares_stay_at_one_half(learn):
    done = learn("aanets", budget=Budget(exemplars=0), hyperparameters=LEARNING, recipe=ONE_STEP)
    assert shares_of(done) == [[], [0.5, 0.5], [0.5, 0.5]]


# what is carried ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stable", ["scaled", "frozen"])
def test_carried_bytes_are_those_of_two_branches_their_factors_and_shares(learn, stable):
    """4 (2 P + F + S + d C + 1) and 4 (2 B) from the second experience on; F factors, S stages."""
    done = learn("aanets", hyperparameters={"stable": stable})
    backbone = done.learner(0).net.backbone.branches[0]
    p, b = count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers())
    factors = 16 * 3 + 32 * 16 if stable == "scaled" else 0
    for index, held in enumerate((10, 8, 6)):
        branches = 2 * p + factors + 2 if index else p
        expected = {"parameters": 4 * (branches + 32 * 2 * (index + 1) + 1), "buffers": 4 * b * (2 if index else 1)}
        assert done.ledger(index) == expected | {"exemplars": PIXELS * held, "labels": held}
        assert done.state(index).meta == {}
        survey = done.record.results["ledger"][index]["totals"]["survey"]
        assert survey["total"] == 4 * branches + PIXELS * held


# hosts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("host", ["lucir", "podnet", "icarl", "wa"])
def test_until_there_are_two_branches_it_is_the_host_bit_for_bit(learn, host, stream):
    def renamed(weights):
        return {name.replace("backbone.branches.0", "backbone"): value for name, value in weights.items()}

    found, plain = learn("aanets", stream, hyperparameters={"host": host}), learn(host, stream)
    first = renamed(found.state(0).tensors)
    assert first.pop("net.backbone.mixture").numel() == 0
    assert differing(first, dict(plain.state(0).tensors)) == []
    assert found.state(0).meta == plain.state(0).meta
    assert differing(found.net(1), found.net(2))


@pytest.mark.parametrize("host", ["podnet", "icarl", "replay"])
def test_around_another_host_the_branches_learn_by_its_loss_and_the_shares_by_balanced_data(learn, host):
    learner = between(host=host)
    assert isinstance(learner, find(host)) and isinstance(learner, AANets)
    learner.train_mode()
    found = learner.loss(with_balanced(learner, 0, 3))
    shares, branches = learner.net.backbone.mixture, learner._branches()
    mixture = found.pop("mixture")
    upper = torch.autograd.grad(mixture, [shares, *branches], allow_unused=True)
    assert upper[0].all() and all(gradient is None for gradient in upper[1:])
    lower = torch.autograd.grad(sum(found.values()), [shares, *branches], allow_unused=True)
    assert lower[0] is None and all(gradient is not None for gradient in lower[1:])
    options = {"tune_epochs": 1} if host == "podnet" else {}
    moved = shares_of(learn("aanets", hyperparameters={**LEARNING, "host": host, "host_options": options}))
    assert moved[0] == [] and all(1e-4 < abs(a - 0.5) < 0.5 for a in moved[2])


def test_a_second_stage_of_the_host_leaves_the_shares_alone(learn):
    seen = {}

    class Watched(AANets):
        def phases(self, experience):
            for phase in super().phases(experience):
                yield phase
                if experience.index:
                    seen[experience.index, phase.name] = self.net.backbone.mixture.tolist()

    learn(Watched, hyperparameters={**LEARNING, "host": "podnet", "host_options": {"tune_epochs": 1}})
    for index in (1, 2):
        assert seen[index, "main"] == seen[index, "tune"] != [0.5, 0.5]


def test_a_main_stage_of_the_host_by_another_loss_has_no_second_stream(learn):
    streams = []

    class Watched(AANets):
        def phases(self, experience):
            for phase in super().phases(experience):
                streams.append((experience.index, phase.name, not isinstance(phase.data, Samples)))
                yield phase

    class Staged(find("icarl")):
        def phases(self, experience):
            yield from super().phases(experience)
            yield Phase("more", experience.train, self.more)

        def more(self, batch):
            return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    class Both(Watched, Staged):
        pass

    learn(Both, hyperparameters={**LEARNING, "host": "icarl"}, recipe=ONE_STEP)
    assert streams == [(index, name, name == "main" and index > 0) for index in range(3) for name in ("main", "more")]


def test_rmm_around_aanets_around_a_host(learn):
    """The host of a host is among its options."""
    given = {"host": "aanets", "host_options": {"host": "icarl", **LEARNING}, "rates": [0.0], "tilts": [0.0]}
    both, alone = learn("rmm", hyperparameters=given), learn("aanets", hyperparameters={"host": "icarl", **LEARNING})
    assert differing(dict(both.state(2).tensors), dict(alone.state(2).tensors)) == []
    assert [kind.__name__ for kind in type(both.learner(2)).__mro__][1:5] == ["RMM", "AANets", "AANets", "Wrapper"]


def test_a_host_keeps_the_contract():
    check_strategy("aanets", rules=OF_SETTINGS, host="podnet", host_options={"tune_epochs": 1})


@pytest.mark.parametrize(("given", "message"), [
    ({"host": "der"}, "strategy.host of aanets is 'der', whose network is not one backbone and one head all along; "
                      "take another, as lucir, podnet or icarl"),
    ({"host": "lwf"}, "strategy.host of aanets is 'lwf', which keeps no exemplars"),
    ({"host": "joint"}, "strategy.host of aanets is 'joint', which is no learner of its own"),
    ({"host": "aanets"}, "strategy.host of aanets is 'aanets', which is no learner of its own"),
    ({"host": "derpp"}, r"strategy.host of aanets is 'derpp', whose exemplars are not floor\(M / C\)"),
    ({"host": "bic"}, "strategy.host of aanets is 'bic', which holds out images that would teach the shares; take "),
    ({"host": "lucri"}, "no strategy 'lucri'.*lucir"),
    ({"host_options": {"strenght": 2.0}}, "unknown key strategy.host_options.strenght; lucir has none; .*strength"),
    ({"mixture_lr": -1e-3}, "strategy.mixture_lr of aanets is -0.001; it must be 0 or more"),
    ({"stable": "free"}, "strategy.stable of aanets is 'free'; allowed: scaled, frozen"),
    ({"host_options": {"negatives": 0}}, "strategy.negatives of lucir is 0; it must be 1 or more"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        bare("aanets", **given)


class Odd(nn.Module):
    feature_dim, survey_parameters = 3, 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return self.weight * images.mean((2, 3)), ()


def test_a_backbone_without_levels_is_refused():
    with pytest.raises(ConfigError, match="no levels to mix"):
        AANets(NetFactory(partial(Odd)), Budget(exemplars=10))
