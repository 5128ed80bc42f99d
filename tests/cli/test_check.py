"""cil check takes hyperparameters, in the grammar of cil run."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("ranpac",), {}),
        (("ranpac", "strategy.size=64", "strategy.gram=packed", "strategy.ridge=0.5"),
         {"size": 64, "gram": "packed", "ridge": 0.5}),
        (("strategy.host_options={strength:0.5}", "rmm"), {"host_options": {"strength": 0.5}}),
        (("cil.strategies.podnet:PODNet", "strategy.hinge=true"), {"hinge": True}),
    ],
)  # fmt: skip
def test_hyperparameters_reach_what_is_checked(cil, monkeypatch, arguments, given):
    subjects = []
    monkeypatch.setattr("cil.testing.outcomes", lambda subject: subjects.append(subject) or [])
    said = cil("check", *arguments)
    assert said.code == 0, said.err
    assert [dict(subject.hyperparameters) for subject in subjects] == [given]


def test_every_strategy_that_is_named_is_given_them(cil, monkeypatch):
    subjects = []
    monkeypatch.setattr("cil.testing.outcomes", lambda subject: subjects.append(subject) or [])
    assert cil("check", "wa", "icarl", "strategy.codec=jpeg:90").code == 0
    assert [(s.target.name, dict(s.hyperparameters)) for s in subjects] == [
        ("wa", {"codec": "jpeg:90"}),
        ("icarl", {"codec": "jpeg:90"}),
    ]


def test_a_stream_is_met_and_says_the_kind_of_run(cil, monkeypatch):
    subjects = []
    monkeypatch.setattr("cil.testing.outcomes", lambda subject: subjects.append(subject) or [])
    said = cil("check", "finetune", "stream=rotated_digits", "stream.train_per_class=12", "strategy.codec=raw")
    assert said.code == 2 and "codec" in said.line
    assert cil("check", "finetune", "stream=split_digits", "stream.train_per_class=12").code == 0
    assert [sum(subject.stream.signatures[0].counts.values()) for subject in subjects] == [24]
    said = cil("check", "finetune", "stream=split_digits")
    assert "240 images in 5 parts of 1,438 images in 5 parts" in said.out
    assert all(sum(signature.counts.values()) == 48 for signature in subjects[-1].stream.signatures)
    assert "a stream, not 'seed=1'" in cil("check", "finetune", "seed=1").line


@pytest.mark.parametrize(("wrong", "says"), [("--foo", "no option '--foo'"), ("replya", "replya")])
def test_what_is_unknown_is_refused_before_anything_is_checked(cil, monkeypatch, wrong, says):
    monkeypatch.setattr("cil.testing.outcomes", lambda subject: pytest.fail("checked"))
    said = cil("check", "replay", wrong)
    assert said.code == 2 and says in said.line
