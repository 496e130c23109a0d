"""What a notebook shows: one judgement, a table of verdicts, a whole page.

The marks and the style are those of the report. A cell whose last value is one of these shows it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rmr1_jax.evaluation.record import Record
from rmr1_jax.evaluation.report_samples import read_items
from rmr1_jax.evaluation.results import Results
from rmr1_jax.io.page import render, style
from rmr1_jax.judging import Message, Preference, Side, combine_orders, unswap
from rmr1_jax.judging.markup import highlighted

if TYPE_CHECKING:
    from rmr1_jax.sampling.judgement import Judgement

PROBLEMS = {
    "none": "no verdict",
    "both": "both verdicts",
    "truncated": "cut off without a verdict",
    "prompt_too_long": "prompt too long",
}
QUESTION = 90  # characters of it in a table
# A notebook has a style of its own: ours is held inside one element, and has a ground to stand on.
FRAME = """\
.rmr1 { %s
  & { background: var(--card); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
      border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; margin: 4px 0 12px; }
  h3 { margin: 0; font: 600 16px/1.5 system-ui, sans-serif; } h4 { margin: 0; }
  style + .two { margin-top: 0; }
  pre { border: 0; color: inherit; white-space: pre-wrap; word-break: normal; }
  .sheet { margin: 0; table-layout: auto; }
  .sheet tr, .sheet tr:nth-child(n) { background: none; }
  .sheet th, .sheet td { vertical-align: top; text-align: left; font-size: 14px; }
  .sheet .asked { white-space: normal; min-width: 200px; width: 50%%; }
  .sheet thead th, .sheet thead td { font-weight: 600; color: var(--soft); }
  .scroll + .note { margin: 8px 0 0; }
}"""


class Html(str):
    """A piece of a page, which Jupyter and Colab show as such."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<HTML of {len(self):,} characters>"


def judgement_card(pair: Preference, judgement: "Judgement | Record", title: str = "") -> Html:
    """The question, both answers, and what the judge wrote, with its parts marked.

    Args:
      pair: as the judge saw it: of a swapped judgement, `preference.swapped()`.
      judgement: by a `Judge`, or a record of an evaluation.
    """
    verdict = judgement.verdict
    says = f"said {verdict}" if verdict else PROBLEMS.get(judgement.problem or "", "no verdict")
    right = None if pair.label is None or verdict is None else verdict == pair.label
    contexts = [pair.context] if pair.context_b is None else [pair.context, pair.context_b]
    return _shown(
        "judgement",
        title=title,
        conversations=contexts,
        answers=[
            ("A", pair.response_a, _notes(pair, verdict, "A")),
            ("B", pair.response_b, _notes(pair, verdict, "B")),
        ],
        badge=says if right is None else f"{says}: {'right' if right else 'wrong'}",
        kind="none" if verdict is None else _kind(right),
        facts=_facts(judgement),
        trace=None if judgement.trace is None else highlighted(judgement.trace.strip()),
    )


def verdict_table(
    judged: Iterable[tuple[Preference, "Judgement | Record", "Judgement | Record"]],
) -> Html:
    """A line for each pair: what the judge said of it in either order, and how sure it was.

    Args:
      judged: the pair as given, the judgement on it, and the one on `pair.swapped()`. In the table
        both are in terms of the pair as given.
    """
    rows = []
    labelled = False
    for pair, given, swapped in judged:
        together = combine_orders(given.verdict, swapped.verdict)
        both = given.verdict is not None and swapped.verdict is not None
        labelled |= pair.label is not None
        right = together.verdict == pair.label
        undecided = together.verdict is None
        rows.append(
            {
                "question": _shortened(pair.context[-1].content),
                "orders": [
                    (given.verdict, _beside(given)),
                    (unswap(swapped.verdict), _beside(swapped)),
                ],
                "together": together.verdict,
                "place": both and undecided,
                "label": pair.label,
                "outcome": "undecided" if undecided else "right" if right else "wrong",
                "kind": "none" if undecided else _kind(right),
            }
        )
    return _shown("verdicts", rows=rows, labelled=labelled)


def page_inside(page: Path | str, height: int = 800) -> Html:
    """A page, such as `report.html`, inside the notebook, with its search and its filters.

    Args:
      page: an HTML file that needs no other.
      height: pixels.
    """
    text = Path(page).read_text(encoding="utf-8")
    # Without a base the links within the page would lead to the notebook's own address.
    text = text.replace("<head>", '<head><base href="about:srcdoc">', 1)
    style = "box-sizing: border-box; border: 1px solid #dcdcd8; border-radius: 10px"
    return Html(
        f'<iframe srcdoc="{escape(text)}" width="100%" height="{height}" '
        f'title="{escape(Path(page).name)}" style="{style}"></iframe>'
    )


def judged_pairs(results: Results | Path | str, benchmark: str) -> list[tuple[Preference, Record]]:
    """The records of a benchmark, each with the pair as the judge saw it, its label included.

    Records whose item was not kept are left out. Raises UserError where there are no records.
    """
    results = results if isinstance(results, Results) else Results(results)
    records = results.read().get(benchmark, [])
    items = read_items(results.items_file(benchmark), (record.item for record in records))
    return [(_pair(items[each.item], each), each) for each in records if each.item in items]


def _pair(item: Mapping[str, Any], record: Record) -> Preference:
    def context(name: str) -> tuple[Message, ...]:
        return tuple(Message(each["role"], each["content"]) for each in item[name])

    pair = Preference(record.id, context("conversation"), item["chosen"], item["rejected"], "A")
    if "conversation_rejected" in item:
        pair = replace(pair, context_b=context("conversation_rejected"))
    return pair if record.chosen_position == "A" else pair.swapped()


def _shown(show: str, **about: Any) -> Html:
    # Nested in a rule of its own, the page's style reaches nothing else: its root becomes the rule.
    nested = Markup(FRAME % style().replace(":root", "&"))
    template = "notebook.html.jinja"
    return Html(render("rmr1_jax.evaluation", template, show=show, about=about, style=nested))


def _notes(pair: Preference, verdict: Side | None, side: Side) -> list[tuple[str, str]]:
    """(class, text) of what is said beside an answer."""
    notes = []
    if pair.label is not None:
        better = pair.label == side
        notes.append(
            ("right", "the better one, says the label") if better else ("soft", "the other one")
        )
    if verdict == side:
        notes.append(("pick", "picked by the judge"))
    return notes


def _kind(right: bool | None) -> str:
    return "soft" if right is None else "right" if right else "wrong"


def _facts(judgement: "Judgement | Record") -> str:
    sure = _sure(judgement)
    facts = [
        "" if sure is None else f"{100 * sure:.1f} % sure",
        "verdict forced at the budget" if judgement.forced else "",
        "" if judgement.trace_tokens is None else f"{judgement.trace_tokens:,} tokens",
        "" if judgement.prompt_tokens is None else f"prompt {judgement.prompt_tokens:,} tokens",
    ]
    return " · ".join(filter(None, facts))


def _sure(judgement: "Judgement | Record") -> float | None:
    """The probability of the verdict that was given, where it is known."""
    if judgement.verdict is None or judgement.confidence is None:
        return None
    return judgement.confidence if judgement.verdict == "A" else 1 - judgement.confidence


def _beside(judgement: "Judgement | Record") -> str:
    """What stands beside a verdict in the table: how sure it is, or why there is none."""
    if judgement.verdict is None:
        return PROBLEMS.get(judgement.problem or "", "no verdict")
    sure = _sure(judgement)
    return "" if sure is None else f"{100 * sure:.0f} %"


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= QUESTION else text[: QUESTION - 1].rstrip() + "…"
