"""Equations as MathML, which browsers show by themselves: no script, no server of somebody else."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

LOG = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    write(translator, node, as_block=False)


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    # The theme scrolls what is too wide, and takes what stands out by a pixel for too high.
    translator.body.append('<div class="math" style="padding: 0.6em 0">')
    write(translator, node, as_block=True)


def write(translator: HTML5Translator, node: nodes.Element, *, as_block: bool) -> None:
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        LOG.warning("an equation cannot be read: %s", error, location=node)
    if as_block:
        translator.body.append("</div>")
    raise nodes.SkipNode
