"""The report of an evaluation: what it shows, and that nothing in it can run."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.evaluation import report_samples
from rmr1_jax.evaluation.charts import Point, plot, ticks
from rmr1_jax.evaluation.published_scores import PUBLISHED
from rmr1_jax.evaluation.record import read_records
from rmr1_jax.evaluation.report import write_comparison, write_report
from rmr1_jax.evaluation.report_published import main_sheet, strips
from rmr1_jax.evaluation.report_samples import choose, embedded, in_pieces, sample_key
from rmr1_jax.evaluation.report_scores import benchmarks, warnings
from tests.evaluation.fake_run import HOSTILE, write_fake_run

VOID = {"meta", "input"}
# In an SVG these have no end tag of their own.
CLOSED = {"line", "circle", "polyline"}


class Page(HTMLParser):
    """Reads a page, and checks on the way that every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in CLOSED
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            # A text that ends in a cell is a word of its own.
            self.text += data + " "

    @property
    def data(self) -> Any:
        attributes = next(about for tag, about in self.tags if about.get("id") == "data")
        text = self.scripts[0]
        if "data-packed" in attributes:
            text = gzip.decompress(base64.b64decode(text)).decode()
        return json.loads(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("judge")
    write_fake_run(output, votes=2)
    write_report(output)
    return output


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def scores_of(run: Path) -> Any:
    return json.loads((run / "scores.json").read_text())


def test_every_score_is_on_the_page(run: Path, page: Page) -> None:
    scores = scores_of(run)
    parts = [scores["rewardbench"], scores["rewardbench"]["subsets"], scores["rmb"]["scenarios"]]
    parts += [scores["rm_bench"]["as_published"], scores["rm_bench"]["corrected"]]
    parts += [{name: scores[name] for name in ("average", "average_corrected")}]
    shown = 0
    for part in parts:
        for score in part.values():
            if isinstance(score, dict) and score.get("value") is not None:
                assert f"{100 * score['value']:.1f} ± {100 * score['stderr']:.1f}" in page.text
                shown += 1
    assert shown > 30
    for way in ("as_published", "corrected"):
        for row in scores["rm_bench"]["matrix"][way]:
            assert all(f"{100 * value:.1f}" in page.text for value in row)
    for curve in scores["rmb"]["votes"]:
        assert f"{100 * curve['value']:.1f}" in page.text


def test_published_rows_stand_beside_it(page: Page) -> None:
    for row in PUBLISHED:
        assert row.name in page.text and f"{row.rewardbench:.1f}" in page.text
    assert "judge-0 RM-Bench corrected this run" in page.text


def test_the_run_is_named_with_its_settings_and_what_was_judged(page: Page) -> None:
    assert "judge-0" in page.text and "chain_of_rubrics" in page.text
    assert "50 pairs of RewardBench in both orders with 2 votes" in page.text
    assert "max_new_tokens 2048" in page.text


def test_it_opens_offline(page: Page) -> None:
    """Nothing is loaded, and the one script that runs is the one the policy names."""
    for tag, about in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        assert "src" not in about and (about.get("href") or "#").startswith("#")
        assert not [name for name in about if name.startswith("on")]
    assert "http://" not in page.html.replace("http-equiv", "") and "https://" not in page.html
    assert "url(" not in page.html and "@import" not in page.html
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert [about.get("type") for tag, about in page.tags if tag == "script"] == [
        "application/json",
        None,
    ]


@pytest.mark.parametrize("large", [0, 10**9])
def test_hostile_texts_stay_texts(run: Path, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed or not, what a data set or a model wrote comes out as it was and runs nowhere."""
    monkeypatch.setattr(report_samples, "LARGE", large)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert len(page.scripts) == 2 and "pwned" not in page.scripts[1]
    assert not any(tag in {"img", "i"} for tag, _ in page.tags)
    held = page.data
    assert any(HOSTILE in text for text in held["texts"])
    traces = [each["trace"] for sample in held["samples"] for each in sample["judgements"]]
    assert any(HOSTILE in piece for trace in traces for piece in trace if isinstance(piece, str))


def test_a_sample_has_its_question_answers_and_trace_as_the_judge_saw_them(
    run: Path, page: Page
) -> None:
    held = page.data
    records = {
        sample_key(record): record
        for name in ("rewardbench", "rm_bench", "rmb")
        for record in read_records(run / "records" / f"{name}.jsonl", name)
    }
    assert {sample["key"] for sample in held["samples"]} == set(records)
    for sample in held["samples"]:
        record = records[sample["key"]]
        (judged,) = sample["judgements"]
        text = "".join(
            piece if isinstance(piece, str) else piece[1]
            for piece in judged["trace"]
            if isinstance(piece, str) or len(piece) == 2
        )
        assert text == record.trace
        assert judged.get("verdict") == record.verdict
        assert judged.get("problem") == record.problem
        if record.benchmark == "rewardbench":
            number = int(record.id.split("/")[1])
            better, worse = f"It is {3 + number}.", f"It is {4 + number}."
            a, b = (held["texts"][place].split(" </script>")[0] for place in sample["answers"])
            assert (a, b) == ((better, worse) if record.chosen_position == "A" else (worse, better))


def test_a_pair_with_two_conversations_shows_both(page: Page) -> None:
    two = [each for each in page.data["samples"] if len(each.get("conversations", ())) == 2]
    assert two
    for sample in two:
        lengths = [len(messages) for messages in sample["conversations"]]
        assert lengths == ([1, 2] if sample["chosen"] == "A" else [2, 1])


def test_pieces_are_told_apart_by_their_shape() -> None:
    assert list(in_pieces("<eval>so</eval>[[A]]")) == [
        ["eval"],
        ["eval", "<eval>"],
        "so",
        ["eval", "</eval>"],
        [],
        ["verdict", "[[A]]"],
    ]


def test_a_large_run_shows_a_part_that_is_even(run: Path) -> None:
    page = Page(write_report(run, samples=30).read_text(encoding="utf-8"))
    held = page.data["samples"]
    assert [sum(s["benchmark"] == name for s in held) for name in ("rewardbench", "rmb")] == [
        30
    ] * 2
    own = [sample for sample in held if sample["benchmark"] == "rewardbench"]
    assert len({sample["group"] for sample in own}) == 8
    assert sum(sample["outcome"] != "right" for sample in own) >= 12
    assert "30 of 200 of RewardBench" in page.text


def test_choosing_is_even_ordered_and_repeatable() -> None:
    strata = ["many"] * 90 + ["few"] * 5 + ["some"] * 20
    chosen = choose(strata, 30)
    assert chosen == sorted(chosen) == choose(strata, 30)
    counts = [[strata[place] for place in chosen].count(each) for each in ("many", "few", "some")]
    assert counts[1] == 5 and abs(counts[0] - counts[2]) <= 1 and sum(counts) == 30
    assert choose(strata, 1000) == list(range(len(strata)))
    assert choose([], 5) == []


@pytest.mark.parametrize("benchmark", ["rewardbench", "rm_bench", "rmb"])
def test_one_benchmark_alone(benchmark: str, tmp_path: Path) -> None:
    write_fake_run(tmp_path, benchmarks=(benchmark,), both_orders=False)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    ids = {about.get("id") for _, about in page.tags}
    assert ids & {"rewardbench", "rm_bench", "rmb"} == {benchmark}
    assert "needs all three" in page.text
    assert "one order was judged" in page.text


def test_records_of_others_without_traces_items_and_settings(tmp_path: Path) -> None:
    write_fake_run(tmp_path, traces=False, items=False)
    (tmp_path / "run.json").unlink()
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert tmp_path.name in page.text
    for sample in page.data["samples"]:
        assert "answers" not in sample and "trace" not in sample["judgements"][0]
    assert "Length of the trace" not in page.text


def test_a_preference_file_alone_has_no_published_rows(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    lines = [
        {"benchmark": "preferences", "id": str(i), "index": i, "group": "mine <b>", "cell": None}
        | {"chosen_position": "AB"[i % 2], "verdict": "A"}
        for i in range(8)
    ]
    (tmp_path / "records" / "preferences.jsonl").write_text("\n".join(map(json.dumps, lines)))
    from rmr1_jax.evaluation.scores import score_run

    records = read_records(tmp_path / "records" / "preferences.jsonl", "preferences")
    scores = score_run({"preferences": records}, replicates=5)
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "mine <b>" in page.text and "published rows" not in page.text
    assert "50.0" in page.text


def test_a_page_without_scores_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\.json.*score the records first"):
        write_report(tmp_path)
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json.*cannot be read"):
        write_report(tmp_path)


def test_a_damaged_items_file_is_named(tmp_path: Path) -> None:
    write_fake_run(tmp_path, benchmarks=("rmb",))
    file = tmp_path / "items" / "rmb.jsonl"
    file.write_text("{}\n" + file.read_text())
    with pytest.raises(UserError, match=r"rmb\.jsonl, line 1: is no item"):
        write_report(tmp_path)


def score(value: float | None) -> dict[str, Any]:
    return {"value": value, "n": 10, "complete": value is not None, "stderr": 0.01}


def test_warnings_are_plain_words() -> None:
    part = {"position": {}, "overall": score(0.5), "judgements": 200, "truncated": 20}
    part |= {
        "none": 8,
        "both": 4,
        "prompt_too_long": 1,
        "missing": ["subset donotanswer: 0 of 136"],
    }
    texts = [warning.text for warning in warnings({"rewardbench": part, "rule": "published"})]
    assert texts == [
        "RewardBench is incomplete: subset donotanswer: 0 of 136.",
        "RewardBench: of 200 judgements, 20 (10.0 %) ran into the token limit before a verdict, "
        "1 (0.5 %) had a prompt that does not fit the model's context and 12 (6.0 %) ended with no "
        "verdict or with both. These count 0.",
    ]
    assert warnings({"rewardbench": {"position": {}, "judgements": 9, "missing": []}}) == []


def test_a_benchmark_that_came_later_is_laid_out_alike() -> None:
    (found,) = benchmarks(
        {"new_one": {"position": {}, "overall": score(0.5), "parts": {"x": score(1)}}}
    )
    assert found.title == "new_one" and found.totals[0].value == 50
    assert [panel.title for panel in found.panels] == ["Scores", "Parts"]


def test_a_strip_holds_every_number() -> None:
    weak = {"rewardbench": {"overall": score(0.034)}, "average": score(None)}
    found = strips(main_sheet(weak, "weak"))
    assert found[0].low == 0 and found[0].ours[0][1].value == pytest.approx(3.4)
    assert not found[3].ours
    places = [strip.place(value) for strip in found for _, _, value in strip.dots]
    assert len(places) == 25 + 22 + 25 + 22 and all(0 < place < 100 for place in places)


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.9, 3.1, least=1) == [1, 2, 3]
    assert all(62.1 <= tick <= 71.3 for tick in ticks(62.1, 71.3))


def test_a_plot_keeps_points_inside_and_labels_apart() -> None:
    drawn = plot(
        [Point(300, 71, 1, "one"), Point(300, 71, 1, "two"), Point(310, 70.9, 9, "c")], "x"
    )
    heights = sorted(point.label_y for point in drawn.points)
    assert all(b - a >= 14 for a, b in pairwise(heights))
    for point in drawn.points:
        assert 40 <= point.x <= 324 and 14 <= point.top <= point.y <= point.bottom <= 182


def test_embedding_escapes_what_could_end_it() -> None:
    data = {"text": HOSTILE}
    element = str(embedded(data))
    inner = re.fullmatch(r"<script[^>]*>(.*)</script>", element)
    assert inner and not re.search("[<>&\u2028\u2029]", inner[1])
    assert json.loads(inner[1]) == data


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "better <b>"
    write_fake_run(other, seed=1, skill=0.95)
    written = write_comparison([run, other], tmp_path / "out")
    page = Page(written.read_text(encoding="utf-8"))
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert "better <b>" in page.text and not any(tag == "i" for tag, _ in page.tags)
    disagree = 0
    for part in compared["benchmarks"].values():
        (difference,) = part["differences"]
        assert f"{100 * difference['difference']:+.1f}" in page.text
        assert f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}" in page.text
        assert str(difference["only_b"]) in page.text
        disagree += len(part["disagree"])
        for values in part["headline"].values():
            assert all(f"{100 * value:.1f}" in page.text for value in values if value is not None)
    held = page.data["samples"]
    assert len(held) == disagree
    assert all(
        [each["title"] for each in sample["judgements"]] == compared["runs"] for sample in held
    )
    assert {sample["outcome"] for sample in held} >= {
        "only better <b> right",
        f"only {run.name} right",
    }


def test_runs_under_different_rules_are_not_compared(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    scores = write_fake_run(other, benchmarks=("rmb",))
    (other / "scores.json").write_text(json.dumps(scores | {"rule": "rewardbench"}))
    with pytest.raises(UserError, match="different rules"):
        write_comparison([run, other], tmp_path)
