"""A complete small evaluation that no model made: three benchmarks, traces of every kind."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from rmr1_jax.evaluation.record import Cell, Item, Record, grade
from rmr1_jax.evaluation.results import RUN, Results
from rmr1_jax.evaluation.scores import score_run
from rmr1_jax.judging import Message, Preference, Side
from rmr1_jax.judging.preference import other_side

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
    "<!-- <b>bold</b> & \u2028 \u2029 &lt; ]]>"
)
SUBSETS = {
    "alpacaeval-easy": 4,
    "mt-bench-hard": 4,
    "llmbar-natural": 8,
    "llmbar-adver-manual": 8,
    "refusals-dangerous": 4,
    "donotanswer": 6,
    "hep-python": 6,
    "math-prm": 10,
}
DOMAINS = {"chat": 3, "code": 3, "math": 3, "safety-refuse": 2, "safety-response": 2}
SCENARIOS = ("Helpfulness/Chat/Discussion", "Helpfulness/Code/Data Management", "Harmlessness/S1")
WORDS = (
    "The request asks for a short answer that is right and easy to follow; what matters most here "
    "is whether each claim holds, then whether the tone fits, and only then how long it is. "
)
# A line of RM-R1's published logs of RewardBench.
LOGGED = {
    "text_chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "yes"}],
    "text_rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "no"}],
    "results": 1,
    "answers": "[[B]]",
    "Is_Chosen_Answer_Shuffled_toPositionB": True,
    "subset": "hep-go",
    "id": 5,
}


def write_fake_run(
    output: Path,
    *,
    seed: int = 0,
    skill: float = 0.75,
    votes: int = 1,
    both_orders: bool = True,
    traces: bool = True,
    items: bool = True,
    benchmarks: tuple[str, ...] = ("rewardbench", "rm_bench", "rmb"),
    times: int = 1,
) -> dict[str, Any]:
    """Write run.json, items, records and scores.json; returns the scores.

    The same items whatever the seed and skill, so that two runs can be compared. `times` as many.
    """
    results, random = Results(output), Random(seed)
    records: dict[str, list[Record]] = {}
    for name in benchmarks:
        its = list({"rewardbench": rewardbench, "rm_bench": rm_bench, "rmb": rmb}[name](times))
        sides: tuple[Side, Side] = ("A", "B")
        if both_orders:
            orders = [[side] * len(its) for side in sides]
        else:
            orders = [[sides[i % 2] for i in range(len(its))]]
        records[name] = [
            judge(item, position, sample, random, skill, traces)
            for positions in orders
            for item, position in zip(its, positions, strict=True)
            for sample in range(votes)
        ]
        if items:
            results.write_items(name, its)
        results.write_records(name, records[name])
    settings = {
        "model": f"/models/judge-{seed}",
        "max_new_tokens": 2048,
        "temperature": 0.0,
        "order": "both" if both_orders else "published",
        "note": HOSTILE,
    }
    run = {"settings": settings, "prompt_source": "chain_of_rubrics", "prompt_sha256": "0" * 64}
    (output / RUN).write_text(json.dumps(run))
    scores = score_run(records, replicates=40)
    results.write_scores(scores)
    return scores


def judge(
    item: Item, position: Side, sample: int, random: Random, skill: float, traces: bool
) -> Record:
    says: Side = (
        position
        if random.random() < skill + (0.05 if position == "A" else -0.05)
        else (other_side(position))
    )
    kind = random.random()
    problem: Any = None
    forced = False
    if kind < 0.03:
        problem, trace = "truncated", f"<type>Chat</type><rubric>Accuracy (60 %) {WORDS * 6}"
    elif kind < 0.05:
        problem, trace = "none", f"Both are fine. {WORDS}"
    elif kind < 0.06:
        problem, trace = "both", "<answer>[[A]]</answer> or <answer>[[B]]</answer>"
    elif kind < 0.07:
        problem, trace = "prompt_too_long", ""
    else:
        forced = kind > 0.97
        trace = trace_of(says, random)
    verdict = None if problem else says
    length = len(trace) // 4
    return Record(
        benchmark=item.benchmark,
        id=item.id,
        index=item.index,
        group=item.group,
        cell=item.cell,
        chosen_position=position,
        verdict=verdict,
        problem=problem,
        correct=grade(verdict, position),
        trace=trace if traces else None,
        prompt_tokens=length * 2 if traces else None,
        trace_tokens=length if traces else None,
        seconds=round(random.random(), 3),
        sample=sample,
        confidence=(
            None if verdict is None else round(abs((verdict == "B") - random.betavariate(8, 2)), 4)
        ),
        forced=forced,
        prompt=item.prompt,
    )


def trace_of(says: Side, random: Random) -> str:
    """One of each published form; some hold what must not run."""
    more = WORDS * random.randrange(1, 9)
    bad = f" {HOSTILE}" if random.random() < 0.2 else ""
    forms = (
        f"<type>Chat</type>\n<rubric>\nAccuracy (60 %)\nTone (40 %){bad}\n"
        f"<justify>{more}</justify>\n</rubric>\n<eval>\n"
        f"<quote_A>It is 7</quote_A> against <summary_B>eight</summary_B>; "
        f"<quote_B>8</quote_B> is larger, <summary_A>seven</summary_A> is right. {more}\n</eval>\n"
        f"<answer>[[{says}]]</answer><|im_end|>",
        f"<type>Reasoning</type>\n<solution>3 + 4 = 7. {more}{bad}</solution>\n<eval>A has it, "
        f"<summary_B>B does not</summary_B>.</eval>\n<answer>[[{says}]]</answer><|im_end|>",
        f"I must end with <answer>[[{says}]]</answer>. {more}{bad}\n</think>\n\nChatbot {says} is "
        f"better.\n<answer>[[{says}]]</answer>",
    )
    return random.choice(forms)


def pair(id: str, question: str, better: str, worse: str) -> Preference:
    return Preference(id, (Message("user", question),), better, worse, "A")


def rewardbench(times: int = 1) -> Iterator[Item]:
    index = 0
    for subset, n in SUBSETS.items():
        for i in range(n * times):
            hostile = f" {HOSTILE}" if i == 0 else ""
            question = f"What is 3 + {i}?{hostile}"
            about = pair(f"{subset}/{i}", question, f"It is {3 + i}.{hostile}", f"It is {4 + i}.")
            if i == 1:
                context = (
                    Message("system", "You are brief."),
                    Message("user", "Hello"),
                    Message("assistant", "Hello! What is it?"),
                    *about.context,
                )
                about = Preference(about.id, context, about.response_a, about.response_b, "A")
            if i == 2:
                other = (Message("user", "Hello!"), *about.context)
                about = Preference(
                    about.id, about.context, about.response_a, about.response_b, "A", other
                )
            yield Item("rewardbench", about.id, index, subset, None, about, index)
            index += 1


def rm_bench(times: int = 1) -> Iterator[Item]:
    rows = [(domain, i) for domain, n in DOMAINS.items() for i in range(n * times)]
    for file in range(3):
        for pairing in range(3):
            for row, (domain, i) in enumerate(rows):
                cell: Cell = (pairing, (pairing + file) % 3)
                question = f"Write about {domain}, number {i}.\n\n{WORDS}"
                bad = HOSTILE if i == 0 else ""
                answers = [f"{kind} {style} {bad}" for kind, style in zip("yn", cell, strict=True)]
                about = pair(f"{domain}/{i}", question, *answers)
                draw = pairing * len(rows) + row
                index = file * 3 * len(rows) + draw
                yield Item("rm_bench", about.id, index, domain, cell, about, draw)


def rmb(times: int = 1) -> Iterator[Item]:
    index = 0
    for scenario in SCENARIOS:
        for i in range(6 * times):
            about = pair(f"{scenario}-{i}", f"Let us talk, {i}. {WORDS}", "Gladly.", "No.")
            yield Item("rmb", about.id, index, f"Pairwise_set/{scenario}", None, about, index)
            index += 1
        for query in range(4 * times):
            for loser in range(2 + query % 2):
                id = f"{scenario}-bon-{query}-{loser}"
                about = pair(id, f"Which? {query} {WORDS}", "The best.", f"Loser {loser}.")
                cell = (f"{scenario}-bon-{query}", loser)
                yield Item("rmb", id, index, f"BoN_set/{scenario}", cell, about, index)
                index += 1
