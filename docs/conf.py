"""Sphinx settings. The reference pages are written by `_ext/reference_pages.py` when a build begins."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Puna"
author = "The Puna developers"
copyright = "The Puna developers, Apache-2.0"
extensions = ["myst_parser", "reference_pages"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = "Puna"
html_show_sphinx = False
html_copy_source = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # a docstring may hold a heading of any level
    "ref.python",  # two rooms may each have a class of one name; a link then leads to the first
]
python_maximum_signature_line_length = 88
