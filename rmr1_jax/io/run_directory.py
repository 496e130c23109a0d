"""A run is its directory: it remembers what it was started with, and refuses to become another."""

import dataclasses
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rmr1_jax.distributed.hosts import assert_shared_directory, broadcast_from_primary
from rmr1_jax.errors import UserError
from rmr1_jax.io.atomic_write import atomic_write

CONFIG = "config.json"
METRICS = "metrics.jsonl"


def open_workdir(
    workdir: Path, config: Any, *, may_change: Collection[str], made_again: Collection[str] = ()
) -> bool:
    """Make the directory of a run, or enter that of the same run. Returns whether it goes on.

    One process of a run does it, and all get its answer, or are refused.

    Args:
      workdir: may exist and be empty, or hold a run.
      config: a dataclass; kept as `config.json`.
      may_change: fields (or sections, "validation") that may differ when a run goes on, since they
        do not change what it learns.
      made_again: what a run makes before its first step. Where there was none yet, another
        configuration may take the place of the first, and these are removed.

    Raises:
      UserError: it holds another run, whose configuration differs (shown), or other files.
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(workdir)):
        raise UserError(
            f"--workdir={workdir}: a run needs a directory; mount the bucket (gcsfuse) and name "
            "the place where it is mounted"
        )
    goes_on = broadcast_from_primary(
        lambda: _open(workdir, config, may_change, made_again), about=workdir
    )
    assert_shared_directory(workdir)
    return bool(goes_on)


def _open(
    workdir: Path, config: Any, may_change: Collection[str], made_again: Collection[str]
) -> bool:
    new = flat(dataclasses.asdict(config))
    file = workdir / CONFIG
    if not file.exists():
        if workdir.exists() and any(workdir.iterdir()):
            raise UserError(
                f"{workdir} is not empty and holds no run (no {CONFIG}). Name another --workdir."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(file, config)
        return False
    try:
        old = flat(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}). Mend it, or name another --workdir."
        ) from error
    changed = [
        f"  --{name}: {_shown(old, name)} there, {_shown(new, name)} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not any(name == field or name.startswith(f"{field}.") for field in may_change)
    ]
    if changed and not (workdir / METRICS).exists():
        for name in made_again:
            _remove(workdir / name)
        write_config(file, config)
        return False
    if changed:
        raise UserError(
            f"{workdir} holds a run with another configuration:\n" + "\n".join(changed) + "\n"
            "Name another --workdir, or give the same options."
        )
    write_config(file, config)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_config(file: Path, config: Any) -> None:
    text = json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False)
    atomic_write(file, text + "\n")


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as `section.field`, as on a command line."""
    return dict(_flat(json.loads(json.dumps(tree)), ""))


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "absent"
