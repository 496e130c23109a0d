"""The documentation is built without a warning, and what it links to is there."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.commands import REPOSITORY

pytest.importorskip("sphinx")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages; the build has failed if Sphinx warned of anything."""
    folder = tmp_path_factory.mktemp("docs")
    html = folder / "html"
    options = ["-W", "--keep-going", "-q", "-d", str(folder / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(REPOSITORY / "docs"), str(html)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return html


class Page(HTMLParser):
    """What a page links to and shows, and the places in it that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.places |= {place for place in (given.get("id"), given.get("name")) if place}
        link = given.get("href") if tag != "img" else given.get("src")
        if link:
            self.links.add(link)


def test_builds_without_a_warning(built: Path) -> None:
    assert (built / "index.html").is_file()


def test_every_link_within_the_pages_leads_somewhere(built: Path) -> None:
    pages = {file: Page(file) for file in built.rglob("*.html")}
    lost = []
    for file, page in pages.items():
        for link in page.links:
            if "://" in link or link.startswith(("data:", "mailto:")) or link == "#":
                continue
            path, _, place = unquote(link).partition("#")
            there = (file.parent / path.partition("?")[0]).resolve() if path else file
            found = there.exists() and (
                not place or there not in pages or place in pages[there].places
            )
            lost += [] if found else [f"{file.name}: {link}"]
    assert lost == []


def test_generated_pages_hold_what_they_are_made_from(built: Path) -> None:
    recipes = (built / "recipes.html").read_text()
    assert all(file.name in recipes for file in (REPOSITORY / "configs").glob("*.py"))
    assert "low-variance KL" in (built / "reference.html").read_text()
    assert "How the engine works" in (built / "engine.html").read_text()


def test_nothing_is_asked_of_other_servers(built: Path) -> None:
    for file in built.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|link rel="stylesheet")[^>]*"(?:https?:)?//', text)
    assert (built / "concepts.html").read_text().count("<math ") > 15


def test_nothing_is_written_beside_the_sources(built: Path) -> None:
    made = {"_build", "__pycache__"}
    beside = {path.suffix for path in (REPOSITORY / "docs").rglob("*") if not made & {*path.parts}}
    assert beside <= {".md", ".py", ".png", ".css", ""}
