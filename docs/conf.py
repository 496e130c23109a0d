"""How the documentation is built: `make docs`, or `sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

from rmr1_jax import __version__  # noqa: E402

project = "rmr1_jax"
version = release = __version__
html_title = f"rmr1_jax {release}"

extensions = ["myst_parser", "sphinx_copybutton", "pages_from_code", "mathml"]
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go, .c1"  # prompts, output and comments
html_show_copyright = False
smartquotes = False  # they make one dash of the two before an option
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
