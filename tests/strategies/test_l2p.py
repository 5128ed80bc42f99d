"""L2P: prompts that are chosen by the image, in front of a transformer that never changes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_runs import ONE_STEP, bare, batch, bits, differing, observed, signatures
from torch import nn

from cil.api import plan
from cil.cli.build import build
from cil.cli.compose import compose
from cil.engine.dry_run import dry_run
from cil.engine.recipe import Recipe
from cil.errors import ConfigError, StateError
from cil.kinds.classes.rules import predict_does_not_look_at_the_rest_of_the_batch
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Budget
from cil.models import NetFactory, build_backbone, count_parameters
from cil.strategies.l2p import L2P
from cil.streams import Experience, Signature
from cil.testing import toy_stream
from cil.testing.toy import toy_factory

POOL = 10 * 5 * 32 + 10 * 32  # floats of the prompts and keys
VIT = L2P.toy_model
ADAM = Recipe(epochs=2, batch_size=8, log_every=1, optimizer=partial(torch.optim.Adam, lr=0.01))


def factory(**options):
    return toy_factory(toy_stream(), seed=0, model=VIT, **options)


def transformer(tensors):
    return {name: value for name, value in tensors.items() if name.startswith("vit.")}


# the loss -----------------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Logits that do not depend on what is seen."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, features):
        return self.logits.expand(len(features), -1) if self.logits.ndim == 1 else self.logits


def test_the_cross_entropy_is_over_the_classes_that_have_data_here():
    learner = bare("l2p", classes=[2, 2], pull=0.0)
    learner.net = Head([9.0, 9.0, 0.0, math.log(3)])
    assert learner.loss(batch(2, 2)).keys() == {"classes"}
    assert learner.loss(batch(2, 2))["classes"].item() == pytest.approx(math.log(4), abs=1e-5)
    assert learner.loss(batch(3))["classes"].item() == pytest.approx(math.log(4 / 3), abs=1e-5)


def test_a_class_that_comes_back_has_its_column_and_others_of_the_past_have_none():
    learner = bare("l2p", classes=[3], pull=0.0)
    learner.grow(Signature(1, (3,), (3, 1), {3: 4, 1: 4}, (3, 12, 12), 4))
    learner.net = Head([9.0, 0.0, 9.0, math.log(3)])
    assert learner.loss(batch(3, 1))["classes"].item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, abs=1e-5)


def test_an_experience_of_old_classes_alone_trains_their_columns():
    learner = bare("l2p", classes=[2, 1], pull=0.0)
    learner.grow(Signature(2, (), (0, 2), {0: 4, 2: 4}, (3, 12, 12), 3))
    learner.net = Head([0.0, 9.0, math.log(3)])
    assert learner.loss(batch(0, 2))["classes"].item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, abs=1e-5)


def test_prompts_are_chosen_image_by_image_in_any_order():
    learner, shown = bare("l2p", classes=[4]), batch(*range(4)).images
    order = torch.tensor([2, 0, 3, 1])

    def chosen(images):
        return learner.pool(learner.plain_features(learner.normalise(images)))[2]

    assert torch.equal(chosen(shown[order]), chosen(shown)[order])


def test_rows_of_old_classes_get_no_gradient():
    learner = bare("l2p", classes=[2, 2])
    sum(learner.loss(batch(2, 3, 3)).values()).backward()
    for values in (learner.net.weight.grad, learner.net.bias.grad):
        assert not values[:2].any() and values[2:].any(dim=-1).all()


@pytest.mark.parametrize("train_selection", ["sample", "batch"])
def test_the_pull_term_is_minus_the_mean_sum_of_cosines_to_the_chosen_keys(train_selection):
    learner = bare("l2p", classes=[2], pull=0.3, train_selection=train_selection)
    shown = batch(0, 1, 1, 0)
    queries = learner.vit(learner.normalise(shown.images))[0]
    cosines = F.cosine_similarity(queries[:, None], learner.pool.keys[None], dim=2)  # (4, 10)
    if train_selection == "sample":
        chosen = cosines.topk(5, dim=1).values
    else:
        votes = torch.zeros(10).scatter_add(0, cosines.topk(5, dim=1).indices.flatten(), torch.ones(20))
        chosen = cosines[:, (votes - torch.arange(10) / 100).topk(5).indices]
    expected = -0.3 * chosen.sum(1).mean().item()
    assert abs(expected) <= 0.3 * 5
    assert learner.loss(shown)["pull"].item() == pytest.approx(expected, abs=1e-6)


def test_the_pull_turns_chosen_keys_towards_the_query_and_reaches_no_prompt():
    learner = bare("l2p", classes=[2])
    shown = batch(0)
    (queries,) = learner.vit(learner.normalise(shown.images))[0]
    _, _, chosen = learner.pool(queries[None])
    keys, prompts = learner.pool.keys, learner.pool.prompts
    moved, none = torch.autograd.grad(learner.loss(shown)["pull"], [keys, prompts], allow_unused=True)
    assert none is None
    others = [k for k in range(10) if k not in chosen.flatten().tolist()]
    assert len(others) == 5 and not moved[others].any()
    before = F.cosine_similarity(queries[None], keys)
    after = F.cosine_similarity(queries[None], keys - 0.1 * moved)
    assert (after > before)[chosen[0]].all() and torch.equal(after[others], before[others])


def test_the_cross_entropy_reaches_chosen_prompts_and_the_head_and_no_key():
    learner = bare("l2p", classes=[2])
    shown = batch(0)
    *_, chosen = learner.pool(learner.vit(learner.normalise(shown.images))[0])
    learner.loss(shown)["classes"].backward()
    reached = learner.pool.prompts.grad.flatten(1).any(1)
    assert sorted(reached.nonzero().flatten().tolist()) == sorted(chosen[0].tolist())
    assert learner.pool.keys.grad is None and learner.net.weight.grad.any()


def test_images_are_normalised_once_for_query_and_features():
    learner = bare("l2p", classes=[2])
    seen = []
    learner.vit.model.patch_embed.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    shown = batch(0, 1)
    learner.loss(shown)
    assert len(seen) == 2 and torch.equal(*seen)
    torch.testing.assert_close(seen[0], learner.normalise(shown.images))
    assert not torch.equal(seen[0], shown.images)


# what is trained, and what is not -----------------------------------------------------------------------------------


def test_prompts_keys_and_head_are_trained_and_nothing_else():
    learner = bare("l2p", classes=[2, 3])
    assert sum(p.numel() for p in learner.trainable()) == POOL + 32 * 5 + 5
    learner.train_mode()
    assert not any(layer.training for layer in learner.vit.modules())
    assert learner.pool.training


def test_a_frozen_transformer_drops_no_path_in_training():
    model = {"name": VIT["name"], "options": {**VIT["options"], "drop_path_rate": 0.9, "proj_drop_rate": 0.5}}
    learner = L2P(toy_factory(toy_stream(), seed=0, model=model), Budget())
    learner.grow(signatures([2])[0])
    learner.train_mode()
    one, two = (learner.loss(batch(0, 1)) for _ in range(2))
    assert torch.equal(one["classes"], two["classes"])


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_the_transformer_is_the_same_all_along_and_the_pool_has_one_size(learn, stream):
    done = learn("l2p", stream)
    first = {f"vit.{name}": value for name, value in bare("l2p").vit.state_dict().items()}
    for index in range(3):
        state = done.state(index).tensors
        assert differing(transformer(state), first) == []
        assert state["pool.prompts"].shape == (10, 5, 32) and state["pool.keys"].shape == (10, 32)


def test_prompts_keys_and_new_rows_move_and_old_rows_stay_bit_for_bit_under_adam(learn):
    seen = {}

    def see(when, learner, experience):
        now = bits(learner.pool) | {f"head.{k}": v for k, v in bits(learner.net).items()}
        if when == "trained":
            assert set(differing(seen["prepared"], now)) == {"prompts", "keys", "head.weight", "head.bias"}
            old = learner.old_classes
            for name in ("head.weight", "head.bias"):
                assert torch.equal(now[name][:old], seen["prepared"][name][:old])
                assert not torch.equal(now[name][old:], seen["prepared"][name][old:])
            seen["learned"] = experience.index
        seen[when] = now

    learn(observed("l2p", see), recipe=ADAM)
    assert seen["learned"] == 2


def test_without_the_pull_keys_stay_as_drawn_even_under_decay(learn):
    done = learn("l2p", hyperparameters={"pull": 0.0})
    keys = done.run.work.learners.rebuilt(0, None).pool.keys
    for index in range(3):
        assert torch.equal(done.state(index).tensors["pool.keys"], keys)
        assert not torch.equal(done.state(index).tensors["pool.prompts"], done.learner(0).pool.prompts) or index == 0
    assert not torch.equal(learn("l2p").state(2).tensors["pool.keys"], keys)


def test_how_a_training_batch_selects_matters_to_training_and_not_to_answers(learn):
    by_batch = learn("l2p", hyperparameters={"train_selection": "batch"})
    assert differing(dict(by_batch.state(0).tensors), dict(learn("l2p").state(0).tensors))
    predict_does_not_look_at_the_rest_of_the_batch(StrategySubject("l2p", {"train_selection": "batch"}))
    learner = by_batch.learner(2).to("cpu")
    sample = learn("l2p").run.work.learners.rebuilt(3, by_batch.state(2))
    images = batch(*range(6)).images
    assert torch.equal(
        by_batch.run.work.learners.scores(learner, images), by_batch.run.work.learners.scores(sample, images)
    )


def test_a_shared_pool_starts_an_experience_from_the_prompts_of_the_last_one():
    """Five prompts an experience, ten in the pool: the second copies, and for a third there are none."""
    learner = bare("l2p", classes=[2, 2, 2], transfer=True)
    drawn = bits(learner.pool)
    for index, moved in ((0, []), (2, []), (1, [5, 6, 7, 8, 9])):
        learner.prepare(Experience(signatures([2, 2, 2])[index], None))
        now = bits(learner.pool)
        changed = (now["prompts"] != drawn["prompts"]).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == moved and torch.equal(now["keys"], drawn["keys"])
    assert torch.equal(now["prompts"][5:], drawn["prompts"][:5])
    still = bare("l2p", classes=[2, 2])
    drawn = bits(still.pool)
    still.prepare(Experience(signatures([2, 2])[1], None))
    assert differing(drawn, bits(still.pool)) == []


def test_the_position_of_prompts_reaches_the_answers():
    shown = batch(*range(4)).images
    one, two = (bare("l2p", classes=[4], position=position) for position in ("class", "none"))
    two.pool.load_state_dict(one.pool.state_dict())
    assert (one.predict(shown) - two.predict(shown)).abs().max() > 1e-4


# what it costs ------------------------------------------------------------------------------------------------------


def test_carried_bytes_are_those_of_the_formula_where_weights_are_random(learn):
    done = learn("l2p")
    vit = count_parameters(factory().backbone())
    for index in range(3):
        c = 2 * (index + 1)
        assert done.ledger(index) == {"parameters": 4 * (vit + POOL + 32 * c + c)}
        survey = done.record.results["ledger"][index]["totals"]["survey"]
        assert survey["total"] == 4 * vit
        assert not done.trained_with(index).keys() & {"vit", "teacher"}
        assert done.record.results["exemplars"][index] == 0


def test_the_bill_of_a_vit_b16_by_hand():
    """4 (85,798,656 + 46,080 + 768 C + C), as a reference and as random weights; 327.8 MiB at C = 100."""
    for weights, sources in (("hub", 1), (None, 0)):
        build = partial(build_backbone, "timm:vit_base_patch16_224.augreg_in21k", 3, 224, weights=weights)
        make = partial(NetFactory, build, meta=True, pretrained=weights)
        made = []
        given = signatures([10] * 10)
        bills = dry_run(lambda net, budget: made.append(L2P(net, budget)) or made[0], make, given, Budget())  # noqa: B023
        for number, bill in enumerate(bills, 1):
            assert bill.fixed["exact"] == bill.by_kind["parameters"] == 4 * (85_798_656 + 46_080 + 7690 * number)
            assert bill.fixed["survey"] == 4 * 85_798_656 and bill.exemplars == 0
        assert round(bills[-1].fixed["exact"] / 2**20, 1) == 327.8
        assert len(made[0].state().references) == sources


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A run with weights from a file."""
    folder = tmp_path_factory.mktemp("public")
    torch.manual_seed(5)
    backbone = build_backbone(VIT["name"], 3, 12, **VIT["options"])
    from safetensors.torch import save_file

    with torch.no_grad():  # drawn as small as timm does, hardly anything of an image reaches the prompts
        for name, value in backbone.named_parameters():
            value.mul_(8.0 if "blocks" in name and value.ndim == 2 else 1.0)
    weights = {name: value.contiguous() for name, value in backbone.model.state_dict().items()}
    save_file(weights, folder / "vit.safetensors")
    model = {**VIT, "weights": str(folder / "vit.safetensors")}
    recipe = replace(ADAM, epochs=20, optimizer=partial(torch.optim.Adam, lr=0.03))
    run = plan("l2p", toy_stream(), model, Budget(), recipe=recipe, run_dir=folder / "run", threads=1, keep="all")
    return run, run.execute(), backbone


def test_what_is_learned_is_known_afterwards(public):
    _, record, _ = public
    assert record.results["accuracy_curve"][0] > 80
    assert min(record.results["accuracy_matrix_task_aware"][i][i] for i in range(3)) > 80


def test_public_weights_are_a_reference_charged_once_and_stored_nowhere(public):
    run, record, backbone = public
    for index in range(3):
        state, c = run.checkpoints.state(index), 2 * (index + 1)
        assert sorted(state.tensors) == ["net.bias", "net.weight", "pool.keys", "pool.prompts"]
        (reference,) = state.references
        assert reference.bytes == 4 * count_parameters(backbone) and "vit.safetensors" in reference.tag
        totals = record.results["ledger"][index]["totals"]
        assert totals["exact"]["total"] == 4 * (count_parameters(backbone) + POOL + 32 * c + c)
        assert record.results["bills"][index]["total"]["exact"] == totals["exact"]["total"]
        assert totals["survey"]["total"] == 4 * count_parameters(backbone)
    learner = run.work.learners.rebuilt(3, run.checkpoints.state(2))
    assert differing(bits(learner.vit.model), bits(backbone.model)) == []
    assert learner.normalise.mean.flatten().tolist() == [0.5] * 3  # what the weights were trained with


def test_the_reference_is_one_for_all_who_start_from_the_same_weights(public):
    run, _, _ = public
    digests = {run.checkpoints.state(index).references[0].sha256 for index in range(3)}
    assert len(digests) == 1
    learner = run.work.learners.rebuilt(3, run.checkpoints.state(2))
    with torch.no_grad():
        next(learner.vit.parameters()).add_(1)
    with pytest.raises(StateError, match=r"vit refers to the public weights.*was modified"):
        learner.state()


def test_public_weights_are_not_trained(public):
    run, _, _ = public
    learner = run.work.learners.rebuilt(3, run.checkpoints.state(2))
    assert sum(p.numel() for p in learner.trainable()) == POOL + 32 * 6 + 6


# what is refused ----------------------------------------------------------------------------------------------------


def test_a_convolutional_backbone_is_refused_before_training(tmp_path):
    run = plan("l2p", toy_stream(), "smallconv", recipe=ONE_STEP, run_dir=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"^strategy l2p needs a timm vision transformer, not a SmallConvNet: .*model\.name"
    ):
        run.execute()
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not list((tmp_path / "run").glob("checkpoint/*"))


def test_the_surveys_recipe_is_adam_without_decay_at_a_constant_rate(tmp_path):
    model = [f"model.name={VIT['name']}", *(f"++model.options.{key}={value}" for key, value in VIT["options"].items())]
    run = build(compose(["strategy=l2p", "recipe=survey", "stream=split_digits", *model]), root=tmp_path)
    optimizer = run.work.recipe.optimizer([nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1.875e-3, 0.0, (0.9, 0.999))
    assert (run.work.recipe.epochs, run.work.recipe.batch_size) == (5, 16)
    schedule = run.work.recipe.scheduler(optimizer, 5)
    for _ in range(4):
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [1.875e-3]
