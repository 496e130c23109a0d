"""Prompts of exact widths, of real text in the model's chat template.

Of random ids most models make nothing but end tokens, and two engines that both write those agree
whatever else they do.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rmr1_jax.models.checkpoint import load_tokenizer
from rmr1_jax.models.huggingface import has_tokenizer

MakePrompts = Callable[[Sequence[int], int], list[list[int]]]  # (widths, seed) -> token ids

TEXT = Path(__file__).resolve().parent.parent / "LICENSE"
MARK = "@@"


def prompt_maker(directory: Path, vocabulary: int) -> MakePrompts:
    """Prompts that start anywhere in a text and wrap around at its end.

    A checkpoint without a tokenizer gets random ids.
    """
    before: list[int] = []
    after: list[int] = []
    if has_tokenizer(directory):
        tokenizer, _ = load_tokenizer(directory)

        def ids(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        text = np.array(ids(TEXT.read_text(encoding="utf-8")))
        if tokenizer.chat_template:
            chat = str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": MARK}], tokenize=False, add_generation_prompt=True
                )
            )
            start, _, end = chat.rpartition(MARK)
            before, after = ids(start), ids(end)
    else:
        text = np.random.default_rng(0).integers(0, vocabulary, 4096)

    def make(widths: Sequence[int], seed: int) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        prompts = []
        for width in widths:
            body = np.roll(text, -int(rng.integers(len(text))))
            inside = np.resize(body, max(width - len(before) - len(after), 0)).tolist()
            prompts.append([*before, *inside, *after][-width:])
        return prompts

    return make
