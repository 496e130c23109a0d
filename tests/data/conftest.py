"""A small fast tokenizer with a chat template, made on the spot, and conversations for it."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rmr1_jax.data.example import Example
from rmr1_jax.judging import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Which of the two answers is better, and why? <answer>[[A]]</answer>",
    "The first one is right and the second one is not. <answer>[[B]]</answer>",
    "assistant system user rubric solution evaluation",
] * 5


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A function: chat template -> a byte-level BPE tokenizer of some 400 tokens."""

    def make(template: str | None = CHATML) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
        fast.chat_template = template
        return fast

    return make


@pytest.fixture(scope="session")
def chatml(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def traced() -> list[Example]:
    """Thirty examples with traces of many lengths; every seventh has no verdict."""
    return [
        Example(
            id=f"pair {number}",
            source="numbers",
            label="A",
            prompt=(Message("system", "Judge."), Message("user", "is it? " * (number % 5 + 1))),
            trace="why " * (number * 7 % 11) + ("<answer>[[A]]</answer>" if number % 7 else "no"),
        )
        for number in range(30)
    ]
