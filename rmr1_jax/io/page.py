"""Pages that open offline: one frame and one style for all. Each maker has its own template."""

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def read_asset(name: str, package: str = "rmr1_jax.io") -> str:
    """A template, style sheet or script as it stands in a package."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def style() -> str:
    """The style of all pages."""
    return read_asset("page.css")


def render(package: str, template: str, **context: Any) -> str:
    """A template of a package with its blanks filled in; what is no `Markup` is escaped."""

    def load(name: str) -> str:
        return read_asset(name, "rmr1_jax.io" if name == "page.html.jinja" else package)

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def render_page(package: str, template: str, script: str, **context: Any) -> str:
    """A whole page, made from a template that extends `page.html.jinja`.

    `script` is the file of the one script that may run in it; the page's policy has its digest.
    """
    text = read_asset(script, package)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return render(
        package,
        template,
        css=Markup(style()),
        script=Markup(text),
        policy=Markup(
            f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        ),
        **context,
    )
