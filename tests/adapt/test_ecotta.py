"""EcoTTA: its steps against hand-written ones, what must not move, what each switch changes."""

import copy
import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from cil.adapt import SourceModel, find
from cil.adapt.ecotta import EcoTTA
from cil.contract import Progress, reference_of
from cil.data import Batch
from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.models import CifarResNet, NetFactory, build_backbone
from cil.models.meta import GroupedNet
from cil.models.partition import cut_network


def residual_source(seed: int = 0, classes: int = 4, **more) -> SourceModel:
    """A CIFAR ResNet-14 of width 4 on 12 x 12 colour images, whose statistics and affine values are not trivial."""
    factory = NetFactory(partial(CifarResNet, 14, width=4), mean=[0.5] * 3, std=[0.25] * 3, seed=seed)
    net = factory()
    net.grow(classes)
    draws = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in [*net.parameters(), *net.backbone.buffers()]:
            value.add_(0.1 * torch.rand(value.shape, generator=draws))
        net.head.weight.copy_(2 * torch.randn(net.head.weight.shape, generator=draws))
    return SourceModel(net.eval(), classes, (3, 12, 12), **more)


@pytest.fixture
def eco(made):
    def make(source: SourceModel | None = None, **given) -> EcoTTA:
        return made("ecotta", source or residual_source(), **{"parts": 3, "threshold": 10.0, **given})

    return make


def scores(adapter: EcoTTA, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return adapter.adapted(images).logits


def values(adapter: EcoTTA) -> list[torch.Tensor]:
    return [p.detach().clone() for p in adapter.meta.parameters()]


def same(one, other, **closeness) -> bool:
    if closeness:
        return all(torch.allclose(a, b, **closeness) for a, b in zip(one, other, strict=True))
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def entropies(logits: torch.Tensor) -> torch.Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def distances(adapter: EcoTTA, images: torch.Tensor, local: bool) -> list[torch.Tensor]:
    found = []
    adapter.adapted(images, lambda k, a, f: found.append((a - f.detach()).abs().mean()), local=local)
    return found


# steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_path", ["full", "lean", "stop"])
def test_two_steps_are_those_of_sgd_on_the_distances_then_on_the_entropy(eco, made, grad_path):
    adapter, by_hand = (eco(grad_path=grad_path, regularisation=0.5, lr=0.02) for _ in range(2))
    sgd = torch.optim.SGD(by_hand.meta.parameters(), lr=0.02, momentum=0.9)
    for number in range(3):
        images = made.pictures(6, number)
        found = adapter.adapt_and_predict(images)
        sgd.zero_grad()
        (0.5 * sum(distances(by_hand, images, local=True))).backward()
        sgd.step()
        sgd.zero_grad()
        logits = by_hand.adapted(images).logits
        entropies(logits).mean().backward()
        sgd.step()
        assert torch.allclose(found, logits, atol=1e-4)
        assert not found.requires_grad
    assert same(values(adapter), values(by_hand), atol=1e-5)
    assert not same(values(adapter), values(eco()))


@pytest.mark.parametrize("detach", [True, False])
def test_a_joint_step_is_one_of_sgd_on_the_sum(eco, made, detach):
    given = {"update": "joint", "reg_detach_input": detach, "regularisation": 0.7, "lr": 0.02, "grad_path": "full"}
    adapter, by_hand = eco(**given), eco(**given)
    sgd = torch.optim.SGD(by_hand.meta.parameters(), lr=0.02, momentum=0.9)
    for number in range(2):
        images = made.pictures(6, number)
        sgd.zero_grad()
        logits = by_hand.adapted(images).logits
        (entropies(logits).mean() + 0.7 * sum(distances(by_hand, images, local=detach))).backward()
        sgd.step()
        assert torch.allclose(adapter.adapt_and_predict(images), logits, atol=1e-5)
    assert same(values(adapter), values(by_hand), atol=1e-5)


def test_two_steps_without_detached_inputs_follow_the_whole_sum(eco, made):
    given = {"reg_detach_input": False, "threshold": 0.0, "lr": 0.02, "momentum": 0.0, "grad_path": "full"}
    adapter, by_hand, images = eco(**given), eco(**given), made.pictures(6)
    loss = 0.5 * sum(distances(by_hand, images, local=False))
    moves = torch.autograd.grad(loss, list(by_hand.meta.parameters()))
    adapter.adapt_and_predict(images)
    expected = [p - 0.02 * g for p, g in zip(values(by_hand), moves, strict=True)]
    assert same(values(adapter), expected, atol=1e-6)
    local = eco(**{**given, "reg_detach_input": True})
    local.adapt_and_predict(images)
    assert not same(values(adapter), values(local), atol=1e-6)


def test_only_sure_predictions_count(eco, made):
    images = made.pictures(8)
    each = entropies(scores(eco(), images))
    bound = each.sort().values[3:5].mean()
    given = {"regularisation": 0.0, "momentum": 0.0, "grad_path": "full"}
    adapter, by_hand = eco(threshold=float(bound) / math.log(4), **given), eco(**given)
    adapter.adapt_and_predict(images)
    loss = entropies(by_hand.adapted(images).logits)[each < bound].mean()
    moves = torch.autograd.grad(loss, list(by_hand.meta.parameters()))
    expected = [p - 5e-3 * g for p, g in zip(values(by_hand), moves, strict=True)]
    assert (each < bound).sum() == 4
    assert same(values(adapter), expected, atol=1e-6)


@pytest.mark.parametrize("update", ["two_step", "joint"])
def test_where_no_prediction_is_sure_nothing_moves_not_even_by_momentum(eco, made, update):
    adapter = eco(regularisation=0.0, update=update)
    adapter.adapt_and_predict(made.pictures(6))
    before = made.copied(adapter)
    assert before["optimizer.moments"].abs().sum() > 0
    adapter.bound = 0.0
    answer = adapter.adapt_and_predict(made.pictures(6, 1))
    after = made.copied(adapter)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(answer, scores(adapter, made.pictures(6, 1)))


@pytest.mark.parametrize("update", ["two_step", "joint"])
def test_where_no_prediction_is_sure_the_distances_still_count(eco, made, update):
    adapter, by_hand, images = eco(threshold=0.0, update=update), eco(), made.pictures(6)
    adapter.adapt_and_predict(images)
    moves = torch.autograd.grad(0.5 * sum(distances(by_hand, images, True)), list(by_hand.meta.parameters()))
    assert same(values(adapter), [p - 5e-3 * g for p, g in zip(values(by_hand), moves, strict=True)], atol=1e-6)


@pytest.mark.parametrize("local", [True, False])
def test_the_sum_per_sample_is_the_mean_times_the_elements_of_a_map(eco, made, local):
    given = {"threshold": 0.0, "parts": 1, "reg_detach_input": local, "momentum": 0.0}
    images = made.pictures(6)
    elements = math.prod(cut_network(residual_source().net, (3, 12, 12), 1)[0].outputs)
    found = []
    for more in ({"reg_reduction": "sum_per_sample", "regularisation": 0.5}, {"regularisation": 0.5 * elements}):
        adapter = eco(**given, **more)
        adapter.adapt_and_predict(images)
        found.append(values(adapter))
    assert same(*found, atol=1e-5)


def test_the_answer_is_taken_where_asked(eco, made):
    images = made.pictures(6)
    found = {where: eco(predict_from=where, lr=0.05) for where in ("pre_update", "pass2", "post_update")}
    answers = {where: adapter.adapt_and_predict(images) for where, adapter in found.items()}
    assert same(values(found["pass2"]), values(found["pre_update"]))
    assert torch.allclose(answers["pre_update"], scores(eco(), images), atol=1e-5)
    assert torch.equal(answers["post_update"], scores(found["post_update"], images))
    regularised = eco(threshold=0.0, lr=0.05)
    regularised.adapt_and_predict(images)
    assert torch.equal(answers["pass2"], scores(regularised, images))
    assert not torch.allclose(answers["pass2"], answers["pre_update"], atol=1e-3)
    assert not torch.allclose(answers["pass2"], answers["post_update"], atol=1e-3)


def test_masks_of_one_bit_and_of_one_byte_give_the_same_bits(eco, made):
    found = []
    for bits in (1, 8):
        adapter = eco(mask_bits=bits)
        adapter.adapt_and_predict(made.pictures(6))
        found.append(values(adapter))
        assert adapter.adapted.packed == (bits == 1)
    assert same(*found)


# what it holds --------------------------------------------------------------------------------------------------------


def test_the_source_and_all_statistics_stay_bit_for_bit(eco, made):
    adapter = eco()
    source, held = reference_of(adapter.net, "source"), {k: b.clone() for k, b in adapter.meta.named_buffers()}
    assert adapter.trainable() == list(adapter.meta.parameters())
    for number in range(3):
        adapter.adapt_and_predict(made.pictures(6, number))
    assert reference_of(adapter.net, "source") == source == reference_of(residual_source().net, "source")
    assert all(torch.equal(value, held[name]) for name, value in adapter.meta.named_buffers())
    assert all(p.grad is None for p in (*adapter.net.parameters(), *adapter.meta.parameters()))


def test_warm_up_moves_meta_networks_and_their_statistics_alone(eco, made):
    adapter, data = eco(), made.source_samples()
    source = reference_of(adapter.net, "source")
    held = made.copied(adapter)
    (phase,) = adapter.phases(data)
    adapter.train_mode()
    sgd = torch.optim.SGD(phase.parameters, lr=phase.lr)
    losses = []
    for step in range(12):
        adapter.progress = Progress(step, 12, step, 12)
        loss = phase.loss(Batch(data.images, data.slots))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < losses[0]
    assert reference_of(adapter.net, "source") == source
    moved = made.copied(adapter)
    assert {key.split(".")[0] for key in held if not torch.equal(held[key], moved[key])} == {"meta"}
    assert not torch.equal(held["meta.0.norm.running_mean"], moved["meta.0.norm.running_mean"])
    adapter.deploy(data)
    assert not any(layer.training for layer in adapter.meta.modules())


def test_half_a_stream_and_the_carried_state_end_where_the_whole_stream_does(eco, made):
    straight, first = eco(), eco()
    for number in range(3):
        expected = straight.adapt_and_predict(made.pictures(6, number))
    first.adapt_and_predict(made.pictures(6, 0))
    state = copy.deepcopy(first.state())
    second = eco()
    second.load_state(state)
    for number in (1, 2):
        found = second.adapt_and_predict(made.pictures(6, number))
    assert torch.equal(found, expected)
    assert same(made.copied(second).values(), made.copied(straight).values())


def test_momentum_is_carried_and_public_weights_are_a_reference(eco):
    adapter = eco()
    state = adapter.state()
    trained = sum(p.numel() for p in adapter.meta.parameters())
    assert {state.kinds[name] for name in state.tensors if name.startswith("meta.")} == {"parameters", "buffers"}
    moments = [t for name, t in state.tensors.items() if state.kinds[name] == "optimizer"]
    assert sum(t.numel() for t in moments) == trained
    assert any(name.startswith("net.") for name in state.tensors)

    public = reference_of(residual_source().net, "weights")
    referring = eco(residual_source(reference=public)).state()
    assert referring.references == (public,)
    assert not any(name.startswith("net.") for name in referring.tensors)


@pytest.mark.parametrize(("mode", "share"), [("batch", 1.0), ("mixed", 0.3), ("source", 0.0)])
def test_statistics_come_from_where_they_are_asked_to(eco, made, mode, share):
    adapter, images = eco(bn_mode=mode, alpha=0.3, lr=0.0, predict_from="pre_update"), made.pictures(6)
    found = adapter.adapt_and_predict(images)
    parts = cut_network(adapter.net, (3, 12, 12), 3)
    expected = GroupedNet(adapter.net, parts, adapter.meta, share=share)(images).logits
    assert torch.allclose(found, expected, atol=1e-5)
    alone = torch.cat([adapter.adapt_and_predict(image[None]) for image in images])
    assert torch.allclose(alone, found, atol=1e-4) == (mode == "source")


def test_initial_values_follow_the_key_and_the_warm_up_starts_from_them(eco, made):
    assert same(values(eco()), values(eco()))
    adapter = eco()
    made.at(adapter, 5)
    list(adapter.phases(made.source_samples()))
    other = values(adapter)
    assert not same(values(eco()), other)
    for parameter in adapter.meta.parameters():
        parameter.data.fill_(7)
    list(adapter.phases(made.source_samples()))
    assert same(values(adapter), other)


# warm-up --------------------------------------------------------------------------------------------------------------


def rates(phase, epochs: int) -> list[float]:
    recipe = Recipe().of(phase, 0)
    optimizer = recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
    schedule = recipe.scheduler(optimizer, recipe.epochs)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert optimizer.param_groups[0]["momentum"] == 0.9
    return found


def test_the_warm_up_has_the_published_schedule(eco, made):
    (phase,) = eco().phases(made.source_samples())
    assert (phase.epochs, phase.batch_size, phase.lr, phase.main) == (10, 64, 0.05, False)
    assert rates(phase, 10) == pytest.approx([0.05] * 2 + [0.01] * 3 + [0.002] * 2 + [0.0004] * 3)
    (phase,) = eco(residual_source(classes=800)).phases(made.source_samples())
    assert (phase.epochs, phase.batch_size, phase.schedule) == (3, 256, "cosine")
    assert rates(phase, 3) == pytest.approx([0.05, 0.0375, 0.0125])
    assert list(eco(warmup_epochs=0).phases(made.source_samples())) == []


def test_the_learning_rate_rises_over_the_first_epoch_by_the_gradients(eco, made):
    adapter = eco()
    batch = Batch(made.pictures(2), torch.zeros(2, dtype=torch.int64))
    for step, epoch, share in ((0, 0, 0.25), (2, 0, 0.75), (3, 0, 1.0), (4, 1, 1.0)):
        adapter.progress = Progress(epoch, 10, step, 40)
        for parameter in adapter.meta.parameters():
            parameter.grad = torch.ones_like(parameter)
        adapter.adjust_gradients(batch)
        assert all((p.grad == share).all() for p in adapter.meta.parameters())


def test_warm_up_minimises_cross_entropy_of_exact_gradients_with_batch_statistics(eco, made):
    adapter, data = eco(warmup_augment=False, bn_mode="source", grad_path="stop"), made.source_samples(8)
    (phase,) = adapter.phases(data)
    adapter.train_mode()
    loss = phase.loss(Batch(data.images, data.slots))
    run = GroupedNet(adapter.net, cut_network(adapter.net, (3, 12, 12), 3), adapter.meta, "full")
    expected = F.cross_entropy(run(data.images).logits, data.slots)
    assert torch.allclose(loss, expected)
    parameters = list(adapter.meta.parameters())
    assert same(*(torch.autograd.grad(value, parameters) for value in (loss, expected)), atol=1e-5)


# settings -------------------------------------------------------------------------------------------------------------


def test_the_file_shows_the_defaults():
    file = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf/adapter/ecotta.yaml"))
    assert file.pop("_target_") == "cil.adapt.ecotta.EcoTTA"
    assert file.pop("_partial_")
    given = inspect.signature(find("ecotta")).parameters.values()
    own = {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}
    assert {key: float(v) if isinstance(v, str) and v[0].isdigit() else v for key, v in file.items()} == own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"update": "both"}, "adapter.update of ecotta is 'both'; allowed: two_step, joint"),
        ({"grad_path": "none"}, "adapter.grad_path of ecotta is 'none'; allowed: full, lean, stop"),
        ({"mask_bits": 2}, "adapter.mask_bits of ecotta is 2; allowed: 1, 8"),
        ({"regularisation": -1}, "adapter.regularisation of ecotta is -1; it must be 0 or more"),
        ({"momentum": 1.0}, "adapter.momentum of ecotta is 1.0; it must be below 1"),
        ({"parts": 9}, "adapter.parts is 9; this network has 6 residual blocks, so 1 to 6"),
        ({"kernel": 2}, "adapter.kernel is 2; it must be odd"),
    ],
)
def test_what_cannot_be_meant_is_refused(eco, given, message):
    with pytest.raises(ConfigError, match=message):
        eco(**given)


def test_a_network_without_residual_blocks_is_refused(eco, made):
    with pytest.raises(ConfigError, match="cannot be cut into parts"):
        eco(made.conv_source())


def test_a_step_on_meta_needs_no_values(made):
    with torch.device("meta"):
        net = NetFactory(partial(build_backbone, "resnet20", 3, 32), meta=True)()
        net.grow(10)
    for update in ("two_step", "joint"):
        adapter = find("ecotta")(SourceModel(net, 10, (3, 32, 32)), update=update).to("meta")
        assert adapter.adapt_and_predict(torch.empty(4, 3, 32, 32, device="meta")).shape == (4, 10)
