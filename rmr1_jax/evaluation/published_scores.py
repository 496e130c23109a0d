"""What was published: the numbers of the RM-R1 paper (arXiv 2505.02387), in points of 100.

The published RM-Bench scores of RM-R1 come from a script that reads its third result file twice
and its second never (eval/RM-Bench/scripts/process_final_result.py): the report sets them beside
`as_published`. `RM_BENCH_CORRECTED_ROWS` has what the same judgements give without that.

A few totals are not the mean of their parts. They are left as they are, and the tests list them.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal["scalar", "generative", "reasoning", "rm-r1"]


class PublishedRow(NamedTuple):
    """A row of the paper's Table 1. None where the paper has no number."""

    name: str
    kind: Kind
    rewardbench: float
    rm_bench: float | None
    rmb: float
    average: float | None


def _rows(
    scores: tuple[str, ...], rows: Mapping[str, tuple[float, ...]]
) -> dict[str, dict[str, float]]:
    return {name: dict(zip(scores, row, strict=True)) for name, row in rows.items()}


# Table 1, in its order.
PUBLISHED: tuple[PublishedRow, ...] = (
    PublishedRow("SteerLM-RM-70B", "scalar", 88.8, 52.5, 58.2, 66.5),
    PublishedRow("Eurus-RM-7b", "scalar", 82.8, 65.9, 68.3, 72.3),
    PublishedRow("Internlm2-20b-reward", "scalar", 90.2, 68.3, 62.9, 73.6),
    PublishedRow("Skywork-Reward-Gemma-2-27B", "scalar", 93.8, 67.3, 60.2, 73.8),
    PublishedRow("Internlm2-7b-reward", "scalar", 87.6, 67.1, 67.1, 73.9),
    PublishedRow("ArmoRM-Llama3-8B", "scalar", 90.4, 67.7, 64.6, 74.2),
    PublishedRow("Nemotron-4-340B-Reward", "scalar", 92.0, 69.5, 69.9, 77.1),
    PublishedRow("Skywork-Reward-Llama-3.1-8B", "scalar", 92.5, 70.1, 69.3, 77.5),
    PublishedRow("INF-ORM-Llama3.1-70B", "scalar", 95.1, 70.9, 70.5, 78.8),
    PublishedRow("Claude-3.5-sonnet", "generative", 84.2, 61.0, 70.6, 71.9),
    PublishedRow("Llama3.1-70B-Instruct", "generative", 84.0, 65.5, 68.9, 72.8),
    PublishedRow("Gemini-1.5-pro", "generative", 88.2, 75.2, 56.5, 73.3),
    PublishedRow("Skywork-Critic-Llama-3.1-70B", "generative", 93.3, 71.9, 65.5, 76.9),
    PublishedRow("GPT-4o-0806", "generative", 86.7, 72.5, 73.8, 77.7),
    PublishedRow("JudgeLRM", "reasoning", 75.2, 64.7, 53.1, 64.3),
    PublishedRow("DeepSeek-PairRM-27B", "reasoning", 87.1, None, 58.2, None),
    PublishedRow("DeepSeek-GRM-27B-RFT", "reasoning", 84.5, None, 67.0, None),
    PublishedRow("DeepSeek-GRM-27B", "reasoning", 86.0, None, 69.0, None),
    PublishedRow("Self-taught-evaluator-70B", "reasoning", 90.2, 71.4, 67.0, 76.2),
    PublishedRow("RM-R1-DeepSeek-Distilled-Qwen-7B", "rm-r1", 80.1, 72.4, 55.1, 69.2),
    PublishedRow("RM-R1-Qwen-Instruct-7B", "rm-r1", 85.2, 70.2, 66.4, 73.9),
    PublishedRow("RM-R1-Qwen-Instruct-14B", "rm-r1", 88.2, 76.1, 69.2, 77.8),
    PublishedRow("RM-R1-DeepSeek-Distilled-Qwen-14B", "rm-r1", 88.9, 81.5, 68.5, 79.6),
    PublishedRow("RM-R1-Qwen-Instruct-32B", "rm-r1", 91.4, 79.1, 73.0, 81.2),
    PublishedRow("RM-R1-DeepSeek-Distilled-Qwen-32B", "rm-r1", 90.9, 83.9, 69.8, 81.5),
)

# Table 6. A model has the name that Table 1 gives it, if it is there.
REWARDBENCH_ROWS = _rows(
    ("chat", "chat_hard", "safety", "reasoning", "overall"),
    {
        "RM-R1-DeepSeek-Distilled-Qwen-7B": (88.9, 66.2, 78.4, 87.0, 80.1),
        "RM-R1-Qwen-Instruct-7B": (94.1, 74.6, 85.2, 86.7, 85.2),
        "RM-R1-Qwen-Instruct-14B": (93.6, 80.5, 86.9, 92.0, 88.2),
        "RM-R1-DeepSeek-Distilled-Qwen-14B": (91.3, 79.4, 89.3, 95.5, 88.9),
        "RM-R1-DeepSeek-Distilled-Qwen-32B": (95.3, 80.3, 91.1, 96.8, 90.9),
        "RM-R1-Qwen-Instruct-32B": (95.3, 83.1, 91.9, 95.2, 91.4),
        "INF-ORM-Llama3.1-70B": (96.6, 91.0, 93.6, 99.1, 95.1),
        "Skywork-Reward-Gemma-2-27B": (95.8, 91.4, 91.9, 96.1, 93.8),
        "Skywork-Critic-Llama-3.1-70B": (96.6, 87.9, 93.1, 95.5, 93.3),
        "SFR-LLaMa-3.1-70B-Judge": (96.9, 84.8, 91.6, 97.6, 92.7),
        "Skywork-Reward-Llama-3.1-8B": (95.8, 87.3, 90.8, 96.2, 92.5),
        "Nemotron-4-340B-Reward": (95.8, 87.1, 91.5, 93.6, 92.0),
        "Self-taught-evaluator-70B": (96.9, 85.1, 89.6, 88.4, 90.0),
        "Gemini-1.5-pro": (92.3, 80.6, 87.9, 92.0, 88.2),
        "DeepSeek-PairRM-27B": (95.5, 86.8, 52.3, 92.0, 87.1),
        "GPT-4o-0806": (96.1, 76.1, 86.6, 88.1, 86.7),
        "DeepSeek-GRM-27B": (94.1, 78.3, 88.0, 83.8, 86.0),
        "Claude-3.5-sonnet": (96.4, 74.0, 81.6, 84.7, 84.2),
        "Llama3.1-405B-Instruct": (97.2, 74.6, 77.6, 87.1, 84.1),
        "Llama3.1-70B-Instruct": (97.2, 70.2, 82.8, 86.0, 84.0),
        "DeepSeek-GRM-16B": (90.8, 74.3, 84.7, 81.8, 82.9),
        "CLoud-Llama3": (97.0, 58.0, 84.0, 92.0, 82.8),
        "JudgeLRM": (92.9, 56.4, 78.2, 73.6, 75.2),
    },
)

_RM_BENCH_SCORES = ("chat", "math", "code", "safety", "easy", "normal", "hard", "total")

# Table 7. JudgeLRM's "normal" is printed as 766.2.
RM_BENCH_ROWS = _rows(
    _RM_BENCH_SCORES,
    {
        "RM-R1-Qwen-Instruct-7B": (66.6, 67.0, 54.6, 92.6, 79.2, 71.7, 59.7, 70.2),
        "RM-R1-DeepSeek-Distilled-Qwen-7B": (64.0, 83.9, 56.2, 85.3, 75.9, 73.1, 68.1, 72.4),
        "RM-R1-Qwen-Instruct-14B": (75.6, 75.4, 60.6, 93.6, 82.6, 77.5, 68.8, 76.1),
        "RM-R1-Qwen-Instruct-32B": (75.3, 80.2, 66.8, 93.9, 86.3, 80.5, 70.4, 79.1),
        "RM-R1-DeepSeek-Distilled-Qwen-14B": (71.8, 90.5, 69.5, 94.1, 86.2, 83.6, 74.4, 81.5),
        "RM-R1-DeepSeek-Distilled-Qwen-32B": (74.2, 91.8, 74.1, 95.4, 89.5, 85.4, 76.7, 83.9),
        "Gemini-1.5-pro": (71.6, 73.9, 63.7, 91.3, 83.1, 77.6, 64.7, 75.2),
        "GPT-4o-0806": (67.2, 67.5, 63.6, 91.7, 83.4, 75.6, 58.7, 72.5),
        "Skywork-Critic-Llama-3.1-70B": (71.4, 64.6, 56.8, 94.8, 85.6, 73.7, 56.5, 71.9),
        "Self-taught-evaluator-70B": (73.4, 65.7, 56.3, 90.4, 80.2, 74.5, 59.7, 71.5),
        "INF-ORM-Llama3.1-70B": (66.3, 65.6, 56.8, 94.8, 91.8, 76.1, 44.8, 70.9),
        "Skywork-Reward-Llama-3.1-8B": (69.5, 60.6, 54.5, 95.7, 89.0, 74.7, 46.6, 70.1),
        "Nemotron-4-340B-Reward": (71.2, 59.8, 59.4, 87.5, 81.0, 71.4, 56.1, 69.5),
        "Llama3.1-70B-Instruct": (64.3, 67.3, 47.5, 83.0, 74.7, 67.8, 54.1, 65.5),
        "JudgeLRM": (59.9, 59.9, 51.9, 87.3, 73.2, 66.2, 54.8, 64.7),
        "Claude-3.5-sonnet": (62.5, 62.6, 54.4, 64.4, 73.8, 63.4, 45.9, 61.0),
    },
)

RM_BENCH_CORRECTED_ROWS = _rows(
    _RM_BENCH_SCORES,
    {
        "RM-R1-Qwen-Instruct-32B": (74.94, 80.24, 65.79, 93.6, 88.18, 80.51, 67.23, 78.64),
        "RM-R1-DeepSeek-Distilled-Qwen-32B": (
            73.21,
            91.83,
            73.34,
            95.01,
            91.12,
            85.45,
            73.48,
            83.35,
        ),
    },
)
"""What the two models with published outcomes score when all three files are read.

Instruct-32B is computed from the outcome of each judgement in RM-R1's published logs, as
the AgentLens project (VincentJiang06/AgentLens) repackages them. DeepSeek-Distilled-32B is quoted
from a unit test of AgentLens, and not recomputed. The smaller models have no published logs.
"""

# Table 8, which has fractions.
RMB_ROWS = _rows(
    (
        "bon_helpfulness",
        "pairwise_helpfulness",
        "bon_harmlessness",
        "pairwise_harmlessness",
        "overall",
    ),
    {
        "RM-R1-DeepSeek-Distilled-Qwen-7B": (45.1, 65.8, 42.9, 66.4, 55.1),
        "RM-R1-Qwen-Instruct-7B": (54.3, 74.0, 60.8, 76.5, 66.4),
        "RM-R1-DeepSeek-Distilled-Qwen-14B": (59.3, 76.5, 61.3, 76.9, 68.5),
        "RM-R1-Qwen-Instruct-14B": (59.4, 77.6, 62.0, 77.8, 69.2),
        "RM-R1-DeepSeek-Distilled-Qwen-32B": (62.0, 78.2, 61.8, 77.1, 69.8),
        "RM-R1-Qwen-Instruct-32B": (63.6, 79.1, 68.2, 80.9, 73.0),
        "GPT-4o-2024-05-13": (63.9, 81.5, 68.2, 81.4, 73.8),
        "Qwen2-72B": (64.5, 81.0, 64.9, 78.9, 72.3),
        "Starling-34B": (60.4, 77.4, 67.4, 79.5, 71.2),
        "Claude-3.5-sonnet": (70.5, 83.8, 51.8, 76.4, 70.6),
        "INF-ORM-Llama3.1-70B": (65.0, 79.8, 60.7, 76.7, 70.5),
        "Mistral-Large-2407": (67.8, 81.7, 58.3, 72.5, 70.1),
        "Skywork-Reward-Llama-3.1-8B": (62.7, 78.1, 60.3, 75.9, 69.3),
        "DeepSeek-GRM-27B": (62.3, 80.5, 57.0, 76.1, 69.0),
        "Llama3.1-70B-Instruct": (64.8, 81.1, 55.8, 73.9, 68.9),
        "DeepSeek-GRM-27B-RFT": (59.2, 80.1, 54.8, 76.5, 67.0),
        "Self-taught-evaluator-70B": (61.6, 78.6, 54.6, 73.3, 67.0),
        "JudgeLRM": (36.3, 69.9, 36.3, 67.4, 53.1),
    },
)
