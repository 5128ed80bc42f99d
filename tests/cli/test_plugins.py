"""Other packages: their conf/ joins the search path, their entry points are names; nothing is imported early."""

from __future__ import annotations

import json
import sys

import pytest

from cil import plugins
from cil.cli.compose import compose
from cil.cli.grid import expand
from cil.strategies import registry

CODE = '''
from torch.nn import functional as F
from cil import Strategy
IMPORTED = True
class {kind}(Strategy):
    """Of another package."""
    def __init__(self, make_net, budget, *, alpha: float = 0.5, word: str = "a") -> None:
        super().__init__(make_net, budget)
        self.alpha = alpha
    def loss(self, batch):
        return self.alpha * F.cross_entropy(self.net(batch.images).logits, batch.slots)
'''
AWARE = "class Aware(Acme):\n    takes_task = True\n"
DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A package on the path, with the metadata of an installed one."""
    site = tmp_path / "site"
    (site / "acme_cil/methods/conf/strategy").mkdir(parents=True)
    (site / "acme_cil/__init__.py").write_text("raise ImportError('imported too early')\n")
    (site / "acme_cil/methods/__init__.py").write_text("")
    (site / "acme_cil/methods/conf/strategy/acme.yaml").write_text(
        "# Of acme.\n_target_: acme_one.Acme\n_partial_: true\nalpha: 0.25\n"
    )
    (site / "acme_one.py").write_text(CODE.format(kind="Acme") + CODE.format(kind="Bare") + AWARE)
    info = site / "acme_cil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-cil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cil.strategies]\nacme = acme_cil.methods:Acme\nbare = acme_one:Bare\naware = acme_one:Aware\n"
        "[cil.codecs]\nzip = acme_one:Zip\n"
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.forget()
    yield
    plugins.forget()
    registry.STRATEGIES.registered.pop("bare", None)
    sys.modules.pop("acme_one", None)


def test_a_plugin_is_listed_with_its_package_and_not_imported(acme, cil):
    out = cil("list", "strategies", "codecs").out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "acme acme-cil Of acme." in lines
    assert any(line.startswith("bare acme-cil") for line in lines)
    assert any(line.startswith("zip acme-cil") for line in lines)
    assert "acme_one" not in sys.modules


def test_a_plugins_file_joins_the_search_path(acme):
    job = compose(["strategy=acme", "strategy.alpha=2"])
    assert job.config["strategy"] == {"_target_": "acme_one.Acme", "_partial_": True, "alpha": 2}
    assert "acme_one" not in sys.modules


def test_a_plugin_without_a_file_has_the_hyperparameters_of_its_class(acme, cil):
    assert compose(["strategy=bare"]).config["strategy"] == {
        "_target_": "acme_one.Bare", "_partial_": True, "alpha": 0.5, "word": "a",
    }  # fmt: skip
    said = cil("run", "strategy=bare", "strategy.alpa=1", *DIGITS)
    assert said.code == 2 and "unknown key strategy.alpa; did you mean 'strategy.alpha'" in said.line


def test_all_strategies_are_those_of_plugins_too_by_whether_they_are_given_the_task(acme):
    asked = [cell.label for cell in expand(["strategy=all", "stream=embedded_tasks"])]
    assert "aware" in asked and not {"acme", "bare"} & set(asked)


def test_a_plugin_runs_and_stands_in_the_record(acme, cil):
    from cil.tracking import Record

    said = cil("run", "strategy=acme", "run_dir=a", *DIGITS)
    assert said.code == 0, said.err
    identity = Record.load("a").identity
    assert identity["strategy"] == "acme" and identity["config"]["strategy"]["alpha"] == 0.25


def test_a_wrong_name_is_told_the_plugins_too(acme, cil):
    assert "did you mean 'acme'" in cil("run", "strategy=acne", *DIGITS).line


def test_an_own_class_in_the_folder_runs_by_module_and_class(cil, tmp_path):
    (tmp_path / "my_idea.py").write_text(CODE.format(kind="Mine"))
    said = cil("run", "strategy=my_idea:Mine", "strategy.alpha=2", *DIGITS)
    assert said.code == 0, said.err
    assert said.out.startswith("Mine on digits_b0_inc2")
    sys.modules.pop("my_idea")


def test_a_misspelt_class_is_told_its_module_has_another(cil, tmp_path):
    (tmp_path / "my_slip.py").write_text(CODE.format(kind="MyIdea"))
    line = cil("run", "strategy=my_slip:MyIdeo", *DIGITS).line
    assert "my_slip has no MyIdeo; did you mean 'MyIdea'?" in line and "Strategy" not in line
    assert "my_slip has no MyIdeo; did you mean 'MyIdea'?" in cil("check", "my_slip:MyIdeo").line
    sys.modules.pop("my_slip")


def test_what_breaks_every_rule_alike_is_said_once(cil, tmp_path):
    code = CODE.format(kind="Mine").replace("self.alpha = alpha", "raise ValueError('no such thing')")
    (tmp_path / "my_fault.py").write_text(code)
    said = cil("check", "my_fault:Mine")
    assert said.code == 1
    broken, rules = said.out.splitlines()[:-1:2], said.out.splitlines()[1:-1:2]
    assert all(line.startswith("BROKEN") for line in broken) and all("the rule:" in line for line in rules)
    messages = [line.partition(": ")[2] for line in broken]
    assert messages[0].startswith("ValueError: no such thing (") and "my_fault.py:" in messages[0]
    assert messages.count("the same") >= len(messages) - 3  # two rules name the case that broke them
    sys.modules.pop("my_fault")


def test_an_edited_strategy_is_another_run(cil, tmp_path):
    for alpha in ("0.5", "0.75"):
        (tmp_path / "my_edit.py").write_text(CODE.format(kind="Mine").replace("0.5", alpha) + f"\n# {alpha}\n")
        assert cil("run", "strategy=my_edit:Mine", "strategy.alpha=1", *DIGITS).code == 0
    assert len(list(tmp_path.glob("runs/*/*"))) == 2
    sys.modules.pop("my_edit")


# packages that are not as they should be ------------------------------------------------------------------------------


@pytest.fixture
def careless(acme, tmp_path, monkeypatch):
    """Beside acme: packages with entry points that are malformed, unreadable, taken, or end the command."""
    site = tmp_path / "careless"
    for name, text in {
        "odd": "[cil.strategies]\nspaced = my idea!\nacme = odd_one:Other\nwa = odd_one:Other\n"
        "function = odd_one:idea\n",
        "stops": "[cil.strategies]\nstops = odd_stops:Idea\n[cil.codecs]\nboom = odd_boom:Codec\n",
    }.items():
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(text)
    (site / "odd_one.py").write_text("def idea(net, budget): ...\n\n\nclass Other: ...\n")
    (site / "odd_stops.py").write_text("import sys\n\nsys.exit(0)\n")
    (site / "odd_boom.py").write_text("x = 1\nraise RuntimeError('boom')\n")
    monkeypatch.syspath_prepend(str(site))
    plugins.forget()
    return site


def test_a_careless_package_is_named_and_breaks_nothing_else(careless, cil):
    said = cil("run", "stream=split_digits", "strategy=wa", "--dry-run", "progress=false")
    assert said.code == 0
    notes = said.err.splitlines()
    assert all(line.startswith("cil: note: entry point cil.strategies: ") for line in notes) and len(notes) == 3
    assert "spaced = my idea! of odd is malformed and left out; it must be module:object" in said.err
    assert "acme of odd is left out: acme-cil has that name too" in said.err.replace(" = odd_one:Other", "") or (
        "of acme-cil is left out: odd has that name too" in said.err
    )
    assert "wa = odd_one:Other of odd is left out: wa is built in; give it another name" in said.err


def test_a_module_that_ends_the_command_is_an_error_by_name(careless, cil, tmp_path):
    for arguments in (("run", "strategy=stops", "stream=split_digits"), ("check", "stops")):
        said = cil(*arguments)
        assert said.code == 2
        assert (
            f"sys.exit(0) was called, which ends the whole command ({careless}/odd_stops.py:3, in <module>)" in said.err
        )
    said = cil("run", "strategy=replay", "stream=split_digits", "strategy.codec=boom", "--dry-run")
    assert said.code == 2 and f"RuntimeError: boom ({careless}/odd_boom.py:2, in <module>)" in said.err
    said = cil("check", "function")
    assert said.code == 2 and "odd_one:idea, which is no class of Strategy" in said.err


BUG = """
from cil.strategies import Strategy


class Mine(Strategy):
    def loss(self, batch):
        self.{what}


def idea(make_net, budget):
    return 3
"""


def test_a_bug_in_a_loss_names_its_file_and_line(cil, tmp_path, monkeypatch):
    run = (
        "run",
        "stream=split_digits",
        "trainer.max_steps=1",
        "trainer.epochs=1",
        "progress=false",
        "trainer.threads=1",
    )
    for module, what, words in (
        ("own_bug", "nothing", "AttributeError: 'Mine' object has no attribute 'nothing'"),
        ("own_exit", "net; raise SystemExit(0)", "sys.exit(0) was called, which ends the whole command"),
    ):
        (tmp_path / f"{module}.py").write_text(BUG.format(what=what))
        monkeypatch.syspath_prepend(str(tmp_path))
        said = cil(*run, f"strategy={module}:Mine", f"run_dir={module}")
        place = f"({tmp_path}/{module}.py:7, in loss)"
        assert said.code != 0 and f"{words} {place}" in said.line
        assert place in json.loads((tmp_path / module / "record.json").read_text())["error"]
    said = cil(*run, "strategy=own_bug:idea")
    assert said.code == 2 and "strategy" in said.line and "own_bug" in said.line and "class" in said.line
    said = cil("check", "own_bug:idea")
    assert said.code == 2 and "own_bug:idea" in said.line and "class" in said.line


RAISES = """
from cil import Strategy


class Raises(Strategy):
    def loss(self, batch):
        self.budget.exemplars = 10_000
"""


def test_a_rule_that_is_broken_in_own_code_names_its_line(cil, tmp_path):
    (tmp_path / "own_rule.py").write_text(RAISES)
    line = cil("run", "strategy=own_rule:Raises", *DIGITS).line
    assert "budget.exemplars cannot be set by a learner" in line and "own_rule.py:7, in loss)" in line


HIDES = """
import torch
import torch.nn.functional as F

from cil import Strategy


class Hides(Strategy):
    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)

    def after_step(self, batch):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.loss(batch).backward()
        optimizer.step()
"""


def test_steps_of_its_own_are_said_when_a_run_ends(cil, tmp_path):
    (tmp_path / "own_steps.py").write_text(HIDES)
    out = cil("run", "strategy=own_steps:Hides", *DIGITS).out
    assert "optimizer steps beside those of its phases; they are counted" in out
