"""Sphinx configuration."""

import sys
from pathlib import Path

import skpeft

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "skpeft"
author = "the skpeft developers"
copyright = f"2026, {author}"
release = skpeft.__version__
extensions = [
    "_diagrams",
    "_mathml",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_title = f"skpeft {release}"
html_sidebars = {"*": []}  # pages without others below them have nothing to show there
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
}
exclude_patterns = ["_build"]
templates_path = ["_templates"]
autosummary_generate = True
numpydoc_show_class_members = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
# The doctests of the modules run under pytest; here only what stands in the pages.
doctest_test_doctest_blocks = ""
# The scripts take minutes: -D plot_gallery=1 runs them, see contributing.md.
plot_gallery = "False"
sphinx_gallery_conf = {
    "examples_dirs": [str(HERE.parent / "examples")],
    "gallery_dirs": ["gallery"],
    "ignore_pattern": r"^(?!plot_)",
    "default_thumb_file": str(HERE / "_static" / "thumbnail.svg"),
    "reference_url": {"skpeft": None},
    "doc_module": ("skpeft",),
    "backreferences_dir": None,
    "within_subsection_order": "FileNameSortKey",
    "write_computation_times": False,
    "show_signature": False,
    "download_all_examples": False,
    "remove_config_comments": True,
}


def leave_readmes_alone(app):
    """Headers of the gallery are .rst: README.md of the benchmarks is no part of it."""
    app.config.sphinx_gallery_conf["source_suffix"] = {".rst": "restructuredtext"}


def setup(app):
    # After sphinx-gallery has read its configuration, before it looks for headers.
    app.connect("builder-inited", leave_readmes_alone, priority=100)
