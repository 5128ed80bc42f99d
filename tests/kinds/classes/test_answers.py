"""Several answers from one run: by the head and by the nearest mean of exemplars, and top-5; one is the method's."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_records import exemplar_budget
from torch import Tensor, nn

from cil.data import Samples
from cil.kinds.classes.answers import Answers
from cil.memory import Budget, ExemplarMemory
from cil.models import Output
from cil.report import table, to_csv, to_json, to_markdown, to_text, write_html
from cil.strategies.icarl import ICaRL
from cil.testing import toy_run, toy_stream

LEARNERS = SimpleNamespace(
    scores=lambda learner, images: learner.predict(images), answering=lambda learner: nullcontext()
)


class Pixels(nn.Module):
    """Features are the two pixels of an image."""

    def forward(self, images: Tensor) -> Output:
        features = images.flatten(1)
        return Output(features.flip(1), features)


class ByHead:
    """Answers by the two pixels of an image, the other way round."""

    answers_by, bound, transductive = "head", False, False
    num_classes, device = 2, torch.device("cpu")

    def __init__(self, exemplars: Samples) -> None:
        self.net, self.memory = Pixels(), ExemplarMemory()
        self.memory.replace([exemplars])

    def memories(self) -> dict[str, ExemplarMemory]:
        return {"memory": self.memory}

    def predict(self, images: Tensor) -> Tensor:
        return self.net(images).logits

    def further_answers(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        return {"twice": 2 * output.logits}


def images(*pixels: tuple[int, int]) -> Tensor:
    return torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 2)


def asked(learner, scores=None):
    answers = Answers(learner, LEARNERS, learned=1)
    given = answers.listening(learner.predict if scores is None else lambda images: scores)
    return answers, given


def test_the_nearest_mean_of_exemplars_by_hand():
    """Unit features (1, 0) and (0.6, 0.8) of class 0 have the unit mean (2, 1) / sqrt 5; class 1 has (0, 1)."""
    learner = ByHead(Samples.from_arrays(images((255, 0), (153, 204), (0, 255)), torch.tensor([0, 0, 1])))
    answers, predict = asked(learner)
    tests = images((102, 102), (51, 255), (0, 0)).float() / 255  # unit: (1, 1) / sqrt 2, (1, 5) / sqrt 26
    torch.testing.assert_close(answers.means, torch.tensor([[2 / 5**0.5, 1 / 5**0.5], [0.0, 1.0]]))
    assert torch.equal(predict(tests), learner.predict(tests))
    assert list(answers._given) == ["twice", "nearest_mean", "head"]
    cosines = torch.tensor([[3 / 10**0.5, 1 / 2**0.5], [7 / 130**0.5, 5 / 26**0.5]])
    torch.testing.assert_close(answers._given["nearest_mean"][:2], -(2 - 2 * cosines).sqrt())
    answers.count(torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]))  # the third is of an experience to come
    assert {name: right.tolist() for name, right in answers.counts().items()} == {
        "answer.own.head": [1, 2], "answer.further.twice": [1, 2], "answer.further.nearest_mean": [2, 2]
    }  # fmt: skip
    assert not answers.learner.net._forward_hooks and predict(tests).shape == (3, 2)


@pytest.mark.parametrize("attribute", ["bound", "transductive"])
def test_bounds_and_answers_that_depend_on_other_images_have_their_own_alone(attribute):
    learner = ByHead(Samples.from_arrays(images((255, 0)), torch.tensor([0])))
    setattr(learner, attribute, True)
    answers, predict = asked(learner)
    predict(images((1, 2)).float())
    answers.count(torch.tensor([0]), torch.tensor([0]))
    assert answers.means is None and list(answers.counts()) == ["answer.own.head"]


def test_top_5_by_hand():
    """The class of each image is 0. It is scored first, fifth, sixth, level with others, and not at all."""
    learner = ByHead(Samples.from_arrays(images((255, 0)), torch.tensor([0])))
    nothing = -torch.inf
    scores = torch.tensor([
        [9.0, 1, 2, 3, 4, 5, 6],
        [3.0, 4, 5, 6, 7, 1, 2],
        [2.0, 3, 4, 5, 6, 7, 1],
        [1.0, 1, 1, 1, 1, 1, 1],
        [nothing, nothing, nothing, nothing, nothing, 1, 2],
    ])  # fmt: skip
    answers, predict = asked(learner, scores)
    predict(images(*[(0, 0)] * 5).float())
    answers.count(torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    assert answers.counts()["answer.own.head"].tolist() == [2, 3]


class ByAnotherName(ICaRL):
    answers_by = "own"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """iCaRL, whose nearest mean is taken for something else, under a budget for each class: all answers, or its own."""
    stream, budget = toy_stream(), Budget(per_class=2)
    made = {
        which: toy_run(ByAnotherName, stream, tmp_path_factory.mktemp("run"), budget=budget, answers=which)
        for which in ("all", "own")
    }
    return {which: (run, run.execute()) for which, run in made.items()}


def test_the_methods_own_nearest_mean_is_the_one_that_is_named(runs):
    results = runs["all"][1].results
    answers = results["answers"]
    assert results["answer"] == "own" and list(answers) == ["own", "head", "nearest_mean"]
    assert answers["own"] == answers["nearest_mean"] != answers["head"]
    for key in ("accuracy_curve", "average_incremental_accuracy", "last_accuracy"):
        assert answers["own"][key] == results[key]
    assert answers["head"]["top5_curve"][:2] == [100.0, 100.0]  # of two classes and of four


def test_training_and_the_methods_answer_are_those_of_a_run_without_the_others(runs):
    (run, record), (other_run, other) = runs["all"], runs["own"]
    assert list(other.results["answers"]) == ["own"]
    moved = {"answers", "seconds", "flops"}
    assert {k: v for k, v in record.results.items() if k not in moved} == {
        k: v for k, v in other.results.items() if k not in moved
    }
    one, two = (each.checkpoints.state(2).tensors for each in (run, other_run))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert (record.arrays()["confusion"] == other.arrays()["confusion"]).all()


def test_the_evaluation_is_billed_one_pass_of_the_exemplars_more(runs):
    """iCaRL alone passes 16, 32 and 48 images, and its 4, 8 and 12 exemplars once."""
    every, own = (np.diff(runs[which][1].results["flops"]["evaluation"], prepend=0) for which in ("all", "own"))
    one_image = own / np.array([16 + 4, 32 + 8, 48 + 12])
    assert (every - own).tolist() == pytest.approx((one_image * [4, 8, 12]).tolist(), rel=0.02)


def test_so_many_exemplars_a_class_in_bill_and_run(runs):
    _, record = runs["all"]
    assert [bill["exemplars"] for bill in record.results["bills"]] == record.results["exemplars"] == [4, 8, 12]
    assert record.identity["budget"]["kind"] == "per_class" and record.identity["budget"]["per_class"] == 2


def answered(own: str, **last: float) -> dict:
    """Results with the last accuracy of each answer."""
    each = {
        name: {"accuracy_curve": [80.0, value], "average_incremental_accuracy": (80 + value) / 2,
               "last_accuracy": value, "top5_curve": [100.0, 95.5]}
        for name, value in last.items()
    }  # fmt: skip
    return {"answer": own, "answers": each}


def test_tables_show_all_answers_and_mark_the_methods_own(run, tmp_path):
    records = [
        run("icarl", results=answered("nearest_mean", nearest_mean=60.0, head=50.25)),
        run("replay", results=answered("head", head=40.0, nearest_mean=45.0)),
        run("finetune", results=answered("head", head=30.0)),
        run("wa"),  # of an earlier version
    ]
    content = table(records)
    (found,) = [titled for titled in content.sections[0].tables if titled.heading == "Answers"]
    cells = {line.name: found.grid.cells(line) for line in found.grid.lines}
    assert found.grid.heads == ("head", "nearest_mean", "top-5 %")
    assert cells == {
        "icarl": ["50.25", "60.00 *", "95.50"], "replay": ["40.00 *", "45.00", "95.50"],
        "finetune": ["30.00 *", "–", "95.50"],
    }  # fmt: skip
    write_html(records, tmp_path / "page.html")
    for text in (to_text(content), to_markdown(content), (tmp_path / "page.html").read_text()):
        assert "Answers" in text and "60.00 *" in text
    assert "answers_head_last_accuracy" in to_csv(content) and '"answers_nearest_mean_last_accuracy": 45.0' in to_json(
        content
    )
    assert not table([run("wa"), records[2]]).sections[0].tables


def test_budgets_of_so_many_a_class_are_a_table_of_their_own_and_said_in_words(run):
    each = {**exemplar_budget(0), "kind": "per_class", "exemplars": None, "per_class": 20}
    content = table([run("icarl", budget=each), run("icarl", budget=exemplar_budget(20))])
    assert sorted(section.subtitle for section in content.sections) == ["20 exemplars", "20 exemplars a class"]
