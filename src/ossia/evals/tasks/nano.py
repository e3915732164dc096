"""The suite `nano`: what the tiny built-in model is taught, on what its lessons never held."""

from __future__ import annotations

from ossia.evals.task import Suite
from ossia.evals.tasks import (
    nano_arithmetic,
    nano_conduct,
    nano_hierarchy,
    nano_python,
    nano_shape,
    nano_tools,
)

SUITE = Suite(
    "nano",
    "What nano is taught, on pairs of numbers and names that its training never saw and in words "
    "that its lessons do not use.",
    (
        *nano_arithmetic.TASKS,
        *nano_tools.TASKS,
        *nano_python.TASKS,
        *nano_shape.TASKS,
        *nano_conduct.TASKS,
        *nano_hierarchy.TASKS,
    ),
)
