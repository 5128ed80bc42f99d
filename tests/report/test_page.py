"""The page: everything inside, nothing from outside, the same bytes for the same records."""

from __future__ import annotations

import random
import re
import socket
from html.parser import HTMLParser
from typing import Any

import pytest
from made_records import MIB, NO_BUDGET, byte_budget, make_run

from cil.errors import ConfigError
from cil.report import find_runs, write_html
from cil.report.page import refuse_foreign_report
from cil.report.svg import VARIABLES

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects tags, texts and ids, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def some(run) -> list:
    """Rows of all kinds: ranked with two seeds, a bound, over budget, interrupted; two budgets."""
    records = []
    for limit in (2 * MIB, 3 * MIB):
        budget = byte_budget(limit)
        records += [run(name, seed, budget=budget) for name in ("icarl", "wa") for seed in (0, 1)]
        records.append(run("joint", bound=True, budget=budget))
    records.append(run("der", budget=byte_budget(2 * MIB), status="over_budget", error="too large"))
    records.append(run("lwf", budget=byte_budget(2 * MIB), status="interrupted", matrix=((80.0, None),)))
    return records


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a report asks nothing of the network")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page(place) -> str:
    """A page of all kinds of rows, made without a network."""
    run = make_run(place / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        records = [*some(run), run("ewc", command="cil run strategy=ewc")]
        path = write_html(records, place / "deep" / "page.html", title="Two budgets")
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_for_nothing(page):
    reader = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert "Two budgets" in reader.texts
    tags = [tag for tag, _ in reader.tags]
    assert not {"link", "iframe", "img", "object"} & set(tags) and tags.count("script") == 1
    assert "default-src 'none'" in page and "fetch(" not in page and "XMLHttpRequest" not in page
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert (value or "").startswith(("#", "data:")), f"{name}={value}"
    assert "http://" not in page and "https://" not in page
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_each_colour_of_figures_has_one_for_dark_pages(page):
    light, _, dark = page.partition("prefers-color-scheme: dark")
    assert all(f"--{name}: " in part for name in VARIABLES.values() for part in (light, dark))
    assert all(f"--{name}: {colour};" in light for colour, name in VARIABLES.items())
    assert "var(--ink)" in page and "<title>icarl: " in page and 'data-row="icarl"' in page


def test_every_picture_is_there_and_no_id_comes_twice(page):
    tags = Reader(page).tags
    section = ["Accuracy over the stream", "Last accuracy against bytes", "Forgetting", "Carried bytes by kind"]
    section += ["Accuracy by experience", "Last accuracy against compute"]
    alone = [title for title in section if not title.startswith("Last accuracy against")]  # one row is no comparison
    budgets = ["Average incremental accuracy against the budget", "Last accuracy against the budget"]
    pictures = [attributes.get("aria-label") for tag, attributes in tags if tag == "svg"]
    assert sorted(map(str, pictures)) == sorted(budgets + 2 * section + alone)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["xlink:href"] for tag, attributes in tags if tag == "use"]
    assert targets and all((target or "")[1:] in ids for target in targets)


def test_the_page_says_what_ran_and_how_to_read_it(page):
    text = "\n".join(Reader(page).texts)
    for part in (
        "How to read this", "bound", "over budget", "interrupted 1/2", "bounds: may look back", "not ranked",
        "Bytes carried after the last experience, exact", "2 0 3 1", "torch 2.9.0", "3 × 8 × 8",
        "2,097,152 bytes (2.00 MiB, exact)", "cil run strategy=ewc", "AUC-A", "no clear winner",
    ):  # fmt: skip
        assert part in text, part


def test_words_that_a_page_does_not_use_are_not_explained(page, run, tmp_path):
    assert not {"tuning", "own", "uses less"} & set(Reader(page).texts) and "bound" in Reader(page).texts
    lean = run("lwf", exemplars=0, budget=byte_budget(2 * MIB))
    told = Reader(write_html([run(budget=byte_budget(2 * MIB)), lean], tmp_path / "page.html").read_text()).texts
    assert told.count("uses less") == 2 and "bound" not in told  # a mark, and what it means


def test_a_table_of_many_columns_is_set_smaller(run, tmp_path):
    plain = write_html([run(budget=NO_BUDGET)], tmp_path / "plain.html").read_text()
    public = write_html([run("l2p", public=900_000, exemplars=0)], tmp_path / "public.html").read_text()
    assert '<table class="dense">' not in plain and public.count('<table class="dense">') == 1


def test_a_long_page_has_a_table_of_contents_whose_links_lead_somewhere(page, run, tmp_path):
    tags = Reader(page).tags
    links = [(attributes["href"] or "")[1:] for tag, attributes in tags if tag == "a"]
    assert links == ["table-1", "table-2", "table-3", "table-4", "reading-1", "runs"]
    assert set(links) <= {attributes.get("id") for _, attributes in tags}
    assert "<nav" not in write_html([run()], tmp_path / "short.html").read_text()


def test_the_line_that_makes_the_page_again_is_on_it(run, tmp_path):
    text = write_html([run(command="cil run seed=0")], tmp_path / "a.html", command="cil compare seed=0,1").read_text()
    assert "<code>cil compare seed=0,1</code>" in text and "<li><code>cil run seed=0</code></li>" in text


def test_a_file_that_is_no_page_of_ours_is_not_replaced(run, tmp_path):
    theirs = tmp_path / "page.html"
    theirs.write_text("<p>my thesis</p>")
    with pytest.raises(ConfigError, match=r"page\.html is there already, and no page of cil"):
        write_html([run()], theirs)
    assert theirs.read_text() == "<p>my thesis</p>"
    ours = write_html([run("wa")], tmp_path / "ours.html", title="first")
    assert "second" in write_html([run("wa", 1)], ours, title="second").read_text()


def test_a_folder_with_tables_of_somebody_else_is_refused(run, tmp_path):
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"table\.csv is there already, without an index\.html of cil"):
        refuse_foreign_report(tmp_path)
    write_html([run()], tmp_path / "index.html")
    refuse_foreign_report(tmp_path)  # a report was made here before


def test_no_machine_path_is_on_the_page(page, place):
    assert str(place) not in page


def test_all_text_is_escaped(run, tmp_path):
    wild = "<script>alert('&')</script>"
    records = [
        run(wild, stream_changes={"name": wild}, versions={wild: wild}, command=wild, name="wild"),
        run("wa", status="failed", error=wild, stream_changes={"name": wild}),
    ]
    text = write_html(records, tmp_path / "page.html", title=wild).read_text()
    assert text.count("<script") == 1 and text.rindex("<script") > text.rindex("</section>")  # that of the page
    assert [tag for tag, _ in Reader(text).tags].count("script") == 1
    assert "&lt;script&gt;" in text


def test_the_same_records_in_any_order_give_the_same_bytes(run, tmp_path, monkeypatch):
    records = [run(name, seed) for name in ("icarl", "wa") for seed in (0, 1)]
    first = write_html(records, tmp_path / "a.html").read_bytes()
    random.Random(0).shuffle(records)
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # a reader's own settings
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    assert write_html(records, tmp_path / "b.html").read_bytes() == first
    assert matplotlib.rcParams["font.size"] == 30.0, "and these stay as they were"
    assert write_html(find_runs(records[0].directory.parent), tmp_path / "c.html").read_bytes() == first


def test_runs_without_numbers_still_make_a_page(run, tmp_path):
    records = [run("der", budget=byte_budget(10), status="over_budget", error="too large"), run("wa", status="running")]
    page = Reader(write_html(records, tmp_path / "page.html").read_text())
    assert not any(tag == "svg" for tag, _ in page.tags)
    assert any("too large" in text for text in page.texts)


def test_a_finished_record_without_accuracies_has_a_row_and_no_picture(run, tmp_path):
    nothing: dict[str, Any] = {"accuracy_curve": [], "accuracy_matrix": [], "last_accuracy": None, "ledger": []}
    reader = Reader(write_html([run(results=nothing)], tmp_path / "page.html").read_text())
    assert not any(tag == "svg" for tag, _ in reader.tags)
    assert "icarl" in reader.texts


def test_no_page_is_made_of_nothing_or_where_it_cannot_be(run, tmp_path):
    with pytest.raises(ConfigError, match="at least one run"):
        write_html([], tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another place"):
        write_html([run("der", budget=byte_budget(10), status="over_budget")], tmp_path / "file" / "page.html")


def test_importing_the_report_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys\nimport cil.report\n"
        "print([name for name in ('torch', 'matplotlib', 'scipy', 'rich', 'wandb') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
