"""Links of the Markdown files to what is no page of the site: source files, configuration, folders.

On the web repository such a link shows the file. In the site it leads to a copy below ``repository/``, with ``.txt``
added, so that any browser shows it; a link to a folder leads to a list of the files in it.
"""

from __future__ import annotations

import os
import shutil
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

COPIES = "repository"
AS_IT_IS = (".html", ".svg", ".png", ".ipynb")  # no .txt is added
START = '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">'


class RepositoryLinks(SphinxTransform):
    """Turn references to files and folders that are no pages into links to their copies."""

    default_priority = 700

    def apply(self, **options: Any) -> None:
        root, place = Path(self.env.srcdir), Path(self.env.docname)
        for node in [*self.document.findall(pending_xref), *self.document.findall(download_reference)]:
            if node.get("reftype") != "myst" or node["reftarget"] in self.env.found_docs:
                continue
            path = root / os.path.normpath(place.parent / node["reftarget"].partition("#")[0])
            if path.exists() and path.is_relative_to(root):
                copied(self.env).add(path)
                uri = "../" * (len(place.parts) - 1) + copy_of(path.relative_to(root)).as_posix()
                uri += "/index.html" if path.is_dir() else ""
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def copied(env: Any) -> set[Path]:
    """The files and folders that pages link to; kept with what Sphinx has read."""
    if not hasattr(env, "repository_files"):
        env.repository_files = set()
    found: set[Path] = env.repository_files
    return found


def copy_of(path: Path) -> Path:
    """Where the copy of a file or folder lies in the site."""
    plain = path.suffix in AS_IT_IS or not path.suffix
    return Path(COPIES) / (path if plain else path.with_name(f"{path.name}.txt"))


def write_copies(app: Sphinx, error: Exception | None) -> None:
    """Copy what pages link to, and the page that leads from the top of the site to its start."""
    if error is not None or app.builder.format != "html":
        return
    root, out = Path(app.srcdir), Path(app.outdir)
    for path in sorted(copied(app.env)):
        files = files_of(path) if path.is_dir() else [path]
        for file in files:
            copy = out / copy_of(file.relative_to(root))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if path.is_dir():
            names = [file.relative_to(path) for file in files]
            write_list(out / copy_of(path.relative_to(root)), path.relative_to(root), names)
    (out / "index.html").write_text(START)


def files_of(folder: Path) -> list[Path]:
    """The files in a folder and below it, without what Python or an editor leaves there."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(
        path for path in found if not any(part.startswith((".", "__py")) for part in path.parts[len(folder.parts) :])
    )


def write_list(folder: Path, title: Path, names: list[Path]) -> None:
    """A page that links the copies of a folder's files."""
    folder.mkdir(parents=True, exist_ok=True)
    links = ((copy_of(name).relative_to(COPIES).as_posix(), name.as_posix()) for name in names)
    items = "".join(f'<li><a href="{escape(uri)}">{escape(name)}</a>' for uri, name in links)
    head = escape(title.as_posix())
    page = f'<!DOCTYPE html><meta charset="utf-8"><title>{head}</title><h1>{head}</h1><ul>{items}</ul>'
    (folder / "index.html").write_text(page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Join the build."""
    app.add_transform(RepositoryLinks)
    app.connect("build-finished", write_copies)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
