"""How Sphinx builds the site: `make docs`."""

import re

from sphinx.application import Sphinx

from lightning_calib import __version__

project = "lightning-calib"
copyright = "the authors of lightning-calib"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links to headings, as on the pages of a repository

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Logged", "returns_style"), ("Checkpoint", "returns_style")]
default_role = "py:obj"  # `Report` in a docstring is a link where the reference has it
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

# The build needs no network, so the names of other packages stay text; all of our own are looked up (`-n`).
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|os|pathlib|lightning|pl|numpy|torch)\..*"),
    (r"py:obj", r".*"),
    (r"py:exc", r"MisconfigurationException"),
    (r"py:class", r"lightning_calib\..*\.(SegmentRescaler|Run|LayerRows|ShadowRows|FactsRecord)"),  # not public
]

html_theme = "furo"
html_title = f"lightning-calib {release}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]

_OUTSIDE = re.compile(r"\[([^]]*)\]\((?:\.\./)+((?:examples|lightning_calib|tests|benchmarks)/[^)]+)\)")


def _name_files_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """A link to a file of the repository that is no page of the site becomes its path."""
    source[0] = _OUTSIDE.sub(r"\1 (`\2`)", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _name_files_outside)
