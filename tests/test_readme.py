"""What README.md says can be opened and found. Its commands: tests/docs/test_commands.py."""

import json
import re
from pathlib import Path

import pytest

from rmr1_jax.config import STAGES, option_types
from rmr1_jax.distributed.rendezvous import OPTIONS
from rmr1_jax.evaluation.judgement_record import PROBLEMS, judgement_record
from rmr1_jax.judging import Preference, preference_from_record
from rmr1_jax.models.model_config import PROMPT_KEY
from rmr1_jax.sampling.judge import Judgement

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
JUDGE = (REPOSITORY / "docs" / "judge.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_it_is_short_and_has_one_picture() -> None:
    assert len(README.splitlines()) <= 180
    assert README.count("![") == 1


def test_a_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", README, re.MULTILINE))
    wanted = {"demo", "test", "test-quick", "test-all", "docs"}
    assert {a or b for a, b in named} == wanted <= targets


def test_a_relative_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (REPOSITORY / link.partition("#")[0]).exists()] == []


def test_a_file_of_the_repository_that_is_mentioned_exists() -> None:
    own = "rmr1_jax|configs|docs|tests|benchmarks"
    paths = set(re.findall(rf"`((?:{own})(?:/[\w.-]+)*|[\w.-]+\.(?:py|txt|cfg|toml))`", README))
    paths |= set(re.findall(r"--constraint[= ]([\w./-]+)", README))
    assert "constraints.txt" in paths
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_an_option_that_is_mentioned_exists() -> None:
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    named = {option.partition("=")[0] for option in re.findall(r"`--([\w=.,-]+)", prose)}
    known = {name for kind in STAGES.values() for name, _ in option_types(kind)}
    assert named - known - {"stage", "config", "debug", "editable", "help", *OPTIONS} == set()
    assert f"`{PROMPT_KEY}`" in JUDGE


@pytest.mark.parametrize("snippet", blocks("python"))
def test_a_python_snippet_compiles(snippet: str) -> None:
    compile(snippet, "README.md", "exec")


def test_the_example_records_are_pairs() -> None:
    records = [json.loads(line) for line in "".join(blocks("json", JUDGE)).splitlines()]
    assert len(records) == 3
    for number, record in enumerate(records):
        assert isinstance(preference_from_record(record, default_id=str(number)), Preference)


def test_the_tables_name_every_field_of_an_output_record() -> None:
    judgement = Judgement("A", None, None, None, None, None, "", 1, 1, "stop", -1.0)
    [preference] = [
        preference_from_record(json.loads(blocks("json", JUDGE)[0].splitlines()[0]), default_id="")
    ]
    record = judgement_record(preference, [judgement] * 2, [judgement] * 2)
    section = JUDGE.partition("\n## Output\n")[2].partition("\n## ")[0]
    named = {
        name
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert named == set(record)
    assert all(f'`"{problem}"`' in section for problem in PROBLEMS)
