"""Chips that are not here, for tests that compile for them."""

from typing import Any

import pytest

from rmr1_jax.errors import UserError
from rmr1_jax.planning.chips import devices_of, parse_topology


def devices_or_skip(topology: str) -> list[Any]:
    """Devices to compile for. Skips the test if their compiler is not installed."""
    try:
        return devices_of(parse_topology(topology))
    except UserError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise
