"""How Sphinx builds the site: `make docs`."""

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
autodoc_member_order = "bysource"
autodoc_typehints = "signature"

# The build needs no network, so the names of other packages stay text; all of our own are looked up (`-n`).
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|os|pathlib|lightning|torch)\..*"),
    (r"py:exc", r"MisconfigurationException"),
]

html_theme = "furo"
html_title = f"lightning-calib {release}"
html_copy_source = False
