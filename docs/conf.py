"""Settings of the documentation's site: ``make docs`` builds it from the Markdown files and the docstrings.

The source folder is the repository, so that a link from one Markdown file to another is right here and there.
"""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

project, release = "cil", version_of("cil")
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "docs/**.rst", "experiments/*.md", "examples/*.md"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "repository_links"]
html_theme = "furo"
html_title = f"cil {release}"
html_copy_source = False

myst_heading_anchors = 4  # as the web repository makes them
myst_enable_extensions = []  # nothing that the web repository does not know
suppress_warnings = ["ref.python"]  # a type such as `bytes` that is also the name of a field

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_custom_sections = [("Source", "notes"), ("Sources", "notes")]
napoleon_use_ivar = True
napoleon_use_rtype = False  # what is returned is described in a sentence, which may have a colon
