"""What a tiny judge of the toy task reads and writes: its prompt, tokens and dimensions.

Every phrase that prompts and traces repeat, and the words of the task, are one token each; digits,
letters and all other text are bytes. So a sequence is short, and spent on what differs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmr1_jax.judging import JudgePrompt
from rmr1_jax.judging.prompts import PAIR_SINGLE_TURN
from rmr1_jax.toy_task.problems import KINDS, WORDS
from rmr1_jax.toy_task.toy_traces import PHRASES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOY_PROMPT = JudgePrompt(
    "chain_of_rubrics",
    "Judge which Chatbot is better: type, then solution or rubric, then eval, then answer.",
)

MAX_POSITION = 512
SPECIAL = END, SYSTEM, USER, ASSISTANT = "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def toy_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer, with its chat template. Decoding gives back every text exactly."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _phrases()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITION,
    )


def write_tokenizer(directory: str | Path) -> None:
    """Write the tokenizer and its chat template as a Hugging Face directory."""
    toy_tokenizer().save_pretrained(str(directory))


def tiny_model_config(vocab_size: int) -> dict[str, Any]:
    """A `config.json` for the tiny judge: a Qwen3 small enough to learn on a CPU in minutes."""
    tokenizer = toy_tokenizer()
    return {
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": MAX_POSITION,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _phrases() -> list[str]:
    """Fixed pieces of the published user message, of questions, responses and traces; words."""
    pieces = [TOY_PROMPT.system or ""]
    rest = PAIR_SINGLE_TURN
    for place in ("{question}", "{answer_a}", "{answer_b}"):
        before, _, rest = rest.partition(place)
        pieces.append(before)
    pieces.append(rest)
    for kind in KINDS:
        pieces += kind.phrases()
    pieces += PHRASES
    pieces += [
        form for word in WORDS for form in (word, " " + word, word.upper(), " " + word.upper())
    ]
    return list(dict.fromkeys(piece for piece in pieces if len(piece) > 1))
