"""The page as headless Chromium shows it; without a Chromium these tests are skipped."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_records import MIB, byte_budget, make_run

from cil.report import find_runs, write_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HEADLESS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n')
PROBE = """<script>
const said = {};
try {
  const all = (what) => Array.from(document.querySelectorAll(what));
  const table = document.querySelector("#table-1 .wide table");
  const heads = Array.from(table.tHead.rows[0].cells);
  const names = () => table.querySelectorAll("tr[data-row]");
  said.rows = Object.fromEntries(Array.from(names()).map((row) =>
    [row.dataset.row, Array.from(row.cells).slice(1).map((cell) => cell.textContent.replace(/\\s+/g, " ").trim())]));
  said.heads = heads.slice(1).map((cell) => cell.textContent);
  said.width = [document.documentElement.scrollWidth, window.innerWidth];
  said.figures = all("#table-1 figure").map((one) => Math.round(one.getBoundingClientRect().left));
  said.letters = Math.min(...all("#table-1 svg text").map((one) => one.getBoundingClientRect().height));
  said.shade = getComputedStyle(document.querySelector("#table-1 .wide")).backgroundImage.includes("gradient");
  said.ground = getComputedStyle(document.body).backgroundColor;
  said.text = getComputedStyle(document.querySelector("#table-1 svg text")).fill;
  said.titles = all("#table-1 svg [data-row='icarl'] title").map((one) => one.textContent);
  const order = () => Array.from(names()).map((row) => row.dataset.row);
  const bytes = heads.find((one) => one.textContent === "exact B");
  bytes.click();
  said.down = order();
  bytes.click();
  said.up = order();
  const seen = (one) => getComputedStyle(one).display !== "none";
  const dot = all("#table-1 .chooser button").find((one) => one.textContent === "icarl");
  said.dot = getComputedStyle(dot, "::before").backgroundColor;
  said.line = getComputedStyle(document.querySelector("#table-1 svg [data-row='icarl'] [style*=stroke]")).stroke;
  const visible = () => all("#table-1 svg [data-row='wa']").filter(seen).length;
  said.drawn = [visible()];
  all("#table-1 .chooser button").find((one) => one.textContent === "wa").click();
  said.drawn.push(visible());
  all("#table-1 .chooser button").find((one) => one.textContent === "all").click();
  said.drawn.push(visible());
} catch (error) { said.error = String(error); }
document.body.insertAdjacentHTML("beforeend", "<pre id=said></pre>");
document.getElementById("said").textContent = JSON.stringify(said);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("browser")
    run = make_run(place / "runs")
    budget = byte_budget(2 * MIB)
    for seed in (0, 1):
        run("icarl", seed, budget=budget, matrix=((80.0, None), (60.0, 70.0 + 2 * seed)))
        run("wa", seed, budget=budget, parameters=1_200_000)
    run("ewc", budget=budget, parameters=900_000, exemplars=0)
    run("joint", bound=True, budget=budget, parameters=1_900_000)
    return write_html(
        find_runs(place / "runs"), place / "page.html", command="cil report runs --html page.html"
    ).read_text()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Callable[..., str]:
    """Run Chromium on a page; what it prints."""
    place = tmp_path_factory.mktemp("chromium")

    def run(text: str, *options: str) -> str:
        file = place / "page.html"
        file.write_text(text)
        command = [str(CHROMIUM), *HEADLESS, f"--user-data-dir={place / 'profile'}", *options, file.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def shown(chromium: Callable[..., str], page: str, *options: str) -> dict[str, Any]:
    """What the probe finds on the page."""
    probed = POLICY.sub("", page).replace("</body>", f"{PROBE}</body>")
    found = re.search(r'<pre id="said">(.*?)</pre>', chromium(probed, "--dump-dom", *options), re.DOTALL)
    assert found
    said: dict[str, Any] = json.loads(unescape(found[1]))
    assert "error" not in said, said["error"]
    return said


def test_numbers_are_those_of_the_records_and_rows_can_be_sorted_and_chosen(page, chromium):
    said = shown(chromium, page, "--window-size=1280,2000")
    icarl = dict(zip(said["heads"], said["rows"]["icarl"], strict=True))
    # last: (60 + 70) / 2 and (60 + 72) / 2; carried: 1,000,000 + 100 * 193; (2 MiB - 1,000,000) / 192 is over 400
    expected = {"n": "2", "Last %": "65.50 ± 0.71", "exact B": "1,019,300", "survey B": "1,018,200", "past %": "100.0",
                "unused %": "51.4", "FLOPs": "4.00e9", "peak B": "5,000,000", "exemplars": "100"}  # fmt: skip
    assert {head: icarl[head] for head in expected} == expected
    assert "icarl: 65.5 (accuracy on all classes seen, %) at 4 (classes seen)" in said["titles"]
    assert said["down"] == ["wa", "icarl", "ewc", "joint"] and said["up"] == ["ewc", "icarl", "wa", "joint"]
    some, hidden, again = said["drawn"]
    assert some == again > 0 == hidden
    assert said["dot"] == said["line"] != "rgba(0, 0, 0, 0)"  # a button has the colour of its row
    assert len(set(said["figures"])) == 2 and not said["shade"]  # two figures side by side


def test_on_a_phone_figures_stack_and_nothing_widens_the_page(page, chromium):
    said = shown(chromium, page, "--window-size=500,2000")  # Chromium makes no window narrower
    assert said["width"][0] <= said["width"][1] and len(set(said["figures"])) == 1
    assert said["letters"] >= 8
    assert said["shade"]  # at the side where a table goes on, as a phone shows no bar


def test_a_dark_screen_has_a_dark_page_with_light_letters_in_figures(page, chromium):
    light = shown(chromium, page, "--blink-settings=preferredColorScheme=1")
    dark = shown(chromium, page, "--blink-settings=preferredColorScheme=0")
    assert light["ground"] == "rgb(255, 255, 255)" and dark["ground"] == "rgb(20, 24, 29)"
    assert light["text"] == "rgb(31, 41, 51)" and dark["text"] == "rgb(228, 232, 236)"


def test_the_policy_of_the_page_lets_its_own_script_run_and_no_other(page, chromium):
    wild = page.replace("</body>", "<script>document.body.dataset.wild = 'yes'</script></body>")
    found = chromium(wild, "--dump-dom")
    assert 'class="chooser"' in found and "data-wild" not in found


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext (poppler) is installed")
def test_on_paper_no_cell_is_cut_and_the_settings_are_there(page, chromium, tmp_path):
    file = Path(tmp_path / "page.pdf")
    chromium(page, f"--print-to-pdf={file}", "--no-pdf-header-footer")
    text = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, text=True, check=True).stdout
    (row,) = [line for line in text.splitlines() if "65.50 ± 0.71" in line and "icarl" in line]
    assert "1,019,300" in row and row.split()[-1] == "12.0"  # the last column: seconds
    assert "A4" in subprocess.run(["pdfinfo", file], capture_output=True, text=True, check=True).stdout
    for part in ("Settings", "class order", "cil report runs --html page.html", "joint"):
        assert part in text
