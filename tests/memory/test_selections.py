"""Which samples become exemplars: herding on numbers done by hand, and rules that draw, over many keyed draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cil.errors import ConfigError, ShapeError, TrainingError
from cil.memory import class_means, herd, register_selection, selection, selections, unit
from cil.memory.selections import uses_features


def at_angles(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


FIVE = at_angles(0, 10, 40, 90, 25)  # the specification's fixture, section 1.3


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


def test_only_rules_that_draw_need_no_features():
    needed = {name: uses_features(selection(name)) for name in ("herding", "closest_to_mean", "random", "reservoir")}
    assert needed == {"herding": True, "closest_to_mean": True, "random": False, "reservoir": False}


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
