"""Sphinx's configuration of the site; `make_site.py` beside it gathers the pages and calls Sphinx."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import make_site

import saelab

project = "SAELab"
author = "The SAELab authors"
project_copyright = "The SAELab authors, MIT licence"
version = release = saelab.__version__
language = "en-GB"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.githubpages",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "in_pages",
]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "py:obj"
autosummary_generate = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would load files that are not included

html_theme = "furo"
html_title = "SAELab"
html_static_path = ["static", str(make_site.STATIC)]
html_extra_path = [str(make_site.PARTS)]
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "footer_icons": [{"name": "Source code", "url": make_site.repository(), "html": "Source code", "class": ""}]
    if make_site.repository()
    else []
}
