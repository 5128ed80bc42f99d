"""TRGP: subspaces of tasks in one basis, the trust region, weights scaled within it, and old tasks that stay."""

import pytest
import torch
from small_runs import differing
from torch import nn

from cil.data import Batch
from cil.memory import Allowance, Budget
from cil.strategies.parts.subspace import TaskSubspaces, weighted_layers
from cil.strategies.trgp import TRGP, trust_region
from cil.testing import toy_run, toy_tasks
from cil.testing.toy import toy_factory

STEPS = {"trials": 0, "steps": 4, "batch_size": 8}


def spaces(*moments, share=1.0):
    """Subspaces of R^4 that hold the squares of inputs of each task."""
    made = TaskSubspaces(4)
    for squares in moments:
        made.grow()
        made.add(torch.diag(torch.tensor(squares)), share)
    return made


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run with everything protected, on three tasks and the first once more."""
    own = {"threshold": 1.0, "images": 24, "trust": 0.0, "search": STEPS}
    run = toy_run("trgp", toy_tasks(), tmp_path_factory.mktemp("run"), keep="all", hyperparameters=own)
    return run, run.execute()


def learner(run, index):
    return run.work.learners.rebuilt(index + 1, run.checkpoints.state(index))


# subspaces --------------------------------------------------------------------------------------------------------


def test_the_number_of_directions_by_hand():
    """X = diag(3, 1): the first has 9/10 of the square, which is below .95."""
    for share, count in ((0.95, 2), (0.9, 1), (0.89, 1), (0.0, 0)):
        found = spaces([9.0, 1.0, 0.0, 0.0], share=share)
        assert int(found.count) == int(found.members.sum()) == count


def test_a_task_shares_columns_of_earlier_ones():
    """Squares 6 and 3 of 10 along known directions are enough for .9, and one new direction for more."""
    for share, old, new in ((0.9, 2, 0), (0.91, 2, 1)):
        found = spaces([5.0, 4.0, 0.0, 0.0])
        found.grow()
        assert found.add(torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0])), share) == new
        assert found.members.int().sum(1).tolist() == [2, old + new] and int(found.count) == 2 + new


def test_a_larger_new_direction_comes_before_a_smaller_old_one():
    found = spaces([1.0, 0.0, 0.0, 0.0])
    found.grow()
    assert found.add(torch.diag(torch.tensor([1.0, 9.0, 0.0, 0.0])), 0.9) == 1
    assert found.members[1].tolist() == [False, True, False, False]


def test_the_same_inputs_need_no_further_column_even_where_all_of_them_are_to_be_held():
    """(1, 1, 1, 0) / sqrt(3) in float32 is shorter than 1 by 2e-8."""
    line, found = torch.tensor([1.0, 1.0, 1.0, 0.0]), TaskSubspaces(4)
    for new in (1, 0, 0):
        found.grow()
        assert found.add(torch.outer(line, line), 1.0) == new
    assert found.members.int().sum(1).tolist() == [1, 1, 1] and int(found.count) == 1


def test_all_columns_are_orthonormal_and_fill_the_space():
    generator, found = torch.Generator().manual_seed(0), TaskSubspaces(6)
    for step in range(7):
        column = torch.randn(6, 1, generator=generator)
        found.grow()
        found.add(column @ column.T, 0.999999)
        held = found.basis[:, : int(found.count)]
        torch.testing.assert_close(held.T @ held, torch.eye(held.shape[1]), atol=1e-5, rtol=0)
        assert not found.outside(column.T).abs().max() > 1e-5 and int(found.count) <= min(6, step + 1)


def test_shares_of_a_gradient_by_hand():
    """g = (3, 4): tasks along its first, its second, and both axes."""
    found = spaces([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(found.shares(torch.tensor([[3.0, 4.0, 0.0, 0.0]])), torch.tensor([0.6, 0.8, 1.0]))
    assert found.outside(torch.tensor([[3.0, 4.0, 1.0, 0.0]])).tolist() == [[0, 0, 1, 0]]


def test_the_trust_region_has_the_nearest_of_those_that_are_near_enough():
    assert trust_region([0.6, 0.2, 0.9, 0.7], least=0.5, most=2) == [2, 3]
    assert trust_region([0.6, 0.2], least=0.7, most=2) == []
    assert trust_region([0.5], least=0.5, most=2) == [0]


# weights ------------------------------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    """A backbone of one linear layer, W = (1, 1)."""

    feature_dim = 1

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, images):
        return self.layer(images.flatten(1)), ()


def bare(stream=None, **hyperparameters):
    """A learner without an engine, at the second of two tasks."""
    stream = stream or toy_tasks(order="ac")
    made = TRGP(toy_factory(stream, seed=0), Allowance(Budget()), search=STEPS, **hyperparameters)
    torch.manual_seed(0)
    for signature in stream.signatures:
        made.grow(signature)
    return made


def test_scaled_weights_by_hand():
    """W = (1, 1), S = e1: Q = 2 gives (2, 1), and Q = 1 gives W."""
    made = bare()
    made.net.backbone, made.layers = OneLayer(), {"layer": "layer"}
    space = TaskSubspaces(2)
    space.grow()
    space.add(torch.diag(torch.tensor([1.0, 0.0])), 1.0)
    made.subspaces = nn.ModuleDict({"layer": space})
    for q, expected in ((2.0, [2.0, 1.0]), (1.0, [1.0, 1.0])):
        own = torch.zeros(2, 2)
        own[0, 0] = q - 1
        made.scalings[made.task.name] = nn.ParameterDict({"layer": own})
        assert made.weights_of(made.task)["backbone.layer.weight"].tolist() == [expected]
        assert made.net.backbone.layer.weight.tolist() == [[1.0, 1.0]]  # not in place


def test_two_scalings_that_share_a_column_move_it_twice():
    """The sum of Q_1 and Q_2 has the gradient of both: 1 in own columns, 2 in a shared one, 0 across and elsewhere."""
    made = bare()
    batch = Batch(torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 3, 4, 2]))
    for space in made.subspaces.values():
        d = len(space.basis)
        space.basis.copy_(torch.eye(d)), space.count.fill_(d)
    made.trusted = {key: torch.zeros(2, len(space.basis)) for key, space in made.subspaces.items()}
    for rows in made.trusted.values():
        rows[0, :2], rows[1, 1:3] = 1, 1
    made.loss_of(made.task, batch, {"smoothing": 0.0}).backward()
    plain = {key: value.grad.clone() for key, value in made.scalings[made.task.name].items()}
    made.adjust_gradients(batch)
    for key, value in made.scalings[made.task.name].items():
        factors = torch.zeros_like(value)
        factors[:2, :2] += 1
        factors[1:3, 1:3] += 1
        assert plain[key].any() and torch.equal(value.grad, plain[key] * factors)
    assert not any(layer.weight.grad.any() for layer in weighted_layers(made.net.backbone).values())  # all is inside


# runs ---------------------------------------------------------------------------------------------------------------


def test_an_old_task_answers_as_before(done):
    """With the whole of its inputs protected: also where its weights are scaled."""
    run, _ = done
    for task, later in ((0, 1), (1, 2)):
        key, images = run.work.stream.signatures[task].task, run.work.stream[task].train.images
        with torch.no_grad():
            before, after = (learner(run, index).predict(images, key) for index in (task, later))
        torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_weights_learn_outside_and_scalings_inside_their_trust_region(done):
    run, record = done
    states = [run.checkpoints.state(index).tensors for index in range(4)]
    changed = differing(states[0], {name: states[3][name] for name in states[0]})
    layers = weighted_layers(learner(run, 0).net.backbone)
    stay = [f"net.backbone.{name}" for name in layers] + ["net.heads.0", "subspaces."]
    assert all(name.startswith(tuple(stay)) for name in changed)
    assert differing(  # of a task that is over
        {name: t for name, t in states[1].items() if name.startswith("scalings.2")},
        {name: t for name, t in states[3].items() if name.startswith("scalings.2")},
    ) == []  # fmt: skip
    moved = [t for name, t in states[1].items() if name.startswith("scalings.2")]
    assert any(t.any() for t in moved)
    regions = [event["findings"].get("trust_region") for event in record.results["events"]]
    assert regions[0] is None and regions[1] == {name: [0] for name in layers}
    assert all(len(set(tasks)) == 2 and max(tasks) < 3 for tasks in regions[3].values())


def test_without_a_trust_region_it_is_gradient_projection_alone(tmp_path):
    own = {"threshold": 0.5, "trust": 1.0, "search": STEPS}
    run = toy_run("trgp", toy_tasks(order="ac"), tmp_path, keep="all", hyperparameters=own)
    run.execute()
    scalings = [t for name, t in run.checkpoints.state(1).tensors.items() if name.startswith("scalings.")]
    assert scalings and not any(t.any() for t in scalings)


def test_the_bytes_of_subspaces_and_scalings(done):
    """4 d^2 + 8 a layer, and d a task; 4 d^2 for each task that is not the first."""
    run, record = done
    sizes = [layer.weight[0].numel() for layer in weighted_layers(learner(run, 0).net.backbone).values()]
    plain = sum(p.numel() * 4 for name, p in learner(run, 0).net.named_parameters() if "backbone" in name)
    for index, (later, outputs) in enumerate([(0, 2), (1, 5), (2, 8), (3, 8)]):
        found = record.results["ledger"][index]["totals"]["exact"]
        assert found["statistics"] == sum(4 * d * d + 8 + (index + 1) * d for d in sizes)
        assert found["parameters"] == plain + 4 * 33 * outputs + later * sum(4 * d * d for d in sizes)
