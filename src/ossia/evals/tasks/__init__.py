"""The suites that `ossia eval` knows, by name. A suite is imported when it is asked for."""

from __future__ import annotations

import importlib

from ossia.errors import UsageError
from ossia.evals.task import Suite

_HOMES = {"nano": "ossia.evals.tasks.nano"}

SUITES = tuple(_HOMES)


def find_suite(name: str) -> Suite:
    """Raises UsageError for a name that is none."""
    home = _HOMES.get(name)
    if home is None:
        raise UsageError(f"SUITE must be one of {', '.join(SUITES)}; got {name!r}.")
    return importlib.import_module(home).SUITE
