"""The templates of the pages, which lie beside this file."""

from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

STYLE = "page.css.jinja"


def source(name: str) -> str:
    """A file as it stands."""
    return (resources.files("rmr1_jax.evaluation") / name).read_text(encoding="utf-8")


def render(template: str, **context: Any) -> str:
    """A template with its blanks filled in; what is no `Markup` is escaped."""
    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
