"""The site that `make docs` builds: what its reference names, and where links to files of the repository lead."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_pages import ROOT

import cil

API = ROOT / "docs" / "api"


def test_the_reference_has_every_public_name():
    page = (API / "cil.rst").read_text().splitlines()
    documented = {line.rpartition(":: ")[2].removeprefix("cil.") for line in page if line.startswith(".. auto")}
    assert documented == {*cil.__all__} - {"__version__"}


def test_every_page_of_the_reference_is_in_the_index():
    index = (ROOT / "docs" / "index.rst").read_text()
    assert not [path.stem for path in API.glob("*.rst") if f"   api/{path.stem}\n" not in index]


def test_a_copy_of_a_file_is_text_that_any_browser_shows():
    links = pytest.importorskip("repository_links")
    assert links.copy_of(Path("cil/errors.py")) == Path("repository/cil/errors.py.txt")
    assert links.copy_of(Path("examples/1_compare.ipynb")) == Path("repository/examples/1_compare.ipynb")
    assert links.copy_of(Path("cil/data")) == Path("repository/cil/data")


def test_the_list_of_a_folder_links_the_copies_of_its_files(tmp_path):
    links = pytest.importorskip("repository_links")
    for name in ("conf/config.yaml", "conf/model/resnet.yaml", "conf/__pycache__/x.pyc", "conf/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    names = [path.relative_to(tmp_path / "conf") for path in links.files_of(tmp_path / "conf")]
    assert [name.as_posix() for name in names] == ["config.yaml", "model/resnet.yaml"]
    links.write_list(tmp_path / "site", Path("conf"), names)
    page = (tmp_path / "site" / "index.html").read_text()
    assert 'href="config.yaml.txt">config.yaml<' in page and 'href="model/resnet.yaml.txt">' in page
