"""What the documentation says of the code: names that exist, examples that give what they show."""

import ast
import doctest
import re
from pathlib import Path

import pytest

from rmr1_jax.config import STAGES, option_types
from tests.docs.commands import PAGES, REPOSITORY

DOCS = [page for page in PAGES if page.parent.name == "docs"]
LINK = re.compile(r"\[((?:`[\w.]+`(?:, )?)+)\]\(\.\./([\w/]+\.py)\)")
NAMED = [
    (page.name, name, path)
    for page in DOCS
    for names, path in LINK.findall(page.read_text(encoding="utf-8"))
    for name in re.findall(r"`([\w.]+)`", names)
]


def test_concepts_name_many() -> None:
    assert sum(page == "concepts.md" for page, _, _ in NAMED) > 25


@pytest.mark.parametrize(("page", "name", "path"), NAMED)
def test_a_name_stands_in_the_file_it_links_to(page: str, name: str, path: str) -> None:
    body = ast.parse((REPOSITORY / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [each for each in body if part in defined(each)]
        assert found, f"{page} links {name} to {path}, which has no {part}"
        body = getattr(found[0], "body", [])


def defined(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
    return set()


@pytest.mark.parametrize("page", [page for page in DOCS if ">>> " in page.read_text()], ids=str)
def test_examples_give_what_they_show(page: Path) -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    text = page.read_text(encoding="utf-8")
    examples = "".join(re.findall(r"^```pycon\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    test = parser.get_doctest(examples, {}, page.name, str(page), 0)
    assert test.examples and runner.run(test).failed == 0


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_an_option_that_is_mentioned_exists(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    named = {option.partition("=")[0] for option in re.findall(r"`--([\w=.,-]+)", prose)}
    known = {name for kind in STAGES.values() for name, _ in option_types(kind)}
    own = {"stage", "config", "debug", "editable", "help", "field", "section.field", "no_field"}
    own |= {"distributed", "coordinator", "process_count", "process_index", "join_timeout"}
    launch = (REPOSITORY / "launch").rglob("*.sh")
    theirs = {each for file in launch for each in re.findall(r"opt_(\w+)=", file.read_text())}
    assert {name.replace("-", "_") for name in named - known - own} <= theirs
