"""The documentation is true: its examples run, its links lead somewhere, its pages of methods are up to date."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import run_command
from markdown_pages import ROOT, Block, anchors, blocks, links, pages
from scripts import load_script

import cil

BLOCKS = list(blocks())
maker = load_script(ROOT / "docs" / "make_methods.py")
COMPOSING = ("run", "compare", "sweep", "budget", "memory", "tune", "show")
TRAINING = ("run", "compare", "sweep")
STRATEGY_SIZE = ("scale=quick", "trainer.epochs=1", "trainer.max_steps=2", "trainer.batch_size=16")
CLASS_SIZE = ("stream.train_per_class=10", "stream.test_per_class=5")
SHIFT_SIZE = (
    "scale=quick",
    "stream.images=10",
    "stream.corruptions=[contrast,brightness]",
    "adaptation.batch_size=10",
    "trainer.max_steps=1",
)
PLACEHOLDERS = {"DIR": ".", "FILE": "file"}  # in what is composed and not run


def named(found: list[Block]) -> list[Any]:
    """Cases whose names are file and line."""
    return [pytest.param(block, id=block.place) for block in found]


def with_commands() -> list[Block]:
    return [block for block in BLOCKS if block.commands]


# commands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", named([b for b in with_commands() if b.reason is None]))
def test_commands_run(block, folders, finished_run, monkeypatch, capsys):
    folder = folders(block.path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # of which the folder is no part, as for a person's command
    write_files(block.path, folder)
    (folder / "runs").mkdir(exist_ok=True)
    if not (folder / "runs" / "source").exists() and "run_dir=runs/source" not in block.text:
        (folder / "runs" / "source").symlink_to(finished_run)
    for words in block.commands:
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"no target {words[1]}"
            continue
        assert words[0] == "cil", f"{block.place}: {words[0]} is neither cil nor make: say why it is not run"
        asked = [word.replace("RUN_DIR", str(finished_run)) for word in words[1:]]
        code = run_command(shortened(asked))
        assert code == 0, f"{block.place}: {' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("block", named([b for b in with_commands() if b.reason is not None]))
def test_commands_that_are_not_run_have_a_reason_and_known_keys(block, tmp_path, monkeypatch):
    assert block.reason, f"{block.place}: give a reason"
    monkeypatch.chdir(tmp_path)
    from cil.cli.compose import compose
    from cil.cli.main import COMMANDS

    for words in block.commands:
        if words[0] != "cil":
            continue
        assert words[1] in COMMANDS, f"{block.place}: no command {words[1]}"
        if words[1] in COMPOSING:
            keys = [PLACEHOLDERS.get(word, word) for word in words[2:] if "=" in word and not word.startswith("--")]
            compose([first_of(key) for key in keys if key.partition("=")[0] not in ("jobs", "out")])


def first_of(override: str) -> str:
    """The first of the values that a command goes over."""
    return override if re.search(r"[\[{(]", override) else override.partition(",")[0]


def shortened(words: list[str]) -> list[str]:
    """A command made short: few images, few steps, one seed, one run at a time."""
    if words[0] not in TRAINING or "--cfg" in words or "--dry-run" in words:
        return words
    told = " ".join(words)
    kept = [re.sub(r"^seed=.*", "seed=0", word) for word in words]
    kept = [word for word in kept if not word.startswith("trainer.epochs=")]
    if "adapter=" in told:
        size: tuple[str, ...] = SHIFT_SIZE
    elif "_tasks" in told:
        size = (STRATEGY_SIZE[0], *CLASS_SIZE)
    else:
        size = (*STRATEGY_SIZE, *CLASS_SIZE)
    alone = () if words[0] == "run" else ("jobs=1",)
    given = {word.partition("=")[0] for word in kept}
    own = [word for word in size if word.partition("=")[0] not in given]
    return [*kept, *own, "progress=false", "device=cpu", *alone]


# Python -------------------------------------------------------------------------------------------------------------


NAMESPACES: dict[Path, dict[str, Any]] = {}


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language == "python"]))
def test_python_runs(block, folders, monkeypatch):
    code = compile("\n" * (block.line - 1) + block.text, block.place.partition(":")[0], "exec")
    if block.reason is not None:
        assert block.reason, f"{block.place}: give a reason"
        return
    monkeypatch.chdir(folders(block.path))
    monkeypatch.setattr(cil, "train", train_briefly, raising=False)
    exec(code, namespace_before(block))


def train_briefly(*given: Any, **options: Any) -> Any:
    """``cil.train``, two steps a phase."""
    from cil.api import train
    from cil.engine.recipe import Recipe

    options |= {"epochs": 1, "progress": False, "recipe": replace(options.get("recipe") or Recipe(), max_steps=2)}
    return train(*given, **options)


def write_files(page: Path, folder: Path) -> None:
    """Write the examples that name a file in their first line."""
    for block in BLOCKS:
        name = re.match(r"# (\w+\.py)\n", block.text)
        if block.path == page and name:
            (folder / name[1]).write_text(block.text)


def namespace_before(block: Block) -> dict[str, Any]:
    """The names that the earlier examples of a page have left; they are run where they were not yet."""
    space = NAMESPACES.setdefault(block.path, {"__name__": f"example_{block.path.stem.lower()}", "done": set()})
    earlier = [b for b in BLOCKS if b.path == block.path and b.language == "python" and b.line < block.line]
    for other in earlier:
        if other.reason is None and other.line not in space["done"]:
            exec(compile(other.text, other.place, "exec"), space)
            space["done"].add(other.line)
    space["done"].add(block.line)
    return space


# other blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", named([b for b in BLOCKS if b.language in ("yaml", "toml", "json")]))
def test_configuration_can_be_read(block):
    read = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": yaml.safe_load}[block.language]
    assert read(block.text)


def test_a_block_says_what_it_is():
    known = {"", "sh", "python", "yaml", "toml", "json", "text"}
    odd = [block.place for block in BLOCKS if block.language not in known]
    plain = [b.place for b in BLOCKS if b.language == "" and not b.commands and b.path.name != "README.md"]
    assert not odd and not plain


# pages --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in pages()])
def test_links_lead_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target} is no heading of {path.name}"


def test_the_index_names_every_page():
    docs = ROOT / "docs"
    index = {(docs / target.partition("#")[0]).resolve() for target in links(docs / "README.md")}
    methods = {(docs / "methods" / target).resolve() for target in links(docs / "methods" / "README.md")}
    missing = [page.name for page in docs.rglob("*.md") if page.resolve() not in {*index, *methods, docs / "README.md"}]
    assert not missing


def test_the_contract_names_every_rule():
    page = (ROOT / "docs" / "contract.md").read_text()
    sources = [ROOT / "cil" / "testing" / "rules.py", *(ROOT / "cil" / "kinds").glob("*/rules.py")]
    rules = {name for path in sources for name in re.findall(r"^    (?:rules\.)?([a-z_]+),$", path.read_text(), re.M)}
    assert rules
    assert not [rule for rule in sorted(rules) if f"`{rule}`" not in page]


def test_what_was_tried_names_tests_that_exist():
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", (ROOT / "docs/trust.md").read_text())
    assert len(found) > 100
    for file, name in found:
        assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists(), f"{file}::{name}"


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pages_of_methods_are_up_to_date():
    stale = [page.name for page, text in maker.pages().items() if page.read_text() != text]
    assert not stale, f"run python docs/make_methods.py: {', '.join(stale)}"
    by_hand = {maker.PAGES / "README.md", maker.PAGES / "shared.md"}
    assert set(maker.PAGES.glob("*.md")) == {*maker.pages(), *by_hand}


def test_every_method_has_equations_and_a_place_in_the_index():
    index = (maker.PAGES / "README.md").read_text()
    for method in maker.methods():
        assert f"({method.name}.md)" in index, f"{method.name} is not in docs/methods/README.md"
        assert "None: see the code." not in method.page.read_text(), f"{method.name} has no equations"
