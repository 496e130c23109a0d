"""The report in a real headless browser: it loads, filters, links, and runs nothing it shows."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from rmr1_jax.evaluation.report import write_comparison, write_report
from tests.evaluation.browser import Browser, find_browser
from tests.evaluation.fake_run import HOSTILE, write_fake_run

READY = "document.documentElement.dataset.ready === 'true'"
LISTED = "[...document.querySelectorAll('#list li')].map(row => row.innerText)"
DETAIL = "document.getElementById('detail').textContent"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and their comparison; the page of the first is small enough not to be packed."""
    base = tmp_path_factory.mktemp("runs")
    write_fake_run(base / "one", benchmarks=("rewardbench",), both_orders=False)
    write_fake_run(base / "two", seed=1, skill=0.9)
    for name in ("one", "two"):
        write_report(base / name)
    write_comparison([base / "one", base / "two"], base)
    assert "data-packed" not in (base / "one" / "report.html").read_text().split("<script>")[0]
    return base


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium: on the path, named by $CHROMIUM, or npm and node to get it")
    with Browser(program) as browser:
        yield browser


def visit(browser: Browser, page: Path, state: str = "") -> None:
    browser.open(page.as_uri() + state)
    browser.until(READY)


def choose(browser: Browser, field: str, value: str) -> None:
    browser.value(
        f"(field => {{ field.value = {value!r}; field.dispatchEvent(new Event('input')); }})"
        f"(document.getElementById({field!r}))"
    )


@pytest.mark.parametrize("page", ["one/report.html", "two/report.html", "comparison.html"])
def test_pages_load_and_nothing_in_them_runs(runs: Path, browser: Browser, page: str) -> None:
    visit(browser, runs / page)
    for _ in range(len(browser.value(LISTED))):
        browser.press("j")
    assert browser.value("typeof window.pwned") == "undefined"
    assert browser.value("document.images.length") == 0
    assert browser.console == []
    assert browser.requests == [(runs / page).as_uri()]


def test_a_hostile_text_is_shown_as_it_is(runs: Path, browser: Browser) -> None:
    visit(browser, runs / "one" / "report.html", "#text=" + quote("What is 3 + 0?"))
    assert HOSTILE in browser.value(DETAIL)
    assert browser.value("document.querySelectorAll('#detail script, #detail img').length") == 0
    # The policy of the page forbids what gets in all the same.
    browser.value("document.body.insertAdjacentHTML('beforeend', '<i onclick=\"pwned=1\">x</i>')")
    browser.value("document.body.lastElementChild.click()")
    assert browser.value("typeof window.pwned") == "undefined"


def test_filters_and_search(runs: Path, browser: Browser) -> None:
    visit(browser, runs / "two" / "report.html")
    whole = browser.value("document.getElementById('count').textContent")
    choose(browser, "benchmark", "rm_bench")
    choose(browser, "outcome", "wrong")
    rows = browser.value(LISTED)
    assert rows and all(row.startswith("wrong") and "RM-Bench" in row for row in rows)
    choose(browser, "group", "code")
    assert all("RM-Bench · code" in row for row in browser.value(LISTED))
    choose(browser, "outcome", "")
    choose(browser, "group", "")
    choose(browser, "benchmark", "")
    assert browser.value("document.getElementById('count').textContent") == whole
    choose(browser, "problem", "truncated")
    assert "truncated" in browser.value(DETAIL)
    choose(browser, "problem", "")
    choose(browser, "text", "WHAT IS 3 + 7?")
    browser.until(f"{LISTED}.length === 6")
    choose(browser, "text", "nowhere at all")
    browser.until(f"{LISTED}.length === 0")
    assert browser.value(DETAIL) == "No sample fits these filters."
    assert browser.console == []


def test_keys_walk_through_samples_and_pages_of_fifty(runs: Path, browser: Browser) -> None:
    visit(browser, runs / "two" / "report.html")
    current = (
        "[...document.querySelectorAll('#list button')].findIndex(b => b.ariaCurrent === 'true')"
    )
    place = lambda: browser.value(current)  # noqa: E731
    assert len(browser.value(LISTED)) == 50 and place() == 0
    for key, expected in (("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)):
        browser.press(key)
        assert place() == expected
    browser.value("document.getElementById('forth').click()")
    assert browser.value("document.getElementById('page').textContent") == "51 to 100"
    browser.press("k")
    assert place() == 49
    browser.value("document.getElementById('text').focus()")
    browser.press("k")
    assert place() == 49


def test_an_address_brings_back_filters_and_sample(runs: Path, browser: Browser) -> None:
    page = runs / "two" / "report.html"
    visit(browser, page, "#benchmark=rmb&outcome=wrong")
    assert all("RMB" in row for row in browser.value(LISTED))
    browser.press("j")
    shown, state = browser.value(DETAIL), browser.value("location.hash")
    visit(browser, page, state)
    assert browser.value(DETAIL) == shown
    # The link to the sample alone, and one that no longer fits the filters beside it.
    key = re.search("sample=[a-z0-9_-]+", state)
    assert key
    for linked in (f"#{key[0]}", f"#outcome=right&{key[0]}"):
        visit(browser, page, linked)
        assert browser.value(DETAIL) == shown


def test_a_jump_to_a_section_leaves_the_samples_alone(runs: Path, browser: Browser) -> None:
    visit(browser, runs / "two" / "report.html", "#benchmark=rmb")
    shown = browser.value(DETAIL)
    browser.value("document.querySelector('.jump a').click()")
    browser.until("location.hash === '#published'")
    assert browser.value(DETAIL) == shown


def test_a_table_sorts(runs: Path, browser: Browser) -> None:
    visit(browser, runs / "two" / "report.html")
    first = "document.querySelector('[data-sort]').tBodies[0].rows[0].cells[0].textContent"
    head = "document.querySelector('[data-sort]').tHead.rows[0].cells"
    browser.value(f"{head}[2].querySelector('button').click()")
    assert "INF-ORM" in browser.value(first)
    assert browser.value(f"{head}[2].ariaSort") == "descending"
    browser.value(f"{head}[0].querySelector('button').click()")
    assert "ArmoRM" in browser.value(first)


@pytest.mark.parametrize("page", ["two/report.html", "comparison.html"])
def test_nothing_is_wider_than_a_phone(runs: Path, browser: Browser, page: str) -> None:
    visit(browser, runs / page)
    browser.picture(runs / "phone.png", width=380, height=800)
    browser.value("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")


def test_a_comparison_shows_both_traces(runs: Path, browser: Browser) -> None:
    visit(browser, runs / "comparison.html", "#outcome=" + quote("only two right"))
    titles = browser.value("[...document.querySelectorAll('.trace h4')].map(t => t.textContent)")
    assert titles == ["one", "two"]
    assert "right" in browser.value("document.querySelectorAll('.trace .badge')[1].textContent")
