"""The contract's base: what is kept, what crosses a boundary, and the defaults of every hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import Fixed, bare, batch, differing, signatures
from torch import Tensor, nn

from cil import strategies
from cil.data import Samples
from cil.errors import ConfigError, ContractError, NotKept, StateError
from cil.memory import Budget, ExemplarMemory, State, encode_meta
from cil.strategies import Phase, Progress, Strategy, find, reference_of, register
from cil.streams import Experience, Signature
from cil.testing import toy_run, toy_stream
from cil.testing.toy import toy_factory


class Probe(Strategy):
    """Keeps something of every sort."""

    def __init__(self, make_net: Any, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.keep("memory", ExemplarMemory(), kind="exemplars")
        self.keep("means", torch.zeros(0, 4), kind="prototypes")
        self.keep("sums", {"a": torch.zeros(3), "b": torch.zeros(())}, kind="statistics")
        self.keep("rounds", 0)
        self.keep("names", ["x", "y"])
        self.keep("teacher", None, kind="teacher")
        self.keep("scratch", None, kind="temporary")

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.means = torch.zeros(self.num_classes, 4)

    def loss(self, batch: Any) -> Tensor:
        return self.net(batch.images).logits.square().mean()


def probe(*classes: int) -> Probe:
    learner = Probe(toy_factory(toy_stream(), seed=0), Budget(exemplars=10))
    torch.manual_seed(0)
    for signature in signatures(classes):
        learner.grow(signature)
    return learner


def images(slots: list[int]) -> Samples:
    pixels = torch.randint(0, 256, (len(slots), 3, 12, 12), generator=torch.Generator().manual_seed(0))
    return Samples.from_arrays(pixels.byte(), torch.tensor(slots))


# keep ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    nn.Linear(2, 2), nn.Parameter(torch.ones(1)), torch.ones(2), ExemplarMemory(), {"a": torch.ones(1)},
    [torch.ones(1)], (1, torch.ones(1)), {"deep": [{"er": torch.ones(1)}]},
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_what_holds_tensors_and_was_not_kept_is_refused_with_what_to_do(value):
    learner = probe(2)
    with pytest.raises(NotKept, match=r"Probe.extra is a .* not kept.*self.keep\('extra', ..., kind=...\)"):
        learner.extra = value
    assert not hasattr(learner, "extra")


def test_plain_values_are_assigned_freely_and_do_not_cross_the_boundary():
    learner = probe(2)
    learner.note, learner.table = "plain", {"a": [1, 2.0, None]}
    assert "note" not in learner.state().meta and "table" not in learner.state().meta


def test_what_was_kept_may_be_replaced():
    learner = probe(2)
    learner.means = torch.ones(2, 4)
    assert learner.state().tensors["means"].sum() == 8


@pytest.mark.parametrize(("arguments", "message"), [
    (("x", 1, "exemplar"), "no kind 'exemplar'.*exemplars"),
    (("x", 1, "other", "forever"), "lifetime is 'forever'; allowed: carried, training"),
    (("predict", 1), "name is taken"),
    (("bound", True), "name is taken"),
    (("_kept", 1), "used by the contract itself"),
    (("a.b", 1), "no name of an attribute"),
])  # fmt: skip
def test_keeping_under_a_wrong_kind_lifetime_or_name_is_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as refused:
        probe(2).keep(*arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["teacher", "temporary", "optimizer", "gradients", "activations"])
def test_training_kinds_are_gone_at_the_boundary_unless_said_to_be_carried(kind):
    learner = probe(2)
    learner.keep("one", torch.ones(3), kind=kind)
    learner.keep("two", torch.ones(5), kind=kind, lifetime="carried")
    assert "one" not in learner.state().tensors and learner.state().kinds["two"] == kind
    assert {entry.name: entry.bytes for entry in learner.training_entries()} == {"one": 12}


# state --------------------------------------------------------------------------------------------------------------


def test_the_state_names_and_charges_every_sort_of_value():
    learner = probe(2)
    learner.memory.add(0, images([0, 0]))
    state = learner.state()
    others = {name: kind for name, kind in state.kinds.items() if not name.startswith("net.")}
    assert others == {
        "memory.images": "exemplars", "memory.slots": "labels", "means": "prototypes", "sums.a": "statistics",
        "sums.b": "statistics",
    }  # fmt: skip
    buffers = {name for name, kind in state.kinds.items() if kind == "buffers"}
    assert buffers == {f"net.{name}" for name in dict(learner.net.named_buffers()) if "normalise" not in name}
    assert {f"net.{name}" for name in dict(learner.net.named_parameters())} == {
        name for name, kind in state.kinds.items() if kind == "parameters"
    }
    assert state.meta == {"rounds": 0, "names": ["x", "y"]}
    assert all(not tensor.requires_grad for tensor in state.tensors.values())


def test_fixed_bytes_are_the_state_without_its_exemplars():
    learner = probe(2)
    fixed = learner.fixed_bytes()
    assert (
        fixed
        == learner.state().bytes
        == sum(tensor.numel() * tensor.element_size() for tensor in learner.state().tensors.values())
        + len(encode_meta({"rounds": 0, "names": ["x", "y"]}))
    )
    learner.memory.add(0, images([0, 0, 0]))
    assert learner.fixed_bytes() == fixed and learner.state().bytes == fixed + 3 * (432 + 1)
    assert learner.fixed_bytes("survey") == 4 * learner.net.survey_parameters


def test_the_surveys_charge_is_not_a_learners_to_state(monkeypatch):
    learner = probe(2)
    charge = learner.fixed_bytes("survey")
    monkeypatch.setattr(Probe, "_survey", lambda self: {"parameters": 0, "exemplars": 0})
    assert learner.fixed_bytes("survey") == learner.state().survey["parameters"] == charge > 0
    monkeypatch.setattr(Probe, "replaced_at_inference", lambda self: ("net",))
    with pytest.raises(StateError, match="net: replaced at inference, it says, but no larger network is kept"):
        learner.state()


def test_a_state_comes_back_whole_into_a_fresh_learner_of_the_same_structure():
    one, other = probe(2, 1), probe(2, 1)
    one.memory.add(1, images([1, 1]))
    one.means, one.rounds = torch.rand(3, 4), 7
    one.sums["b"] = torch.tensor(2.5)
    with torch.no_grad():
        one.net.head.weight.mul_(2)
    state = one.state()
    other.load_state(state)
    assert differing(dict(state.tensors), dict(other.state().tensors)) == []
    assert other.state().meta == state.meta == {"rounds": 7, "names": ["x", "y"]}
    other.means += 1
    assert torch.equal(one.state().tensors["means"], state.tensors["means"])  # loaded values are copies


def test_a_scalar_that_became_none_comes_back_as_none():
    learner, again = probe(2), probe(2)
    learner.rounds = None
    state = learner.state()
    assert state.meta == {"rounds": None, "names": ["x", "y"]} and learner.fixed_bytes() == state.bytes
    again.load_state(state)
    assert again.rounds is None and again.state().meta == state.meta
    again.rounds = 3
    again.load_full_state(*learner.full_state())
    assert again.rounds is None


def test_a_state_that_lacks_a_scalar_is_refused():
    state = probe(2).state()
    with pytest.raises(StateError, match="the state lacks names"):
        probe(2).load_state(State(state.tensors, state.kinds, {"rounds": 0}))


def changed(learner: Probe, **tensors: Tensor | None) -> State:
    state = learner.state()
    held = {name.replace("_", ".") if name.startswith("sums") else name: t for name, t in tensors.items()}
    kept = {name: t for name, t in {**state.tensors, **held}.items() if t is not None}
    return State(kept, state.kinds, state.meta)


@pytest.mark.parametrize(("tensors", "message"), [
    ({"means": torch.zeros(3, 4)}, r"means. is torch.float32 \(3, 4\) in the state, torch.float32 \(2, 4\) after grow"),
    ({"means": torch.zeros(2, 4).double()}, "torch.float64"),
    ({"means": None}, "lacks means"),
    ({"sums_b": None}, "sums: the state and the structure after grow differ in b"),
    ({"sums_c": torch.zeros(1)}, "differ in c"),
    ({"hidden": torch.zeros(9)}, "no place for hidden"),
])  # fmt: skip
def test_a_state_of_another_structure_is_refused(tensors, message):
    learner = probe(2)
    with pytest.raises(StateError, match=message):
        learner.load_state(changed(learner, **tensors))


def test_what_is_neither_tensor_nor_json_cannot_be_carried():
    learner = probe(2)
    learner.rounds = object()
    with pytest.raises(StateError, match="rounds is a object"):
        learner.state()


def test_training_values_are_in_the_full_state_alone_and_come_back_from_it():
    learner, again = probe(2), probe(2)
    learner.scratch = {"x": torch.arange(3.0)}
    learner.teacher = torch.arange(2.0)
    assert not {"scratch.x", "teacher"} & learner.state().tensors.keys()
    again.load_full_state(*learner.full_state())
    assert again.scratch["x"].tolist() == [0, 1, 2] and again.teacher.tolist() == [0, 1]


def test_public_weights_are_carried_as_a_reference_and_may_not_be_modified():
    learner, public = probe(2), nn.Linear(4, 2)
    reference = reference_of(public, "public-linear")
    assert (reference.bytes, reference.numel) == (40, 10)
    before = learner.fixed_bytes()
    learner.keep("public", public, kind="parameters", reference=reference)
    state = learner.state()
    assert state.references == (reference,) and not any(name.startswith("public") for name in state.tensors)
    assert learner.fixed_bytes() == before + 40 == state.bytes
    assert not {id(p) for p in public.parameters()} & {id(p) for p in learner.trainable()}
    with torch.no_grad():
        public.bias += 1
    with pytest.raises(StateError, match="'public-linear' but was modified"):
        learner.state()


# structure ----------------------------------------------------------------------------------------------------------


def test_growing_widens_the_head_and_counts_old_and_all_classes():
    learner = bare("finetune")
    assert (learner.num_classes, learner.old_classes) == (0, 0)
    seen = []
    for signature in signatures([3, 1, 2]):
        learner.grow(signature)
        seen.append((learner.old_classes, learner.num_classes, learner.net.num_classes))
    assert seen == [(0, 3, 3), (3, 4, 4), (4, 6, 6)]
    assert learner.image_shape == (3, 12, 12)


def test_old_logits_are_the_same_before_and_after_the_head_grows():
    learner = bare("finetune", classes=[3])
    learner.net.eval()
    before = learner.predict(batch(0, 1, 2).images)
    learner.grow(signatures([3, 2])[1])
    torch.testing.assert_close(learner.predict(batch(0, 1, 2).images)[:, :3], before, atol=1e-6, rtol=0)


# defaults of the hooks ----------------------------------------------------------------------------------------------


def test_by_default_there_is_one_main_phase_of_the_training_set_and_the_loss():
    learner = probe(2)
    train = images([0, 1, 1])
    (phase,) = learner.phases(Experience(signatures([2])[0], train))
    assert (phase.name, phase.main, phase.loss) == ("main", True, learner.loss)
    assert torch.equal(phase.data.pixels, train.pixels)
    given = (phase.parameters, phase.epochs, phase.batch_size, phase.lr, phase.weight_decay, phase.milestones)
    assert given == (None,) * 6 and phase.train_mode is None


def test_a_phase_of_its_own_leaves_the_recipe_alone_where_it_says_nothing():
    phase = Phase("second", images([0]), lambda batch: batch.images.sum(), main=False, epochs=3)
    assert (phase.main, phase.epochs, phase.lr) == (False, 3, None)
    with pytest.raises(ContractError, match=r"phase 'x' has 1\.5 epochs; allowed: a whole number, or a share below 1"):
        Phase("x", phase.data, phase.loss, epochs=1.5)


def test_the_training_set_is_new_data_and_then_all_that_memories_hold():
    learner = probe(2, 1)
    learner.keep("second", ExemplarMemory(), kind="exemplars")
    learner.memory.add(0, images([0, 0]))
    learner.second.add(1, images([1]))
    new = images([2, 2, 2])
    data = learner.training_set(Experience(signatures([2, 1])[1], new))
    assert data.slots.tolist() == [2, 2, 2, 0, 0, 1]
    expected = [new.pixels, learner.memory.samples().pixels, learner.second.samples().pixels]
    assert torch.equal(data.pixels, torch.cat(expected))


def test_training_mode_is_for_what_is_trained_and_not_for_teachers():
    learner = probe(2)
    learner.teacher = toy_factory(toy_stream(), seed=1)().eval()
    learner.net.eval()
    learner.train_mode()
    assert learner.net.training and not learner.teacher.training


def test_what_is_trained_is_every_module_but_teachers_where_a_gradient_is_wanted():
    learner = probe(2)
    learner.teacher = nn.Linear(2, 2)
    learner.keep("side", nn.Linear(2, 2), kind="temporary")
    learner.side.bias.requires_grad_(False)
    trained = [*learner.net.parameters(), learner.side.weight]
    assert [id(p) for p in learner.trainable()] == [id(p) for p in trained]


def test_the_gradient_of_an_extra_loss_touches_no_grad_and_is_zero_where_nothing_depends_on_it():
    learner = probe(2)
    gradients = learner.gradient(learner.net.head.bias.square().sum() / 2 + learner.net.head.bias.sum())
    named = dict(zip(dict(learner.net.named_parameters()), gradients, strict=True))
    assert named["head.bias"].tolist() == [1.0, 1.0]  # biases are 0
    assert not any(value.any() for name, value in named.items() if name != "head.bias")
    assert all(p.grad is None for p in learner.net.parameters())


def test_predict_gives_the_heads_logits_unless_a_method_says_otherwise():
    learner = bare("finetune", classes=[2])
    learner.net = Fixed([[1.0, 2.0]])
    assert learner.predict(batch(0).images).tolist() == [[1.0, 2.0]]


def test_a_strategy_without_a_loss_says_that_one_must_be_written():
    with pytest.raises(NotImplementedError, match="Strategy must write loss"):
        Strategy(toy_factory(toy_stream(), seed=0), Budget()).loss(batch(0))


@pytest.mark.parametrize(("slots", "planned"), [(0, 0), (5, 3), (10, 8), (100, 22)])
def test_by_default_floor_m_over_c_of_each_class_are_planned_and_small_classes_whole(slots, planned):
    counts = {0: 12, 1: 2, 2: 8}  # quotas 0, 1, 3 and 33
    assert sum(bare("replay").exemplar_plan(slots, counts).values()) == planned
    assert bare("finetune").exemplar_plan(slots, counts) == {}


def test_progress_is_the_share_of_steps_done():
    assert Progress().share == 0.0
    assert Progress(epoch=1, epochs=4, step=3, steps=12).share == 0.25
    assert Progress(steps=0).share == 0.0


def test_draws_are_keyed_by_purpose_experience_and_seed(tmp_path):
    def draw_batch(seed: int, index: int, purpose: str) -> float:
        run = toy_run("replay", toy_stream(), tmp_path, seed=seed)
        return float(torch.rand(1, generator=run.work.learners.rebuilt(index, None).generator(purpose)))

    drawn = [draw_batch(*key) for key in ((0, 1, "a"), (0, 1, "b"), (0, 2, "a"), (1, 1, "a"))]
    assert len(set(drawn)) == 4
    assert draw_batch(0, 1, "a") == drawn[0]


# names --------------------------------------------------------------------------------------------------------------


def test_every_built_in_strategy_is_one_file_and_found_by_its_name():
    assert {"der", "ewc", "finetune", "icarl", "joint", "lwf", "replay", "wa"} <= set(strategies.built_in())
    for name in strategies.built_in():
        assert find(name).name == name and find(name).__module__.removesuffix("_") == f"cil.strategies.{name}"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no strategy 'icral'.*icarl.*key strategy"):
        find("icral")


def test_a_file_of_that_name_beside_one_is_told_how_its_class_is_named(tmp_path, monkeypatch):
    (tmp_path / "my_idea.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"a class of my_idea\.py is named my_idea:CLASS"):
        find("my_idea")


def test_a_registered_strategy_is_found(monkeypatch):
    monkeypatch.setattr("cil.strategies.registry.STRATEGIES.registered", {})
    assert find(register("probe")(Probe).name) is Probe


def test_those_that_keep_all_data_are_bounds_and_none_needs_to_know_what_will_come():
    assert [name for name in strategies.built_in() if find(name).bound] == ["cumulative", "joint"]
    assert not any(find(name).uses_horizon for name in strategies.built_in())


def test_the_share_before_is_that_of_old_classes_and_one_that_comes_back_counts_again():
    learner, shares = bare("replay"), []
    for index, (present, seen) in enumerate([((0, 1), 2), ((2, 3, 4), 5), ((0, 5), 6), ((1, 2), 6)]):
        new = tuple(slot for slot in present if slot >= learner.num_classes)
        learner.grow(Signature(index, new, present, dict.fromkeys(present, 4), (3, 12, 12), seen))
        shares.append(learner.share_before)
    assert shares == [0, 2 / 5, 5 / 7, 7 / 9]
