"""Sphinx configuration."""

import skpeft

project = "skpeft"
author = "the skpeft developers"
copyright = f"2026, {author}"
release = skpeft.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
]
html_theme = "pydata_sphinx_theme"
exclude_patterns = ["_build"]
templates_path = ["_templates"]
autosummary_generate = True
numpydoc_show_class_members = False
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# The doctests of the modules run under pytest; here only what stands in the pages.
doctest_test_doctest_blocks = ""
