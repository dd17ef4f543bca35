"""The documentation's site: sphinx-build -W docs build/docs (see CONTRIBUTING.md)."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import steve

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # by the file that they show, without its suffix
    "README": "index",
    "CONTRIBUTING": "contributing",
    "CHANGELOG": "changelog",
    "results/README": "results",
    "config/cpu/README": "cpu",
    "config/fullsize/README": "fullsize",
}

sys.path.insert(0, str(ROOT / "docs"))
import generated  # noqa: E402

project = "STEVE in TensorFlow 2"
author = "The STEVE reference implementation's authors"
version = release = steve.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
highlight_language = "none"  # of blocks that name none: they are commands
default_role = "literal"  # docstrings have single backticks
smartquotes = False  # text holds commands and JSON

# Pages that begin with a kernelspec are notebooks; each runs when the site is built.
nb_execution_in_temp = True
nb_execution_timeout = 1200  # of a cell, in seconds
nb_execution_show_tb = True  # of a cell that fails; it and what a cell warns of are
nb_output_stderr = "error"  # warnings of the build, which end it under -W

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # the anchors that GitHub gives, too

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False


def _insert_generated(app: Sphinx, page: str, source: list[str]) -> None:
    for name, make in generated.PARTS.items():
        mark = f"<!-- generated: {name} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, make())


def _link_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Links to files outside of docs/ lead to the pages that include them."""
    for link in doctree.findall(pending_xref):
        target = Path(link["reftarget"])
        if target.is_absolute() and target.is_relative_to(ROOT):
            name = str(target.relative_to(ROOT))
            link["reftarget"] = PAGES.get(name, link["reftarget"])


def _link_to_lines(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """In the specification, the name of a function is a link to its source."""
    if page != "specification":
        return
    documented = app.env.domains["py"].data["objects"]
    places = {}
    for name in documented:
        package, _, rest = name.partition(".")
        module, _, function = rest.partition(".")
        if (package, module) in {("steve", "valuerl"), ("steve", "worldmodel")}:
            places[function] = f"_modules/{package}/{module}.html#{function}"
    for literal in list(doctree.findall(nodes.literal)):
        if place := places.get(literal.astext()):
            link = nodes.reference("", "", refuri=place, internal=True)
            literal.replace_self(link)
            link += literal


def setup(app: Sphinx) -> None:
    app.connect("source-read", _insert_generated)
    app.connect("doctree-read", _link_to_pages)
    app.connect("doctree-resolved", _link_to_lines)
