"""Every option of every stage is in the reference, with the words that --help has."""

import importlib.util
import re
from dataclasses import fields, is_dataclass
from types import ModuleType

import pytest

from rmr1_jax.config import STAGES, Source, option_types, parse_config
from tests.docs.commands import REPOSITORY


@pytest.fixture(scope="module")
def made() -> ModuleType:
    pytest.importorskip("sphinx")
    file = REPOSITORY / "docs" / "_ext" / "pages_from_code.py"
    spec = importlib.util.spec_from_file_location("pages_from_code", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configurations(kind: type) -> set[type]:
    """A configuration and those inside it."""
    found = {kind}
    for field in fields(kind):
        if is_dataclass(inner := type(getattr(kind(), field.name))):
            found |= configurations(inner)
    return found


def all_configurations() -> list[type]:
    found = set().union(*map(configurations, STAGES.values())) | {Source}
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", all_configurations(), ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_is(kind: type, made: ModuleType) -> None:
    assert (kind.__doc__ or "").strip()
    said = made.descriptions(kind)
    inner = [] if kind is Source else [f.name for f in fields(kind) if is_dataclass(f.type)]
    told = {f.name for f in fields(kind)} - {*inner}
    if kind is not Source:
        told = {name for name in told if not is_dataclass(getattr(kind(), name))}
    assert [name for name in told if len(said.get(name, "")) < 5] == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_is_in_the_reference(stage: str, made: ModuleType) -> None:
    section = made.reference().partition(f"## {stage}\n")[2].partition("\n## ")[0]
    options = re.findall(r"^`([\w.]+)` : ", section, re.MULTILINE)
    assert {name for name, _ in option_types(STAGES[stage])} <= {*options}
    assert len(options) == len({*options})


def test_the_words_are_those_of_help(made: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config("grpo", ["--help"])
    shown = re.sub(r"[\s│╭╮╰╯─]+", "", capsys.readouterr().out)
    for kind in configurations(STAGES["grpo"]):
        for name, text in made.descriptions(kind).items():
            assert re.sub(r"\s+", "", text) in shown, name
