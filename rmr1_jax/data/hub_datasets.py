"""Rows of data sets on the Hugging Face hub and of TFDS."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rmr1_jax.errors import UserError

Rows = Callable[[], Iterator[tuple[int, object]]]


def hub_rows(
    source: str, name: str, split: str, *, select: Callable[[Any], Any] | None = None
) -> Rows:
    """Rows of `owner/name` or `owner/name:config`, memory-mapped from the cache of `datasets`.

    Args:
      source: what an error calls it.
      select: applied to the loaded set, for example to shuffle it.

    Raises UserError where it cannot be loaded.
    """
    import datasets

    place, _, config = name.partition(":")
    try:
        data = datasets.load_dataset(place, config or None, split=split)
    except Exception as error:  # each part of the library has its own
        raise UserError(
            f"source {source}: {place} cannot be loaded from the Hugging Face hub "
            f"({_first_line(error)}). Check the name, the split ({split}) and the network, "
            "or download it and give the path"
        ) from error
    data = data if select is None else select(data)
    return lambda: enumerate(data, start=1)


def tfds_rows(source: str, name: str, split: str) -> Rows:
    """Rows of a TFDS data set by name, or of the directory that holds a prepared one.

    Random access through `tfds.data_source`, so without TensorFlow. Raises UserError.
    """
    import tensorflow_datasets as tfds

    try:
        if Path(name).is_dir():
            data = tfds.builder_from_directory(name).as_data_source(split)
        else:
            data = tfds.data_source(name, split=split)
    except Exception as error:
        raise UserError(
            f"source {source}: TFDS cannot open it ({_first_line(error)}). Check the name and the "
            f"split ({split}); tfds.data_source needs a set prepared as array_record"
        ) from error
    return lambda: ((number, _plain(data[number - 1])) for number in range(1, len(data) + 1))


def _plain(value: Any) -> object:
    """A TFDS value as JSON would hold it; a sequence of messages comes as a dict of columns."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    plain = {name: _plain(item) for name, item in value.items()}
    if plain.keys() in ({"role", "content"}, {"from", "value"}):
        columns = list(plain.values())
        if all(isinstance(column, list) for column in columns):
            return [dict(zip(plain, row, strict=True)) for row in zip(*columns, strict=True)]
    return plain


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
