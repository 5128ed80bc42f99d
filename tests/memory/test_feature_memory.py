"""Stored features and prototypes: what comes back, what it costs, what is merged, and what is drawn."""

import pytest
import torch
from torch import Tensor

from cil.data import Augment
from cil.engine.loader import PhaseLoader
from cil.errors import ConfigError, ShapeError, StateError
from cil.memory import Allowance, Budget, FeatureMemory, Prototypes, feature_samples, herd, tensor_bytes, unit

IMAGE = (3, 12, 12)


def keyed(key: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(key)


def vectors(count: int, dim: int = 6, key: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=keyed(key))


def carried(memory: FeatureMemory, num_classes: int = 10) -> dict[str, Tensor]:
    return {name: tensor for name, (tensor, _) in memory.tensors(num_classes).items()}


def filled(bits: int = 32, dim: int = 6) -> FeatureMemory:
    memory = FeatureMemory(dim, bits)
    memory.replace([memory.packed(vectors(5, dim), torch.tensor([2, 0, 2, 1, 0]))])
    return memory


# what comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "error"), [(32, 0.0), (16, 2**-11), (8, 0.5 / 127)])
def test_features_come_back_class_by_class_within_the_rounding_of_their_type(bits, error):
    memory = filled(bits)
    assert memory.slots.tolist() == [0, 0, 1, 2, 2]
    expected = vectors(5)[[1, 4, 3, 0, 2]]
    largest = expected.abs().amax(1, keepdim=True)
    assert ((memory.features() - expected).abs() <= error * largest * 1.001).all()
    assert memory.features().dtype == torch.float32


def test_eight_bits_are_127ths_of_the_largest_value_of_a_vector():
    memory = FeatureMemory(3, 8)
    packed = memory.packed(torch.tensor([[12.7, -0.12, 0.06], [0.0, 0.0, 0.0], [-254.0, 1.0, 3.0]]), torch.zeros(3))
    assert packed.extras["features"].tolist() == [[127, -1, 1], [0, 0, 0], [-127, 0, 2]]  # 0.5 and 1.5: to even
    assert packed.extras["scales"].tolist() == pytest.approx([0.1, 0, 2])
    assert memory.unpacked(packed)[0].tolist() == pytest.approx([12.7, -0.1, 0.1])


def test_what_sixteen_bits_cannot_hold_is_the_largest_they_can_and_not_infinite():
    memory = FeatureMemory(2, 16)
    assert memory.unpacked(memory.packed(torch.tensor([[1e6, -1e6]]), torch.zeros(1))).tolist() == [[65504, -65504]]


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_the_rule_chooses_by_the_features_as_they_are_stored_and_keeps_a_prefix(bits):
    memory, features = FeatureMemory(6, bits), vectors(40)
    packed = memory.packed(features, torch.zeros(40))
    memory.rebuild(packed, 7, memory.unpacked, keyed())
    order = herd(unit(memory.unpacked(packed)), 7)
    first = memory.features()
    assert torch.equal(first, memory.unpacked(packed)[order])
    memory.rebuild(memory.packed(vectors(9, key=1), torch.ones(9)), 3, memory.unpacked, keyed())
    assert memory.counts() == {0: 3, 1: 3}
    assert torch.equal(memory.features()[:3], first[:3])
    memory.rebuild(memory.packed(vectors(4, key=2), torch.zeros(4)), 5, memory.unpacked, keyed())
    assert memory.counts() == {0: 5, 1: 3}  # three held and four that arrive were the pool


# what it costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "each"), [(32, 3072), (16, 1536), (8, 768 + 4)])
def test_the_bytes_of_a_feature_of_768_values_and_its_label(bits, each):
    memory = FeatureMemory(768, bits)
    assert memory.item_bytes(IMAGE, 100) == each + 1
    assert memory.item_bytes((3, 224, 224), 300) == each + 2
    assert memory.item_bytes(IMAGE, 100, "survey") == each
    assert memory.item_kinds(IMAGE, 100) == {"features": each, "labels": 1}
    memory.replace([memory.packed(vectors(4, 768), torch.tensor([0, 0, 1, 1]))])
    assert sum(map(tensor_bytes, carried(memory).values())) == 4 * (each + 1)
    assert memory.survey_bytes() == 4 * each
    assert memory.item_kinds(IMAGE, 100) == {"features": each, "labels": 1}  # the same once there are some
    kinds = {name: kind for name, (_, kind) in memory.tensors(10).items()}
    scales = {"scales": "features"} if bits == 8 else {}
    assert kinds == {"features": "features", "slots": "labels"} | scales


class OneMemory:
    def __init__(self, memory: FeatureMemory) -> None:
        self.memory, self.num_classes, self.image_shape = memory, 10, IMAGE

    def fixed_bytes(self, convention: str) -> int:
        return 11

    def memories(self) -> dict[str, FeatureMemory]:
        return {"memory": self.memory}


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("limit", [11, 300, 1234])
def test_a_budget_in_bytes_holds_as_many_as_fit_and_not_one_more(bits, limit):
    memory = FeatureMemory(6, bits)
    slots = Allowance(Budget(limits=[limit])).exemplar_slots(OneMemory(memory))
    memory.replace([memory.packed(vectors(slots), torch.zeros(slots))])
    assert 11 + sum(map(tensor_bytes, carried(memory).values())) <= limit
    memory.add(1, memory.packed(vectors(1), torch.ones(1)))
    assert 11 + sum(map(tensor_bytes, carried(memory).values())) > limit
    assert Allowance(Budget(limits=[limit])).capacity(OneMemory(memory), memory) is None


# what is saved --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_a_memory_loaded_from_its_tensors_is_the_same_memory(bits):
    memory, other = filled(bits), FeatureMemory(6, bits)
    assert set(carried(memory)) == memory.tensor_names
    other.load(carried(memory), IMAGE)
    assert torch.equal(other.features(), memory.features())
    assert torch.equal(other.slots, memory.slots)
    assert all(torch.equal(tensor, carried(other)[name]) for name, tensor in carried(memory).items())
    other.add(7, other.packed(vectors(1), torch.tensor([7])))
    assert len(other) == 6
    other.load({}, IMAGE)
    assert len(other) == 0 and other.features().shape == (0, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t: {"features": t["features"].float()}, r"features are torch\.float32 \(5, 6\), not torch\.int8"),
        (lambda t: {"features": t["features"].repeat(1, 2)}, r"features are torch\.int8 \(5, 12\).* with D = 6"),
        (lambda t: {"scales": t["scales"].double()}, r"scales are torch\.float64"),
        (lambda t: {"scales": t["scales"][:3]}, r"scales are 3"),
        (lambda t: {"images": torch.zeros(5, 3, dtype=torch.uint8)}, r"holds \['features', 'scales', 'slots'\]"),
    ],
)
def test_what_is_no_memory_of_these_features_is_refused_in_one_line(wrong, message):
    tensors = carried(filled(8))
    with pytest.raises(StateError, match=message) as caught:
        FeatureMemory(6, 8).load(tensors | wrong(tensors), IMAGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 4}, r"strategy\.bits is 4; allowed: 32, 16, 8"),
        ({"selection": "entropy"}, r"strategy\.selection is 'entropy', which needs logits"),
        ({"selection": "gradient_diversity"}, r"needs gradients"),
    ],
)
def test_bits_and_rules_that_do_not_go_with_features_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        FeatureMemory(6, **given)


def test_a_phase_trains_on_features_whatever_the_augmentation_of_images():
    data = feature_samples({"features": vectors(9)}, torch.arange(9))
    for augment in (Augment(), Augment(crop_padding=4, flip=True, brightness=0.2), Augment(resized_crop=True)):
        loader = PhaseLoader(data, augment, torch.device("cpu"), lambda *key: keyed(), 4)
        seen = {
            slot: row
            for batch in loader.epoch(0)
            for slot, row in zip(batch.slots.tolist(), batch.extras["features"], strict=True)
        }
        assert all(torch.equal(seen[slot], vectors(9)[slot]) for slot in range(9))


# prototypes -----------------------------------------------------------------------------------------------------------


def learned(spread: str, *batches: tuple[Tensor, Tensor], classes: int = 3) -> Prototypes:
    prototypes = Prototypes(batches[0][0].shape[1], spread)
    prototypes.grow(classes)
    for features, slots in batches:
        prototypes.update(features, slots)
    return prototypes


SLOTS = torch.tensor([0, 2, 0, 0, 2, 2, 2, 0, 2, 0])


@pytest.mark.parametrize(
    ("spread", "each", "once"),
    [
        ("none", 4 * 6, 0), ("radius", 4 * 6, 4), ("diagonal", 8 * 6, 0), ("low_rank", 4 * 6 + 4 * (6 + 1), 0),
        ("tied", 4 * 6, 2 * 6 * 7), ("full", 4 * 6 + 2 * 6 * 7, 0),
    ],
)  # fmt: skip
def test_the_bytes_of_prototypes_with_eight_for_a_count(spread, each, once):
    prototypes = Prototypes(6, spread)
    for classes in (2, 5):
        prototypes.grow(classes - len(prototypes.means))
        assert sum(map(tensor_bytes, prototypes.state_dict().values())) == classes * (each + 8) + once
    before = {name: tensor.shape for name, tensor in prototypes.state_dict().items()}
    prototypes.update(vectors(10), SLOTS)
    assert {name: tensor.shape for name, tensor in prototypes.state_dict().items()} == before


def test_means_and_spreads_are_those_of_the_samples():
    features = vectors(10)
    for spread in ("diagonal", "full"):
        prototypes = learned(spread, (features, SLOTS))
        assert prototypes.counts.tolist() == [5, 0, 5]
        for slot in (0, 2):
            own = features[slot == SLOTS]
            torch.testing.assert_close(prototypes.means[slot], own.mean(0))
            covariance = torch.cov(own.T, correction=0)
            expected = covariance if spread == "full" else torch.diag(covariance.diag())
            torch.testing.assert_close(prototypes.covariance(slot), expected)
        assert not prototypes.means[1].any() and not prototypes.covariance(1).any()


def test_the_radius_is_the_variance_within_classes_over_all_samples_and_dimensions():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 10.0], [10.0, 16.0], [10.0, 13.0]])
    prototypes = learned("radius", (features, torch.tensor([0, 0, 1, 1, 1])))
    # squares within: 2 and 18, over five samples and two dimensions
    assert prototypes.spreads.item() == pytest.approx(2.0)
    assert prototypes.covariance(1).tolist() == [pytest.approx([2, 0]), pytest.approx([0, 2])]


@pytest.mark.parametrize("spread", ["none", "radius", "diagonal", "tied", "full"])
def test_a_class_that_comes_again_has_the_statistics_of_all_its_samples(spread):
    features = vectors(10) + 3 * SLOTS[:, None] + torch.arange(10)[:, None]  # the parts have different means
    whole = learned(spread, (features, SLOTS))
    parts = learned(spread, (features[:4], SLOTS[:4]), (features[4:7], SLOTS[4:7]), (features[7:], SLOTS[7:]))
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, msg=name)


def test_a_tied_covariance_is_that_within_classes():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 10.0], [10.0, 16.0], [10.0, 13.0]])
    prototypes = learned("tied", (features, torch.tensor([0, 0, 1, 1, 1])))
    # squares within: 2 along the first axis, 18 along the second, over five samples
    for matrix in (prototypes.covariance(0), prototypes.covariance(1), prototypes.pooled_covariance().float()):
        torch.testing.assert_close(matrix, torch.diag(torch.tensor([0.4, 3.6])))


def test_low_rank_keeps_the_largest_variances_and_the_sum_of_all():
    """Variances 4, 1 and 0.5 along the axes: of rank 1 the first stays, the others become their mean."""
    axes = torch.diag(torch.tensor([4.0, 1.0, 0.5]).sqrt())
    features = 3**0.5 * torch.cat([axes, -axes])  # over six samples
    prototypes = learned("low_rank", (features, torch.ones(6, dtype=torch.int64)))
    torch.testing.assert_close(prototypes.covariance(1), torch.diag(torch.tensor([4.0, 0.75, 0.75])))
    prototypes.update(features, torch.ones(6, dtype=torch.int64))  # the same once more changes nothing
    torch.testing.assert_close(prototypes.covariance(1), torch.diag(torch.tensor([4.0, 0.75, 0.75])))
    with pytest.raises(ConfigError, match=r"strategy\.rank is 3; it must be 1 or more, and below the 3 features"):
        Prototypes(3, "low_rank", rank=3)


def test_the_pooled_covariance_weighs_classes_by_their_counts():
    features = vectors(10)
    pooled = learned("full", (features, SLOTS)).pooled_covariance()
    torch.testing.assert_close(pooled.float(), learned("tied", (features, SLOTS)).covariance(0))


def test_jitter_is_variance_in_each_direction():
    prototypes = learned("full", (vectors(1), torch.tensor([1])))
    drawn = prototypes.draw(torch.ones(20_000, dtype=torch.int64), keyed(), jitter=0.25)
    torch.testing.assert_close(torch.cov(drawn.T), 0.25 * torch.eye(6), atol=0.02, rtol=0)


def test_growing_keeps_what_is_known():
    prototypes = learned("full", (vectors(10), SLOTS))
    before = {name: tensor.clone() for name, tensor in prototypes.state_dict().items()}
    prototypes.grow(2)
    for name, tensor in prototypes.state_dict().items():
        assert torch.equal(tensor[:3], before[name]) and not tensor[3:].any()


@pytest.mark.parametrize("spread", ["none", "radius", "diagonal", "low_rank", "tied", "full"])
def test_what_is_drawn_has_the_mean_and_the_covariance_of_its_class(spread):
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.0, 0.1]])
    slots = torch.arange(300) % 3
    prototypes = learned(spread, (vectors(300, 3) @ mix.T + 10.0 * slots[:, None], slots))
    drawn = prototypes.draw(torch.tensor([2, 0] * 20_000), keyed())
    for slot, own in ((2, drawn[::2]), (0, drawn[1::2])):
        torch.testing.assert_close(own.mean(0), prototypes.means[slot], atol=0.05, rtol=0)
        torch.testing.assert_close(torch.cov(own.T), prototypes.covariance(slot), atol=0.1, rtol=0.03)
    if spread == "none":
        assert torch.equal(drawn[:2], prototypes.means[[2, 0]])
    assert torch.equal(prototypes.draw(torch.tensor([2, 0] * 20_000), keyed()), drawn)


def test_a_class_of_one_sample_is_drawn_as_that_sample():
    for spread in ("diagonal", "full"):
        prototypes = learned(spread, (vectors(1), torch.tensor([1])))
        assert torch.equal(prototypes.draw(torch.tensor([1, 1]), keyed()), vectors(1).expand(2, 6))


def test_a_wrong_spread_or_shape_is_refused():
    with pytest.raises(ConfigError, match=r"strategy\.spread is 'diag'; did you mean 'diagonal'"):
        Prototypes(6, "diag")
    with pytest.raises(ShapeError, match=r"\(N, 6\)"):
        learned("none", (vectors(4), torch.zeros(3, dtype=torch.int64)))
