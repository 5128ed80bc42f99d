"""What an option was measured to move stands on its method's page, with the numbers of the experiment."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = (ROOT / "experiments" / "method_options.md").read_text()
ROW = re.compile(r"^\| (\w+) \|.*\| ([+-]\d+\.\d, [+-]\d+\.\d) \|", re.MULTILINE)


def test_the_table_is_read():
    assert dict(ROW.findall(EXPERIMENT))["bic"] == "-1.5, -1.8"


@pytest.mark.parametrize(("method", "difference"), ROW.findall(EXPERIMENT))
def test_a_page_has_what_was_measured_of_its_method(method, difference):
    page = (ROOT / "docs" / "methods" / f"{method}.md").read_text()
    assert difference in page and "(../../experiments/method_options.md)" in page
