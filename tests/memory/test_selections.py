"""Which samples become exemplars: every rule on numbers done by hand, and rules that draw, over many keyed draws."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cil.errors import ConfigError, ShapeError, TrainingError
from cil.memory import Gradients, Predictions, class_means, herd, register_selection, rules, selection, selections, unit
from cil.memory.rules import allocation, complexities, farthest_first


def at_angles(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


FIVE = at_angles(0, 10, 40, 90, 25)


def keyed(key: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(key)


def choose(name: str, features: Tensor, count: int, key: int = 0) -> list[int]:
    return selection(name)(features, count, keyed(key)).tolist()


def by_definition(features: Tensor, count: int) -> list[int]:
    """Algorithm 4 as printed: p_k = argmin || mu - (phi(x) + sum of those before) / k ||, the lowest row first."""
    mean = features.mean(0)
    picked: list[int] = []
    for k in range(1, count + 1):
        before = features[picked].sum(0)
        left = [row for row in range(len(features)) if row not in picked]
        picked.append(min(left, key=lambda row: ((mean - (features[row] + before) / k).norm().item(), row)))
    return picked


def test_unit_vectors_at_0_10_40_90_and_25_degrees_are_herded_in_the_order_4_2_1_3_0():
    assert FIVE.mean(0).tolist() == pytest.approx([0.731432, 0.447811], abs=1e-6)
    assert herd(FIVE, 5).tolist() == [4, 2, 1, 3, 0]


def test_one_dimension_by_hand():
    # mean 2; 1 is nearest; then (1 + 5) / 2 = 3 is nearer than (1 + 0) / 2
    assert herd(torch.tensor([[0.0], [1.0], [5.0]]), 3).tolist() == [1, 2, 0]


def test_the_first_pick_is_the_sample_nearest_to_the_mean():
    features = torch.randn(50, 8, generator=keyed())
    nearest = (features - features.mean(0)).norm(dim=1).argmin()
    assert herd(features, 1).tolist() == [nearest]


rows = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=12)


@given(rows, st.integers(0, 14), st.integers(0, 14))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_prefix_of_a_herd_is_a_herd_without_duplicates(points, few, more):
    features = torch.tensor(points, dtype=torch.float32)
    few, more = sorted((few, more))
    chosen = herd(features, more).tolist()
    assert chosen[:few] == herd(features, few).tolist()
    assert len(chosen) == len(set(chosen)) == min(more, len(points))


@given(st.integers(1, 25), st.integers(1, 9), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_herding_is_algorithm_4(count, dim, key):
    features = unit(torch.randn(25, dim, generator=keyed(key), dtype=torch.float64))
    if dim > 1:  # unit numbers are all 1 or -1: only ties
        assert herd(features, count).tolist() == by_definition(features, count)


def test_all_samples_are_chosen_where_as_many_are_asked_for_and_their_running_mean_is_the_mean():
    features = torch.randn(20, 4, generator=keyed())
    order = herd(features, 99)
    assert sorted(order.tolist()) == list(range(20))
    torch.testing.assert_close(features[order].mean(0), features.mean(0))


def test_ties_go_to_the_lowest_row():
    assert herd(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 4).tolist() == [0, 1, 2, 3]
    assert herd(torch.ones(6, 3), 6).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("key", range(30))
def test_copies_of_a_sample_are_chosen_in_order_whatever_a_matrix_product_rounds(key):
    generator = keyed(key)
    distinct = torch.randn(12, 1 + 2 * key, generator=generator)
    which = torch.randint(12, (41 + key,), generator=generator)
    order = herd(distinct[which], len(which))
    for sample in range(12):
        copies = order[which[order] == sample]
        assert copies.tolist() == sorted(copies.tolist())


def test_herding_looks_at_directions_and_not_at_lengths():
    lengths = torch.tensor([3.0, 0.1, 7.0, 1.0, 20.0])[:, None]
    assert choose("herding", FIVE * lengths, 5) == [4, 2, 1, 3, 0]


def test_closest_to_mean_sorts_by_distance_alone():
    # the mean points to 31.5 degrees: 25 and 40 first, 90 last; herding would take 90 before 0 to balance
    assert choose("closest_to_mean", FIVE, 5) == [4, 2, 1, 0, 3]
    assert choose("closest_to_mean", FIVE, 2) == [4, 2]
    assert choose("closest_to_mean", torch.ones(4, 2), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["herding", "closest_to_mean"])
def test_rules_over_features_refuse_what_they_cannot_measure(name):
    with pytest.raises(ShapeError, match="N > 0"):
        choose(name, torch.empty(0, 3), 1)
    with pytest.raises(TrainingError, match="not finite"):
        choose(name, torch.tensor([[1.0], [float("nan")]]), 1)


@pytest.mark.parametrize("name", ["herding", "closest_to_mean", "random", "reservoir"])
def test_a_rule_gives_at_most_as_many_distinct_rows_as_there_are_and_the_same_for_the_same_key(name):
    features = torch.randn(9, 3, generator=keyed())
    for count in (0, 1, 4, 9, 20):
        chosen = choose(name, features, count, key=3)
        assert len(set(chosen)) == len(chosen) == min(count, 9)
        assert set(chosen) <= set(range(9))
        assert choose(name, features, count, key=3) == chosen


@pytest.mark.parametrize("name", ["random", "reservoir"])
def test_every_sample_is_as_likely_to_be_kept_and_as_likely_to_come_first(name):
    draws, samples, count = 3_000, 8, 3
    kept, first = torch.zeros(samples), torch.zeros(samples)
    for key in range(draws):
        chosen = choose(name, torch.empty(samples, 0), count, key)
        kept[chosen] += 1
        first[chosen[0]] += 1
    for seen, share in ((kept, count / samples), (first, 1 / samples)):  # binomial: five standard deviations
        assert (seen - draws * share).abs().max() < 5 * math.sqrt(draws * share * (1 - share))


def test_where_all_fit_the_first_of_a_reservoir_is_any_sample():
    assert {choose("reservoir", torch.empty(4, 0), 9, key)[0] for key in range(60)} == {0, 1, 2, 3}


NEEDED = {
    "random": "nothing",
    "reservoir": "nothing",
    "herding": "features",
    "closest_to_mean": "features",
    "k_center": "features",
    "k_means": "features",
    "cluster_complexity": "features",
    "entropy": "logits",
    "margin": "logits",
    "loss": "logits",
    "confidence": "logits",
    "gradient_diversity": "gradients",
}
OPTIONS = (
    "entropy:typical",
    "margin:true_class",
    "loss:lowest",
    "k_center:random",
    "k_means:3",
    "cluster_complexity:hard",
    "cluster_complexity:random",
)
RULES = (*NEEDED, *OPTIONS)


def of_class(needs: str, features: Tensor, key: int = 0):
    """What a rule gets that needs this, of samples of slot 1 of 4."""
    logits = 3 * torch.randn(len(features), 4, generator=keyed(key), dtype=torch.float64)
    slots = torch.ones(len(features), dtype=torch.int64)
    return {
        "nothing": torch.empty(len(features), 0),
        "features": features,
        "logits": Predictions(logits, slots),
        "gradients": Gradients.of(logits, features, slots),
    }[needs]


def test_each_rule_says_what_it_needs():
    assert {name: selection(name).needs for name in NEEDED} == NEEDED
    built_in = {name for name, rule in selections._SELECTIONS.items() if rule.choose.__module__.startswith("cil.")}
    assert set(NEEDED) == built_in


@pytest.mark.parametrize("name", RULES)
@given(st.integers(1, 30), st.integers(0, 35), st.integers(0, 35), st.integers(0, 10**6), st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_rule_gives_distinct_rows_the_same_for_the_same_key_and_the_best_first(name, rows, few, more, key, copies):
    rule = selection(name)
    features = torch.randn(rows, 5, generator=keyed(key), dtype=torch.float64)
    features = features[torch.randint(1 + rows // 4, (rows,), generator=keyed(key))] if copies else features
    seen, (few, more) = of_class(rule.needs, features, key), sorted((few, more))
    chosen = rule(seen, more, keyed(key))
    assert chosen.dtype == torch.int64 and chosen.device.type == "cpu"
    assert len(chosen) == len(set(chosen.tolist())) == min(more, rows)
    assert set(chosen.tolist()) <= set(range(rows))
    assert rule(seen, more, keyed(key)).tolist() == chosen.tolist()
    if name != "reservoir":
        assert rule(seen, few, keyed(key)).tolist() == chosen[:few].tolist()


@pytest.mark.parametrize("name", [name for name in RULES if selection(name).needs in ("features", "gradients")])
def test_rules_do_not_see_how_features_are_rotated(name):
    rule = selection(name)
    for key in range(5):
        features = torch.randn(60, 8, generator=keyed(key), dtype=torch.float64)
        turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=keyed(key + 100), dtype=torch.float64))
        first = rule(of_class(rule.needs, features, key), 40, keyed(key))
        turned = rule(of_class(rule.needs, features @ turn, key), 40, keyed(key))
        assert first.tolist() == turned.tolist()


@pytest.mark.parametrize("name", [name for name in RULES if selection(name).needs != "nothing"])
def test_rules_that_look_refuse_nothing_and_what_is_not_finite(name):
    rule = selection(name)
    with pytest.raises(ShapeError, match="N > 0"):
        rule(of_class(rule.needs, torch.empty(0, 3)), 1, keyed())
    broken = of_class(rule.needs, torch.randn(3, 2))
    part = broken if isinstance(broken, Tensor) else broken[0]
    part[1] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        rule(broken, 1, keyed())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("herding:fast", r"strategy\.selection is 'herding:fast'; allowed: herding$"),
        ("herding:", r"strategy\.selection is 'herding:'"),
        ("entropy:low", r"allowed: entropy, entropy:uncertain, entropy:typical"),
        ("k_means:0", r"'k_means:0'; allowed: k_means, k_means:NUMBER"),
        ("k_means:NUMBER", r"'k_means:NUMBER'"),
        ("k_means:many", r"'k_means:many'"),
        ("entropie:typical", r"no selection rule 'entropie' .*did you mean 'entropy'"),
    ],
)
def test_an_option_that_a_rule_does_not_have_is_refused_in_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        selection(name)
    assert "\n" not in str(caught.value)


def test_a_rule_that_needs_what_nobody_gives_is_refused():
    with pytest.raises(ConfigError, match="needs 'feature'; did you mean 'features'"):
        register_selection("mine", needs="feature")


# by what the network answers ------------------------------------------------------------------------------------------

# probabilities of three classes; the second is the true one
ANSWERS = torch.tensor([[0.1, 0.8, 0.1], [0.4, 0.35, 0.25], [0.5, 0.48, 0.02], [0.05, 0.05, 0.9]])
LOGITS = ANSWERS.double().log() + torch.tensor([[0.0], [5.0], [-2.0], [1.0]])  # a constant a row changes no probability


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("entropy", [1, 2, 0, 3]),  # 1.081, 0.777, 0.639, 0.395
        ("entropy:uncertain", [1, 2, 0, 3]),
        ("entropy:typical", [3, 0, 2, 1]),
        ("margin", [2, 1, 0, 3]),  # 0.02, 0.05, 0.7, 0.85
        ("margin:true_class", [2, 3, 0, 1]),  # logits -2.73, -2.0, -0.22, 3.95
        ("loss", [3, 1, 2, 0]),  # true probabilities 0.05, 0.35, 0.48, 0.8
        ("loss:lowest", [0, 2, 1, 3]),
        ("confidence", [1, 2, 0, 3]),  # 0.4, 0.5, 0.8, 0.9
    ],
)
def test_rules_over_logits_by_hand(name, order):
    seen = Predictions(LOGITS, torch.ones(4, dtype=torch.int64))
    assert selection(name)(seen, 4, keyed()).tolist() == order
    assert selection(name)(seen, 2, keyed()).tolist() == order[:2]


@pytest.mark.parametrize("name", ["entropy", "entropy:typical", "margin", "loss", "loss:lowest", "confidence"])
def test_equal_answers_go_by_row(name):
    seen = Predictions(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))
    assert selection(name)(seen, 5, keyed()).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", [name for name in RULES if selection(name).needs == "logits"])
def test_with_a_single_class_seen_there_is_still_an_answer(name):
    seen = Predictions(torch.arange(3.0)[:, None], torch.zeros(3, dtype=torch.int64))
    assert selection(name)(seen, 9, keyed()).tolist() == [0, 1, 2]


# by coverage ----------------------------------------------------------------------------------------------------------


def test_k_center_on_0_1_2_10_from_0_takes_10_then_2():
    points = np.array([0.0, 1.0, 2.0, 10.0])
    assert farthest_first(0, 9, lambda row: -abs(points - points[row])).tolist() == [0, 3, 2, 1]


def test_k_center_starts_nearest_to_the_mean_and_covers_by_angle():
    # the mean points to 31.5 degrees: 25 is nearest; then 90 (65 away), 0 (25), 10 and 40 (10 and 15)
    assert choose("k_center", FIVE * torch.tensor([[3.0], [0.1], [7.0], [1.0], [20.0]]), 5) == [4, 3, 0, 2, 1]


def test_k_center_may_start_anywhere():
    assert {choose("k_center:random", FIVE, 1, key)[0] for key in range(60)} == {0, 1, 2, 3, 4}


@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_k_center_covers_within_twice_the_best_radius(count, centres, key):
    features = unit(torch.randn(count, 3, generator=keyed(key), dtype=torch.float64))
    chosen = choose("k_center", features, centres)
    far = torch.cdist(features, features)
    radius = far[:, chosen].amin(1).max()
    if centres < count:  # the centres and the farthest row are that far from each other: no better cover than half
        apart = far[chosen][:, chosen] + torch.eye(len(chosen)) * 9
        assert apart.min() >= radius - 1e-7


def one_by_one(logits: Tensor, features: Tensor, slots: Tensor) -> Tensor:
    """Gradients of each sample's loss by weight and bias of a linear layer, one row each: by autograd."""
    head = torch.nn.Linear(features.shape[1], logits.shape[1], dtype=torch.float64)
    rows = []
    for answer, feature, slot in zip(logits, features, slots, strict=True):
        shift = (answer - head(feature)).detach()  # so that the layer gives these logits
        loss = F.cross_entropy(head(feature)[None] + shift, slot[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))]))
    return torch.stack(rows)


def test_gradients_in_factors_have_the_inner_products_of_those_of_autograd():
    features = torch.randn(7, 5, generator=keyed(), dtype=torch.float64)
    logits = torch.randn(7, 4, generator=keyed(1), dtype=torch.float64)
    slots = torch.tensor([0, 1, 2, 3, 1, 1, 0])
    whole = one_by_one(logits, features, slots)
    errors, inputs = Gradients.of(logits, features, slots)
    torch.testing.assert_close((errors @ errors.T) * (inputs @ inputs.T), whole @ whole.T)


@pytest.mark.parametrize("key", range(5))
def test_gradient_diversity_is_greedy_by_the_largest_cosine_with_those_chosen(key):
    features = torch.randn(14, 5, generator=keyed(key), dtype=torch.float64)
    seen = of_class("gradients", features, key)
    logits, slots = of_class("logits", features, key)
    rows = F.normalize(one_by_one(logits, features, slots))
    expected = [int((rows @ rows.mean(0)).argmax())]
    while len(expected) < 9:
        score = (rows @ rows[expected].T).amax(1)
        expected.append(min(set(range(14)) - set(expected), key=lambda row: score[row].item()))
    assert selection("gradient_diversity")(seen, 9, keyed()).tolist() == expected


# by clusters ----------------------------------------------------------------------------------------------------------


def test_k_means_takes_of_each_cluster_the_nearest_then_the_second_the_larger_cluster_first():
    # three clusters with centres at 0, 90 and 180 degrees
    rows = at_angles(-8, 1, 7, 90, 84, 180, 96, 0, 176, 184.5)
    first, *rest = (choose("k_means:3", rows, 10, key) for key in range(5))
    assert first == [7, 3, 5, 1, 4, 8, 2, 6, 9, 0]
    assert all(other == first for other in rest)


def test_the_number_of_clusters_is_the_one_given():
    rows = at_angles(-8, 1, 7, 90, 84, 180, 96, 0, 176, 184.5)
    groups = [0, 0, 0, 1, 1, 2, 1, 0, 2, 2]
    for key in range(5):
        assert sorted(groups[row] for row in choose("k_means:3", rows, 3, key)) == [0, 1, 2]
        assert choose("k_means:1", rows, 10, key) == choose("closest_to_mean", rows, 10)


def test_an_allocation_is_nearest_to_the_shares_that_sums_up_and_keeps_within_the_clusters():
    shares, sizes = np.array([0.5, 0.3, 0.2]), np.array([5, 50, 50])
    (found,) = allocation(shares, sizes, np.array([40]))
    assert found.tolist() == pytest.approx([5, 19.5, 15.5])  # 20, 12, 8 wanted; lambda 7.5
    (few,) = allocation(shares, sizes, np.array([2]))
    assert few.tolist() == pytest.approx([2 / 3] * 3)  # not even one each
    (floor,) = allocation(np.array([0.98, 0.01, 0.01]), np.array([50, 50, 50]), np.array([20]))
    assert floor.tolist() == pytest.approx([18, 1, 1])
    every = allocation(shares, sizes, np.arange(1, 106))
    assert np.allclose(every.sum(1), np.arange(1, 106))
    assert (every <= sizes + 1e-9).all() and (np.diff(every, axis=0) >= -1e-9).all()
    assert every[-1].tolist() == pytest.approx([5, 50, 50])


def test_complexity_is_width_times_distance_to_the_other_clusters():
    rows = at_angles(-10, 10, 80, 100, 180).numpy()
    found = complexities(rows, [np.array([0, 1]), np.array([2, 3]), np.array([4])])
    wide = 1 - math.cos(math.radians(10))
    # distances: 1 from 0 to 90 degrees and from 90 to 180, 2 from 0 to 180
    assert found[:2].tolist() == pytest.approx([wide * 1.5, wide * 1.0])
    assert found[2] == pytest.approx(wide * 1.25)  # one sample has no width: the mean of the others
    assert complexities(rows, [np.arange(5)]).tolist() == [0]


def test_cluster_complexity_takes_more_of_the_wide_cluster_and_the_easy_or_the_hard_ones(monkeypatch):
    monkeypatch.setattr(rules, "CLUSTERS", 2)
    narrow, wide = torch.linspace(-1, 1, 21), torch.linspace(60, 150, 31)  # centres at 0 and 105 degrees
    rows = at_angles(*narrow.tolist(), *wide.tolist())
    for key in range(3):
        easy, hard = (choose(f"cluster_complexity:{option}", rows, 20, key) for option in ("easy", "hard"))
        assert easy == choose("cluster_complexity", rows, 20, key)
        for chosen in (easy, hard):
            shares = rules._softmax(complexities(rows.numpy(), [np.arange(21, 52), np.arange(21)]) / 0.5)
            in_wide = sum(row >= 21 for row in chosen)
            assert in_wide == pytest.approx(20 * shares[0], abs=1) and in_wide > 10
        assert (easy[0], easy[1]) == (21 + 15, 10)  # the middle of either, the wide one first
        assert {hard[0], hard[1]} <= {21, 51, 0, 20}  # the ends
        assert max(abs(narrow[row].item()) for row in easy if row < 21) < 0.6
        assert min(abs(narrow[row].item()) for row in hard if row < 21) > 0.4


def test_cluster_complexity_at_random_keeps_the_shares(monkeypatch):
    monkeypatch.setattr(rules, "CLUSTERS", 2)
    rows = at_angles(*torch.linspace(-1, 1, 21).tolist(), *torch.linspace(60, 150, 31).tolist())
    draws = [choose("cluster_complexity:random", rows, 20, key) for key in range(40)]
    expected = sum(row >= 21 for row in choose("cluster_complexity", rows, 20))
    assert {sum(row >= 21 for row in chosen) for chosen in draws} == {expected}
    assert len({row for chosen in draws for row in chosen}) > 45


# by name --------------------------------------------------------------------------------------------------------------


def test_a_registered_rule_is_found_by_name_and_an_unknown_one_refused_with_the_nearest(monkeypatch):
    monkeypatch.setattr(selections, "_SELECTIONS", dict(selections._SELECTIONS))

    @register_selection("last")
    def last(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return torch.arange(len(features)).flip(0)[:count]

    assert choose("last", FIVE, 2) == [4, 3]
    with pytest.raises(ConfigError, match=r"strategy\.selection.*did you mean 'herding'"):
        selection("herdin")


def test_means_of_exemplars_are_unit_means_of_unit_features():
    features = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.5]])
    means = class_means(features, torch.tensor([0, 0, 1]), num_classes=2)
    half = math.sqrt(0.5)
    torch.testing.assert_close(means, torch.tensor([[half, half], [0.0, 1.0]]))
    assert means.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_means_do_not_see_a_common_factor_and_distance_agrees_with_the_dot_product():
    features, slots = torch.randn(40, 6, generator=keyed()), torch.arange(40) % 4
    means = class_means(features, slots, 4)
    torch.testing.assert_close(class_means(9 * features, slots, 4), means)
    queries = unit(torch.randn(30, 6, generator=keyed(1)))
    assert torch.equal(torch.cdist(queries, means).argmin(1), (queries @ means.T).argmax(1))


def test_a_class_without_exemplars_has_no_mean():
    means = class_means(torch.eye(2), torch.tensor([0, 2]), num_classes=3)
    assert means.isnan().any(dim=1).tolist() == [False, True, False]


def test_rules_of_other_packages_need_what_they_were_registered_with_and_else_features(monkeypatch):
    monkeypatch.setattr(selections, "_SELECTIONS", dict(selections._SELECTIONS))

    def plain(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return torch.arange(len(features))[:count]

    registered = register_selection("theirs", needs="logits")(lambda seen, count, generator: seen.slots[:count])
    points = [SimpleNamespace(name="plain", load=lambda: plain), SimpleNamespace(name="alias", load=lambda: registered)]
    monkeypatch.setattr(selections, "points", lambda group: points)
    assert [selection(name).needs for name in ("plain", "alias")] == ["features", "logits"]
    assert choose("plain", FIVE, 2) == [0, 1]
