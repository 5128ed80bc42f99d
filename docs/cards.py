"""The measured card of each strategy, from the lines of ``benchmarks/method_cards.py``: Markdown for its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

LINES = Path(__file__).resolve().parents[1] / "benchmarks" / "method_cards.jsonl"
COMMAND = "python benchmarks/method_cards.py"
SETTINGS = {  # in the order in which one is chosen where a strategy was run in several
    "digits": "Handwritten digits of 8x8 pixels in five experiences of two classes; `smallconv`, unless the command "
    "names another model; 100 exemplars if the method keeps any; five epochs.",
    "transformer": "Handwritten digits in five experiences of two classes; five epochs; 100 exemplars if the method "
    "keeps any. The network is a transformer of five blocks, 48 wide, trained on letters before.",
    "clip": "Handwritten digits in five experiences of two classes; five epochs. The CLIP model is a toy with random "
    "weights: bytes and operations are right for it, and no accuracy is given.",
    "tasks": "Four embedded tasks (digits, rotated digits, shapes, the digits again), told at test time; "
    "`resnet14_narrow`; a search of two trials of 50 steps for each task.",
}
REFERENCE = {"tasks": "previous"}  # whose time is 1; elsewhere that of finetune


@dataclass(frozen=True)
class Card:
    """The figures of a strategy in one setting: a line for each seed."""

    name: str
    setting: str
    lines: Sequence[Mapping[str, Any]]
    reference: Sequence[Mapping[str, Any]]

    def bytes(self, part: str) -> str:
        """Carried at the end: ``total``, ``backbone``, ``learned``, ``stored`` or ``public``; mean over seeds."""
        return f"{mean(line['bytes'][part] for line in self.lines):,.0f}"

    @property
    def operations(self) -> str:
        """Of training and all that goes with it, in units of 1e9."""
        return f"{mean(line['flops'] for line in self.lines) / 1e9:,.2f}"

    @property
    def held(self) -> str:
        """Bytes held at most while training."""
        return f"{max(line['peak_training_bytes'] for line in self.lines):,}"

    @property
    def time(self) -> str:
        """Processor time of the quickest seed over that of the reference's: the first run may import libraries."""
        seconds = [min(line["cpu_seconds"] for line in lines) for lines in (self.lines, self.reference)]
        return f"{seconds[0] / seconds[1]:.1f}"

    def accuracy(self, key: str) -> str:
        """``last`` or ``average``: the mean over seeds, with the lowest and the highest."""
        if self.setting == "clip":
            return "–"
        found = [line[key] for line in self.lines]
        return f"{mean(found):.1f} %" + (f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else "")


@cache
def read(path: Path = LINES) -> Mapping[str, Card]:
    """The card of each strategy; where a run was measured twice, the later line counts."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        found.setdefault((line["strategy"], line["setting"]), {})[line["seed"]] = line
    cards: dict[str, Card] = {}
    for setting in reversed(SETTINGS):
        reference = list(found.get((reference_of(setting), setting), {}).values())
        for (name, place), lines in found.items():
            if place == setting:
                cards[name] = Card(name, setting, list(lines.values()), reference)
    return cards


def reference_of(setting: str) -> str:
    """The strategy whose time is 1."""
    return REFERENCE.get(setting, "finetune")


ROWS: Sequence[tuple[str, Callable[[Card], str]]] = (
    ("bytes carried at the end", lambda card: card.bytes("total")),
    ("· the backbone that answers", lambda card: card.bytes("backbone")),
    ("· all else that was learned or computed", lambda card: card.bytes("learned")),
    ("· stored images, features or answers", lambda card: card.bytes("stored")),
    ("operations to learn, 1e9", lambda card: card.operations),
    ("bytes held at most while learning", lambda card: card.held),
    ("accuracy at the end", lambda card: card.accuracy("last")),
)


def lines_of(card: Card) -> list[str]:
    """The card as Markdown."""
    line, seeds = card.lines[-1], [str(line["seed"]) for line in card.lines]
    over = "right after each task" if card.setting == "tasks" else "average incremental accuracy"
    rows = [(head, value(card)) for head, value in ROWS]
    rows += [(over, card.accuracy("average")), (f"processor time, `{reference_of(card.setting)}` = 1", card.time)]
    public = " The backbone's bytes are weights by reference." if line["bytes"]["public"] else ""
    toy = card.setting == "clip"  # whose model is registered by ``cil.testing`` alone
    run = ["```text", " ".join(["cil run", *line["words"], f"seed={seeds[0]}"]), "```", ""]
    return [
        "## Measured",
        "",
        "| | |",
        "| :-- | --: |",
        *(f"| {head} | {value} |" for head, value in rows),
        "",
        SETTINGS[card.setting] + public,
        f"Seed {' and '.join(seeds)}, cil {line['version']}, {line['date']}, by `{COMMAND} --methods {card.name}`.",
        "A setting this small shows what a method costs, and does not rank methods ([all cards](costs.md))."
        + ("" if toy else " As a run:"),
        "",
        *([] if toy else run),
    ]


def table() -> str:
    """The page of all cards, a table for each setting."""
    cards = read()
    lines = ["<!-- Written by docs/make_methods.py. -->", "# What methods cost", "", *OPENING, ""]
    for setting, words in SETTINGS.items():
        own = sorted(name for name, card in cards.items() if card.setting == setting)
        time = f"time, {reference_of(setting)} = 1"
        lines += [f"## {TITLES[setting]}", "", words, "", f"| strategy | {' | '.join(COLUMNS)} | {time} |"]
        lines += ["| :-- |" + " --: |" * (len(COLUMNS) + 1)]
        for card in (cards[name] for name in own):
            cells = [value(card) for _, value in ROWS] + [card.accuracy("average"), card.time]
            lines.append(f"| [`{card.name}`]({card.name}.md) | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


TITLES = {
    "digits": "Trained from scratch",
    "transformer": "Trained before",
    "clip": "Readers of class names",
    "tasks": "Streams of tasks",
}
COLUMNS = ("carried", "backbone", "learned", "stored", "1e9 operations", "held at most", "at the end", "average")
OPENING = (
    "Each strategy is run in one small setting, so that costs can be seen side by side: bytes carried at the end, and",
    "what they are; operations to learn; bytes held at most while learning; accuracy (mean over seeds, lowest to",
    "highest); and processor time over that of a plain strategy. Bytes and operations are exact for the setting.",
    "Accuracies after five epochs on digits of 8x8 pixels do not rank methods: see",
    "[what was measured at length](../results.md). The lines behind the tables are",
    f"[method_cards.jsonl](../../benchmarks/method_cards.jsonl), written by `{COMMAND}`.",
)
