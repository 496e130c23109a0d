"""How a command line and a recipe become one configuration.

A recipe is a Python file that sets `config`, or defines `get_config()`; its values are the defaults
that `--field=value` overrides.
"""

import difflib
import runpy
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import tyro

from rmr1_jax.config.grpo_config import GrpoConfig
from rmr1_jax.config.plan_config import PlanConfig
from rmr1_jax.config.sft_config import SftConfig
from rmr1_jax.config.stage_table import STAGES
from rmr1_jax.errors import UserError

ALSO = (
    "Also: --config=RECIPE, a Python file with values for these; --debug, to see tracebacks; "
    "--distributed and what else `python -m rmr1_jax.main --help` says of several processes."
)


def parse_config(stage: str, arguments: Sequence[str]) -> Any:
    """The configuration of a stage from `[--config=RECIPE] [--field=value ...]`.

    `--help` prints the stage's fields and exits. Raises UserError, and SystemExit (after saying
    what is wrong) on a value of the wrong type.
    """
    kind = STAGES[stage]
    recipe, overrides = take_option(arguments, "config")
    if kind is PlanConfig:
        return _plan_config(recipe, overrides)
    default = kind() if recipe is None else load_recipe(recipe, stage)
    return _parse(stage, kind, overrides, default)


def _parse(stage: str, kind: type, overrides: Sequence[str], default: Any) -> Any:
    return tyro.cli(
        kind,
        args=_checked_overrides(kind, overrides),
        default=default,
        description=f"{' '.join((kind.__doc__ or '').split())} {ALSO}",
        prog=f"python -m rmr1_jax.main --stage={stage}",
        use_underscores=True,
    )


def _plan_config(path: str | None, arguments: Sequence[str]) -> PlanConfig:
    """A plan of another stage's recipe, whose options may stand beside the plan's own."""
    own: list[str] = []
    others: list[str] = []
    names = {name for name, _ in option_types(PlanConfig)} | {"help", "no_search"}
    takes_value = None
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        if argument.startswith("--"):
            takes_value = own if name in names else others
        (own if takes_value is None else takes_value).append(argument)
    if path is None:
        plan: PlanConfig = _parse("plan", PlanConfig, own, PlanConfig())
        if others:
            raise UserError(
                f"{others[0]} is no option of a plan (--help lists them); an option of a recipe "
                "needs --config=RECIPE"
            )
        return plan
    values = _run_recipe(path, SftConfig)
    recipe = values["config"]
    stages = {kind: stage for stage, kind in STAGES.items() if kind in (SftConfig, GrpoConfig)}
    if type(recipe) not in stages:
        raise UserError(
            f"--config={path}: a plan is made of a training recipe, with `config = SftConfig(...)` "
            f"or GrpoConfig(...); this one has {type(recipe).__name__}"
        )
    changed = _parse(stages[type(recipe)], type(recipe), others, recipe)
    default = PlanConfig(
        recipe=changed, name=Path(path).stem, architecture=values.get("architecture", "")
    )
    return cast(PlanConfig, _parse("plan", PlanConfig, own, default))


def load_recipe(path: str, stage: str) -> Any:
    """Run a recipe and take its configuration, which must be the stage's. Raises UserError."""
    kind = STAGES[stage]
    config = _run_recipe(path, kind)["config"]
    if not isinstance(config, kind):
        raise UserError(
            f"--config={path}: --stage={stage} needs `config = {kind.__name__}(...)` "
            f"or get_config() in it, and found {type(config).__name__}"
        )
    return config


def _run_recipe(path: str, kind: type) -> dict[str, Any]:
    """All that a recipe defines, `config` among it; `kind` is what it should be, for hints."""
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
    return {**names, "config": config}


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
    types = dict(option_types(kind))
    off = {_negated(name): name for name, hint in types.items() if hint is bool}
    checked = []
    for argument in arguments:
        if not argument.startswith("--"):
            checked.append(argument)
            continue
        option, equals, value = argument.removeprefix("--").partition("=")
        name = option.replace("-", "_")
        if name not in {*types, *off, "help"}:
            raise UserError(
                f"--{option} is no option of this stage{nearest(name, types, '--')} "
                "(--help lists them)"
            )
        if types.get(name) is bool and equals:
            if value.lower() not in ("true", "false"):
                raise UserError(f"--{name}={value} must be true or false")
            argument = f"--{name if value.lower() == 'true' else _negated(name)}"
        checked.append(argument)
    return checked


def option_types(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(option, type) of every field that a command line can set; `section.field` where nested."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if tyro.conf.Suppress in getattr(hint, "__metadata__", ()):
            continue  # a recipe's only
        if is_dataclass(hint):
            yield from option_types(cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _negated(option: str) -> str:
    section, dot, name = option.rpartition(".")
    return f"{section}{dot}no_{name}"


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
