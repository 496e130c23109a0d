"""The command line: `rmr1 STAGE [--config=RECIPE] [--field=value]`.

`python -m rmr1_jax.main --stage=STAGE ...` and `python -m rmr1_jax STAGE ...` do the same.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from rmr1_jax import __version__, pipeline
from rmr1_jax.config import STAGES, nearest, parse_config, recipes, take_option
from rmr1_jax.distributed.rendezvous import HELP as DISTRIBUTED_HELP
from rmr1_jax.distributed.rendezvous import (
    OPTIONS,
    Distributed,
    exit_status,
    is_one_of_several,
    join,
    leave,
)
from rmr1_jax.errors import LOST, UserError
from rmr1_jax.pipeline import embedded_default

CACHE_VARIABLE = "RMR1_JAX_CACHE"
# Stages whose work several processes share.
SHARED = ("sft", "grpo", "judge", "evaluate")

ADVICE = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some of your quota and run the same command again",
    errno.EACCES: "choose another path, or get the permission",
    errno.EPERM: "choose another path, or get the permission",
    errno.EROFS: "choose a path on a disk that can be written",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit status: the stage's own, that of a UserError, 130 for ^C.

    One of several processes that fails ends at once.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        try:
            return run_stage(arguments, debug)
        finally:
            sys.stdout.flush()  # here, where a broken pipe is still caught
    except UserError as error:
        return _fail(str(error), error.status, debug)
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(1)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = ADVICE.get(error.errno or 0, "")
        message = f"{where}{error.strerror or error}{'; ' + advice if advice else ''}"
        return _fail(message, 2, debug)
    except KeyboardInterrupt as error:
        message = f"interrupted{'; ' + str(error) if str(error) else ''}"
        return _fail(message, 130, debug)
    except Exception as error:
        if exit_status(error) == LOST:
            line = str(error).partition("\n")[0]
            message = f"a device failed, or another process is gone ({line}); rerun to resume"
            return _fail(message, LOST, debug=True)
        if is_one_of_several():
            traceback.print_exc()
            leave(1)
        raise


def run_stage(arguments: Sequence[str], debug: bool) -> int:
    """Do what a command line asks for. Returns the exit status; raises UserError."""
    stage, rest = take_stage(arguments)
    if stage is None:
        if "--version" in rest:
            print(f"rmr1_jax {__version__}")
        elif not rest or "--help" in rest or "-h" in rest:
            print(help_text())
        else:
            raise UserError(f"{rest[0]}: name a stage first: rmr1 {{{','.join(STAGES)}}}")
        return 0 if rest else 2
    if stage == "recipes":
        print_recipes()
        return 0
    if stage not in STAGES:
        raise UserError(
            f"{stage} is not a stage{nearest(stage, [*STAGES, 'recipes'])} "
            f"(there are {', '.join(STAGES)})"
        )
    asked, rest = take_distributed(rest)
    config = parse_config(stage, rest, embedded_default)
    if not debug:
        quiet_libraries()
    keep_compiled_programs()
    join(asked, stage, stage in SHARED)
    return pipeline.run(config)


def take_stage(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The stage, which is the first word or `--stage=`, and the other arguments."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    return take_option(arguments, "stage")


def print_recipes() -> None:
    """What `--config` can name, below what it is for."""
    for title, names in recipes().items():
        print("\n  ".join([title, *names]))


def take_distributed(arguments: Sequence[str]) -> tuple[Distributed, list[str]]:
    """What is said of several processes, and the other arguments."""
    said, rest = Distributed(), list(arguments)
    for option, field in zip(OPTIONS, fields(Distributed), strict=True):
        value, rest = take_option(rest, option)
        if value is not None:
            said = replace(said, **{field.name: value})
    return said, rest


def help_text() -> str:
    width = max(map(len, STAGES))
    stages = "\n".join(
        f"  {name:{width}}  {' '.join((kind.__doc__ or '').split())}"
        for name, kind in STAGES.items()
    )
    return f"""\
usage: rmr1 STAGE [--config=RECIPE] [--field=value ...] [--debug]
       python -m rmr1_jax.main --stage=STAGE [--config=RECIPE] [--field=value ...] [--debug]

{stages}
  {"recipes":{width}}  List the recipes that --config can name.

  --config=RECIPE  a recipe by name, or a Python file with `config = ...Config(...)`
  --field=value    an option of the stage; `rmr1 STAGE --help` lists them
  --debug          show the traceback of an error, and what the libraries log
  --version        print the version

Several processes, one per host or per GPU, can share {", ".join(SHARED)}:

{DISTRIBUTED_HELP}

Compiled programs are kept in ~/.cache/rmr1_jax/xla, or where {CACHE_VARIABLE} says. If it is set
but empty, they are not kept."""


def quiet_libraries() -> None:
    """Keep harmless notices off the screen: absent TPU metadata, cuPTI, absent torch."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for name in ("jax", "jax._src.xla_bridge", "absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_compiled_programs() -> None:
    """Turn on jax's persistent compilation cache, so that only the first start compiles."""
    directory = os.environ.get(CACHE_VARIABLE)
    if directory == "" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = Path(directory) if directory else Path("~/.cache/rmr1_jax/xla").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"{path}: compiled programs cannot be kept here ({error.strerror}); "
            f"set {CACHE_VARIABLE} to another directory",
            file=sys.stderr,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
    # Jax keeps only what took a second to compile; a start is made of many shorter ones too.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    leave(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
