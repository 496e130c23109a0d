"""What a run was started with is recorded beside its results; other settings may not resume it."""

import dataclasses
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_write

CONFIG = "config.json"
METRICS = "metrics.jsonl"


def resume_or_refuse(
    file: Path,
    settings: Mapping[str, Any],
    *,
    may_change: Collection[str] = (),
    may_join: Collection[str] = (),
    whole: bool = False,
    started: bool = True,
    prefix: str = "",
    option: str = "--output",
) -> dict[str, Any] | None:
    """What `file` records of a run that these settings may resume; None if there is none yet.

    Settings are compared one by one; those in sections are called `section.name`, and those in the
    section "settings" by their name alone.

    Args:
      file: a JSON object that `write_settings` wrote.
      settings: of this run, as anything that JSON can hold. What is recorded but not given here is
        not compared, unless `whole`.
      may_change: settings, or whole sections, that are not compared.
      may_join: sections whose settings are only compared if they are recorded already.
      started: whether anything was made with the recorded settings. If not, others may take their
        place: the result is None.
      prefix: before each name in messages ("--").
      option: the one that names another place, for messages.

    Raises:
      UserError: settings differ (each is shown, there and now), or the file cannot be read.
    """
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({error}), so it is not known how the results beside it were made. "
            f"Fix it, or choose another {option}."
        ) from error
    recorded: dict[str, Any] = found if isinstance(found, dict) else {}
    there, now = flat(recorded), flat(settings)
    changed = [
        f"  {prefix}{name.removeprefix('settings.')}: {_shown(there, name)} there, "
        f"{_shown(now, name)} now"
        for name in sorted(there.keys() | now.keys() if whole else now.keys())
        if (name not in there or name not in now or there[name] != now[name])
        and not _is_in(name, may_change)
        and (name in there or not _is_in(name, may_join))
    ]
    if not changed:
        return recorded
    if not started:
        return None
    raise UserError(
        f"{file.parent} holds results of other settings ({file.name}):\n"
        + "\n".join(changed)
        + f"\nGive the same options, or choose another {option}."
    )


def write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Record settings for `resume_or_refuse`, whole or not at all."""
    atomic_write(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def open_workdir(
    workdir: Path, config: Any, *, may_change: Collection[str], made_again: Collection[str] = ()
) -> bool:
    """Create the directory of a training run, or enter that of the same run. Returns whether to
    resume it.

    One process of a run does this; all get its answer, or all are refused.

    Args:
      workdir: may exist and be empty, or hold a run.
      config: a dataclass; kept as `config.json`.
      may_change: fields (or sections, "validation") that may differ when a run is resumed, since
        they do not change what it learns.
      made_again: what a run makes before its first step. If there was no step yet, another
        configuration may take the place of the first, and these are removed.

    Raises:
      UserError: it holds another run, whose configuration differs (shown), or other files.
    """
    # It imports jax, for which --help and the checks of options should not wait.
    from rmr1_jax.distributed.hosts import assert_shared_directory, broadcast_from_primary

    if re.match(r"[a-z][a-z0-9+.-]+:/", str(workdir)):
        raise UserError(
            f"--workdir={workdir}: a run needs a directory; mount the bucket (gcsfuse) and name "
            "the place where it is mounted"
        )
    resumes = broadcast_from_primary(
        lambda: _open(workdir, dataclasses.asdict(config), may_change, made_again), about=workdir
    )
    assert_shared_directory(workdir)
    return bool(resumes)


def _open(
    workdir: Path, config: dict[str, Any], may_change: Collection[str], made_again: Collection[str]
) -> bool:
    file = workdir / CONFIG
    if not file.exists() and workdir.exists() and any(workdir.iterdir()):
        raise UserError(
            f"{workdir} is not empty and holds no run (no {CONFIG}). Name another --workdir."
        )
    there = file.exists()
    resumed = resume_or_refuse(
        file,
        config,
        may_change=may_change,
        whole=True,
        started=(workdir / METRICS).exists(),
        prefix="--",
        option="--workdir",
    )
    if there and resumed is None:
        for name in made_again:
            _remove(workdir / name)
    write_settings(file, config)
    return resumed is not None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as `section.field`, as on a command line; values as JSON gives them back."""

    def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(leaves(json.loads(json.dumps(tree)), ""))


def _is_in(name: str, sections: Collection[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "absent"
