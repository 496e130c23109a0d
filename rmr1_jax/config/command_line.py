"""How a command line and a recipe become one configuration.

A recipe is a Python file that sets `config`, or defines `get_config()` or `get_config(name)`; its
values are the defaults that `--field=value` overrides. `--config` takes its path, or the name alone
of one in `configs/`; `:name` behind it chooses among its models.
"""

import inspect
import runpy
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from rmr1_jax.config.checks import nearest, one_of
from rmr1_jax.config.grpo_config import GrpoConfig
from rmr1_jax.config.plan_config import PlanConfig
from rmr1_jax.config.sft_config import SftConfig
from rmr1_jax.config.stage_table import STAGES
from rmr1_jax.errors import UserError

EXAMPLES = {
    "prepare": "--config=prepare_rm_r1 --output=data/rm_r1",
    "synthesize": "--config=synthesize_rm_r1 --input=data/rm_r1 --output=data/rm_r1_traces",
    "sft": "--config=sft_rm_r1:qwen-7b --model=MODEL_DIR --data.train=data/rm_r1_traces",
    "grpo": "--config=grpo_rm_r1:qwen-7b --model=runs/sft_qwen-7b --data.train=data/rm_r1",
    "judge": "--model=MODEL_DIR --input=pairs.jsonl --output=verdicts.jsonl",
    "evaluate": "--model=MODEL_DIR --output=results/mine --limit=100",
    "convert": "--input=runs/grpo_qwen-7b --output=HF_DIR --to=huggingface",
    "plan": "--config=sft_rm_r1:qwen-7b --topology=v5e-16",
    "demo": "--workdir=demo",
}
ALSO = (
    "Also: --config=RECIPE, a recipe by name (see `rmr1 recipes`) or a Python file; --debug, "
    "to see tracebacks; and the options for several processes, which `rmr1 --help` lists."
)


def parse_config(
    stage: str,
    arguments: Sequence[str],
    default: Callable[[str, Collection[str]], Any] = lambda stage, given: STAGES[stage](),
) -> Any:
    """The configuration of a stage from `[--config=RECIPE] [--field=value ...]`.

    `--help` prints the stage's fields and exits. Raises UserError, and SystemExit (after saying
    what is wrong) on a value of the wrong type.

    Args:
      default: what the fields are parsed over where no recipe is named: a function of the stage and
        the names of the options given.
    """
    kind = STAGES[stage]
    recipe, overrides = take_option(arguments, "config")
    if kind is PlanConfig:
        return _plan_config(recipe, overrides)
    over = load_recipe(recipe, stage) if recipe else default(stage, _names(overrides))
    return _parse(stage, kind, overrides, over)


def _names(arguments: Sequence[str]) -> set[str]:
    """The options that are given, as fields."""
    given = (word for word in arguments if word.startswith("--"))
    return {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in given}


def _parse(stage: str, kind: type, overrides: Sequence[str], default: Any) -> Any:
    arguments = _checked_overrides(kind, overrides)
    what, example = " ".join((kind.__doc__ or "").split()), f"rmr1 {stage} {EXAMPLES[stage]}"
    with _explained(kind):
        return tyro.cli(
            kind,
            args=arguments,
            default=default,
            description=f"{what}\n\nExample: {example}\n\n{ALSO}",
            prog=f"rmr1 {stage}",
            use_underscores=True,
        )


@contextmanager
def _explained(kind: type) -> Iterator[None]:
    """Meanwhile tyro finds the docstring of each option in one line: it would keep line breaks."""
    owners = {owner for one in _sections(kind) for owner in one.__mro__ if is_dataclass(owner)}
    before = {owner: dict(owner.__annotations__) for owner in owners}
    for owner, hints in before.items():
        for field in docstring_parser.parse_from_object(owner).params:
            hint, text = hints.get(field.arg_name), " ".join((field.description or "").split())
            if hint is not None and text and not is_dataclass(hint):
                help = tyro.conf.arg(help=text)
                owner.__annotations__[field.arg_name] = Annotated[hint, help]
    try:
        yield
    finally:
        for owner, hints in before.items():
            owner.__annotations__.update(hints)


def _sections(kind: type) -> Iterator[type]:
    """A dataclass and those of its fields that are dataclasses."""
    yield kind
    for hint in get_type_hints(kind).values():
        if is_dataclass(hint):
            yield from _sections(cast(type, hint))


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
            known = [name for kind in (SftConfig, GrpoConfig) for name, _ in option_types(kind)]
            name = others[0].removeprefix("--").partition("=")[0].replace("-", "_")
            guess = "" if name in known else nearest(name, [*names, *known], "--")
            raise UserError(
                f"{others[0]} is no option of a plan{guess} (--help lists them); an option of a "
                "recipe needs --config=RECIPE"
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
        recipe=changed,
        name=values["name"],
        architecture=values["architecture"],
    )
    return cast(PlanConfig, _parse("plan", PlanConfig, own, default))


def recipe_folder() -> Path:
    """Where the recipes lie: beside the package in a checkout, else in the `share` of whatever
    prefix the package is installed below (an environment, `--user`, `--target`)."""
    here = Path(__file__).resolve().parents
    places = [here[2] / "configs", *(folder / "share" / "rmr1_jax" for folder in here)]
    return next((place for place in places if place.is_dir()), places[0])


def recipes() -> dict[str, list[str]]:
    """What `--config` can name, by the first line of the file that holds them."""
    found: dict[str, list[str]] = {}
    for file in sorted(recipe_folder().glob("*.py")):
        names = runpy.run_path(str(file))
        title = " ".join((names["__doc__"] or "").partition("\n\n")[0].split())
        models = names.get("MODELS")
        found[title] = [f"{file.stem}:{model}" for model in models] if models else [file.stem]
    return found


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


def _run_recipe(recipe: str, kind: type) -> dict[str, Any]:
    """All that a recipe defines, `config` among it; `kind` is what it should be, for hints."""
    name, _, model = recipe.partition(":")
    path = Path(name)
    if not path.is_file() and "/" not in name:
        path = recipe_folder() / f"{name.removesuffix('.py')}.py"
    if not path.is_file():
        known = [file.stem for file in recipe_folder().glob("*.py")]
        raise UserError(
            f"--config={recipe}: there is no such file or recipe{nearest(name, known)} "
            "(`rmr1 recipes` lists them)"
        )
    try:
        names = runpy.run_path(str(path))
        config = _config_of(names, recipe, model)
    except UserError:
        raise
    except Exception as error:
        line = _line_of(error, str(path))
        hint = _unknown_field_hint(error, kind)
        message = f"--config={recipe}{line}: {type(error).__name__}: {error}{hint}"
        raise UserError(message) from error
    architecture = getattr(names.get("MODELS", {}).get(model), "architecture", "")
    title = "_".join(part for part in (path.stem, model) if part)
    return {"architecture": architecture, **names, "config": config, "name": title}


def _config_of(names: dict[str, Any], recipe: str, model: str) -> Any:
    """What a recipe sets; of a table of models, that of one."""
    get_config = names.get("get_config")
    if get_config is None or not inspect.signature(get_config).parameters:
        if model:
            raise UserError(f"--config={recipe}: this recipe has no table to choose {model} from")
        return get_config() if get_config else names.get("config")
    models = names["MODELS"]
    if model not in models:
        what = f"there is no {model}{nearest(model, models)}" if model else "name a model"
        one = recipe.partition(":")[0]
        raise UserError(
            f"--config={recipe}: {what} (there are {', '.join(f'{one}:{each}' for each in models)})"
        )
    return get_config(model)


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


def _checked_overrides(kind: type, arguments: Sequence[str]) -> list[str]:
    """Name unknown options with their nearest field, and let flags be written `--swap=true`."""
    types = dict(option_types(kind))
    off = {_negated(name): name for name, hint in types.items() if hint is bool}
    checked = []
    for position, argument in enumerate(arguments):
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
        if get_origin(types.get(name)) is Literal:
            if not equals:
                value = next(iter(arguments[position + 1 : position + 2]), "--")
            if equals or not value.startswith("--"):
                one_of(name, value, get_args(types[name]))
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
    trace = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in trace if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def _unknown_field_hint(error: Exception, kind: type) -> str:
    if not isinstance(error, TypeError) or "unexpected keyword argument" not in str(error):
        return ""
    return nearest(str(error).split("'")[1], [field.name for field in fields(kind)])
