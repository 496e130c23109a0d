"""Pages whose text lies elsewhere: the recipes, and every option.

Each is appended to its page in docs/ when that is read, so nothing generated is checked in.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
from sphinx.application import Sphinx

from rmr1_jax.config import STAGES, Source
from rmr1_jax.distributed.rendezvous import HELP

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"^Command:\n((?: {4}.*\n?)+)", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", append_text)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def append_text(app: Sphinx, page: str, source: list[str]) -> None:
    if page in PAGES:
        files, text = PAGES[page]
        for file in REPOSITORY.glob(files):
            app.env.note_dependency(str(file))
        source[0] += "\n" + text()


def recipes() -> str:
    """What the docstring of each file in configs/ says, and what it sets."""
    parts = []
    for stage in STAGES:
        files = sorted((REPOSITORY / "configs").glob(f"{stage}_*.py"))
        if files:
            parts += [f"## {stage}\n", *map(recipe, files)]
    return "\n".join(parts)


def recipe(file: Path) -> str:
    code = file.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(code)) or ""
    _, _, sets = code.partition('\n"""\n')
    command = COMMAND.search(docstring)
    assert command is not None, f"{file}: its docstring has no command"
    before, after = docstring[: command.start()], docstring[command.end() :]
    # Python has joined the lines that ended with a backslash.
    shell = re.sub(r" {2,}", " \\\n    ", command[1].strip())
    after = re.sub(r"^(?=Expected result: )", "\n", after, flags=re.MULTILINE)
    return (
        f"### {file.name}\n\n{plain(before)}\n\n```bash\n{shell}\n```\n\n{plain(after)}\n\n"
        f"```python\n{sets.strip()}\n```\n"
    )


def reference() -> str:
    """Every field of every stage's configuration: its option, type, default and meaning."""
    parts = [f"## Several processes\n\nBefore the fields of any stage:\n\n```text\n{HELP}\n```\n"]
    parts += [f"## {stage}\n\n{''.join(section(kind()))}" for stage, kind in STAGES.items()]
    about = "An element of `sources`, which a recipe of `prepare` may set instead of `input`."
    parts += [f"## A source of a mixture\n\n{about}\n\n{''.join(section(Source(name='')))}"]
    return "\n".join(parts)


def section(config: Any, prefix: str = "") -> Iterator[str]:
    """The fields of one configuration, then those of the configurations inside it."""
    yield f"{plain(' '.join((type(config).__doc__ or '').split()))}\n\n"
    hints = get_type_hints(type(config), include_extras=True)
    said, inner = descriptions(type(config)), []
    for field in fields(config):
        value = getattr(config, field.name)
        if tyro.conf.Suppress in getattr(hints[field.name], "__metadata__", ()):
            continue  # no option
        if is_dataclass(value):
            inner.append((field.name, value))
            continue
        kind = shown_type(hints[field.name])
        yield (
            f"`{prefix}{field.name}` : {kind}, {shown_default(value)}\n"
            f": {plain(said[field.name])}\n\n"
        )
    for name, value in inner:
        yield f"### {prefix}{name}\n\n"
        yield from section(value, f"{prefix}{name}.")


def descriptions(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source, which `--help` shows as well."""
    found: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        lines = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for line, below in pairwise(lines):
            match line, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def shown_type(hint: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    names |= {tuple: "several texts", dict: "a dictionary", type(None): "None"}
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint) if choice)
    if type(None) in get_args(hint):
        return " or ".join(map(shown_type, get_args(hint)))
    return names[getattr(hint, "__origin__", hint)]


def shown_default(value: object) -> str:
    if value in ("", (), {}):
        return "empty"
    return f"default `{str(value).lower() if isinstance(value, bool) else value}`"


def plain(text: str) -> str:
    """Text of a docstring as Markdown that shows it as it is, and options as code."""
    shown = re.sub(r"([*<\[$])", r"\\\1", text.strip())
    return re.sub(r"(?<!`)--[a-z]\w*(\.\w+)*(=[\w.,:/-]*\w)?", r"`\g<0>`", shown)


PAGES: dict[str, tuple[str, Callable[[], str]]] = {
    "recipes": ("configs/*.py", recipes),
    "reference": ("rmr1_jax/config/*.py", reference),
}
