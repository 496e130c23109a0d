"""Every configuration dataclass, and how a command line and a recipe become one.

A recipe is a Python file that sets `config`, or defines `get_config()`; its values are the defaults
that `--field=value` overrides.
"""

import difflib
import math
import runpy
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from rmr1_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
ALSO = "Also: --config=RECIPE, a Python file with values for these; --debug, to see tracebacks."


@dataclass(frozen=True)
class JudgeConfig:
    """Judge pairs of responses: a file of pairs (--input, --output), or one pair on the terminal
    (--question, --response_a, --response_b)."""

    model: str = ""
    """The judge: a Hugging Face directory, a converted (Orbax) directory or a GGUF file."""
    input: str = ""
    """The pairs, one JSON object a line: question, response_a, response_b and, if known, label."""
    output: str = ""
    """Where the verdicts go, one JSON object a line. The same command again goes on in it."""
    question: str = ""
    """One pair instead of a file: what was asked."""
    response_a: str = ""
    """One pair instead of a file: the first response."""
    response_b: str = ""
    """One pair instead of a file: the second response."""
    prompt: str = ""
    """chain_of_rubrics, reasoning, or a file that holds the prompt. Empty: the model's own."""
    max_new_tokens: int = 2048
    """The longest trace, in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 samples."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability. 1 is off."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens. 0 is off."""
    min_p: float = 0.0
    """Leave out tokens below this part of the likeliest one's probability. 0 is off."""
    seed: int = 0
    """The same seed gives the same traces."""
    votes: int = 1
    """Traces a pair; the verdict is their majority. Needs a temperature above 0."""
    swap: bool = False
    """Judge both orders of each pair; only a verdict that both orders give counts."""
    slots: int | None = None
    """Traces written at the same time. None: chosen for the machine."""
    max_context: int | None = None
    """Longest prompt and trace together, in tokens. None: what the model was made for."""
    mesh: str = ""
    """Devices by axis, for example data=2,tensor=4. Empty: chosen for the machine."""
    dtype: str = ""
    """float32 or bfloat16. Empty: chosen for the machine."""

    def check(self) -> None:
        """Refuse what cannot work, before a model is read. Raises UserError."""
        if not self.model:
            raise UserError(
                "--stage=judge needs --model=PATH: a Hugging Face directory, "
                "a converted directory or a GGUF file"
            )
        if not Path(self.model).exists():
            raise UserError(
                f"--model={self.model}: there is no such directory or file; "
                "name a checkpoint on this machine"
            )
        pair = {name: getattr(self, name) for name in ("question", "response_a", "response_b")}
        if any(pair.values()):
            if self.input or self.output:
                raise UserError(
                    "--question, --response_a and --response_b judge one pair on the terminal; "
                    "leave out --input and --output, or put the pair in the input file"
                )
            for name, value in pair.items():
                if not value.strip():
                    raise UserError(f"one pair on the terminal also needs --{name}=TEXT")
        else:
            if not self.input:
                raise UserError(
                    "nothing to judge: give --input=PAIRS.jsonl --output=VERDICTS.jsonl, "
                    "or --question, --response_a and --response_b"
                )
            if not self.output:
                raise UserError("--input needs --output=VERDICTS.jsonl: where the verdicts go")
            if Path(self.input).resolve() == Path(self.output).resolve():
                raise UserError(f"--input and --output are the same file, {self.input}")
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("temperature", self.temperature, 0)
        _at_least("top_k", self.top_k, 0)
        _at_least("votes", self.votes, 1)
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p={self.top_p} must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"--min_p={self.min_p} must be from 0 to 1")
        if self.votes > 1 and self.temperature == 0:
            raise UserError(
                f"--votes={self.votes} needs --temperature above 0: "
                "without it all traces of a pair are the same"
            )
        if self.slots is not None:
            _at_least("slots", self.slots, 1)
        if self.max_context is not None:
            _at_least("max_context", self.max_context, 1)
        if self.dtype not in ("", *DTYPES):
            raise UserError(f"--dtype={self.dtype} is unknown; choose {' or '.join(DTYPES)}")


@dataclass(frozen=True)
class ConvertConfig:
    """Convert a checkpoint: Hugging Face or GGUF to Orbax, Orbax or GGUF to Hugging Face."""

    input: str = ""
    """A Hugging Face directory, a GGUF file, or an Orbax directory made by this stage."""
    output: str = ""
    """The directory to write; it must not exist or be empty."""
    to: str = "orbax"
    """orbax or huggingface."""
    dtype: str = ""
    """Stored type of the weights: float32, bfloat16 or float16. Empty: as in the input."""
    max_shard_size: str = "5GB"
    """Largest safetensors file written, for example 5GB or 500MB."""
    tokenizer: str = ""
    """A Hugging Face directory to take the tokenizer from. Empty: the input's own."""

    def check(self) -> None:
        """Refuse what cannot work, before a file is opened. Raises UserError."""
        if not self.input or not self.output:
            missing = "input" if not self.input else "output"
            raise UserError(f"--stage=convert needs --{missing}=PATH")
        if self.to not in ("orbax", "huggingface"):
            raise UserError(f"--to={self.to} is unknown; choose orbax or huggingface")
        if self.dtype not in ("", *DTYPES, "float16"):
            raise UserError(
                f"--dtype={self.dtype} is unknown; choose {', '.join(DTYPES)} or float16"
            )


@dataclass(frozen=True)
class DemoConfig:
    """Convert a small model and judge six pairs with it; a CPU will do."""

    workdir: str = "demo"
    """Where the converted model and the verdicts go."""
    max_new_tokens: int = 128
    """The longest trace, in tokens."""

    def check(self) -> None:
        """Refuse what cannot work, before anything is converted. Raises UserError."""
        _at_least("max_new_tokens", self.max_new_tokens, 1)


STAGES: dict[str, type] = {"judge": JudgeConfig, "convert": ConvertConfig, "demo": DemoConfig}


def parse_config(stage: str, arguments: Sequence[str]) -> Any:
    """The configuration of a stage from `[--config=RECIPE] [--field=value ...]`.

    `--help` prints the stage's fields and exits. Raises UserError, and SystemExit (after saying
    what is wrong) on a value of the wrong type.
    """
    kind = STAGES[stage]
    recipe, overrides = take_option(arguments, "config")
    default = kind() if recipe is None else load_recipe(recipe, stage)
    return tyro.cli(
        kind,
        args=_checked_overrides(kind, overrides),
        default=default,
        description=f"{' '.join((kind.__doc__ or '').split())} {ALSO}",
        prog=f"python -m rmr1_jax.main --stage={stage}",
        use_underscores=True,
    )


def load_recipe(path: str, stage: str) -> Any:
    """Run a recipe and take its configuration, which must be the stage's. Raises UserError."""
    kind = STAGES[stage]
    if not Path(path).is_file():
        raise UserError(f"--config={path}: there is no such file; name a Python recipe")
    try:
        names = runpy.run_path(path)
        config = names["get_config"]() if "get_config" in names else names.get("config")
    except UserError:
        raise
    except Exception as error:
        line = _line_of(error, path)
        hint = _unknown_field_hint(error, kind)
        raise UserError(f"--config={path}{line}: {type(error).__name__}: {error}{hint}") from error
    if not isinstance(config, kind):
        raise UserError(
            f"--config={path}: --stage={stage} needs `config = {kind.__name__}(...)` "
            f"or get_config() in it, and found {type(config).__name__}"
        )
    return config


def take_option(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Remove `--name=value` or `--name value` wherever it stands; the last one counts."""
    value, rest = None, []
    iterator = iter(arguments)
    for argument in iterator:
        if argument == f"--{name}":
            value = next(iterator, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--{name} needs a value: --{name}=...")
        elif argument.startswith(f"--{name}="):
            value = argument.removeprefix(f"--{name}=")
        else:
            rest.append(argument)
    return value, rest


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'; did you mean X?' for the closest known name, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{match[0]}?" if match else ""


def _checked_overrides(kind: type, arguments: Sequence[str]) -> list[str]:
    """Name unknown options with their nearest field, and let flags be written `--swap=true`."""
    names = [field.name for field in fields(kind)]
    switches = [name for name, hint in get_type_hints(kind).items() if hint is bool]
    checked = []
    for argument in arguments:
        if not argument.startswith("--"):
            checked.append(argument)
            continue
        option, equals, value = argument.removeprefix("--").partition("=")
        name = option.replace("-", "_")
        if name not in [*names, *(f"no_{switch}" for switch in switches), "help"]:
            raise UserError(
                f"--{option} is no option of this stage{nearest(name, names, '--')} "
                "(--help lists them)"
            )
        if name in switches and equals:
            if value.lower() not in ("true", "false"):
                raise UserError(f"--{name}={value} must be true or false")
            argument = f"--{name}" if value.lower() == "true" else f"--no_{name}"
        checked.append(argument)
    return checked


def _line_of(error: Exception, path: str) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    return f", line {lines[-1]}" if lines else ""


def _unknown_field_hint(error: Exception, kind: type) -> str:
    if not isinstance(error, TypeError) or "unexpected keyword argument" not in str(error):
        return ""
    return nearest(str(error).split("'")[1], [field.name for field in fields(kind)])


def _at_least(name: str, value: float, least: int) -> None:
    if value < least or not math.isfinite(value):
        raise UserError(f"--{name}={value} must be at least {least}")
