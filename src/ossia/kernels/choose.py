"""A name from the command line → a set of kernels, and why it is that one. The only place that
knows which sets there are; imports none of them before it is chosen.
"""

from __future__ import annotations

from importlib.util import find_spec

from ossia.errors import MissingDependencyError, UnsupportedError, UsageError
from ossia.kernels.interface import Kernels

KERNEL_SETS = {
    "reference": "numpy, float32; the specification, for models below 1 GB",
    "torch": "PyTorch on the CPU, float32, bfloat16 for models above 1 GB; needs pip install "
    "'ossia[train]'",
}
"""By name: what it is and what it needs."""

LARGEST_REFERENCE_BYTES = 10**9
"""A checkpoint above this would take the `reference` kernels seconds per token."""


def is_available(name: str) -> bool:
    """Can this set be loaded here? Found out without importing anything heavy."""
    return name == "reference" or find_spec(name) is not None


def choose_kernels(name: str = "auto", *, model_bytes: int = 0) -> tuple[Kernels, str]:
    """The kernels called `name`, and the reason in a few words.

    `auto` takes `reference`, the only set that every installation has, or for a checkpoint too
    large for it `torch`, where that is installed. `model_bytes` is the size of the checkpoint, 0
    when it does not matter. Raises UsageError for an unknown name, MissingDependencyError where a
    package is missing.
    """
    reason = "asked for by name"
    if name == "auto" and model_bytes > LARGEST_REFERENCE_BYTES and is_available("torch"):
        name, reason = "torch", "reference would take seconds per token of a model this large"
    elif name == "auto":
        name, reason = "reference", "the only set that needs nothing beyond the core install"
    match name:
        case "reference":
            from ossia.kernels.reference import ReferenceKernels

            return ReferenceKernels(), reason
        case "torch":
            if not is_available("torch"):
                raise MissingDependencyError(
                    "The torch kernels need PyTorch, which is not installed: pip install "
                    "'ossia[train]'."
                )
            from ossia.kernels.torch import TorchKernels

            # float32 would double the memory of a large model for a precision that the published
            # implementations do not have either.
            large = model_bytes > LARGEST_REFERENCE_BYTES
            return TorchKernels.in_bfloat16() if large else TorchKernels(), reason
        case _:
            known = ", ".join(("auto", *KERNEL_SETS))
            raise UsageError(f"--kernels takes one of {known}; got {name!r}.")


def refuse_large(total_bytes: int, *, allow_slow: bool) -> None:
    """Raises UnsupportedError for a checkpoint that `reference` would run too slowly."""
    if total_bytes > LARGEST_REFERENCE_BYTES and not allow_slow:
        raise UnsupportedError(
            f"This model holds {total_bytes / 1e9:.1f} GB, and the reference kernels are the "
            "specification, not made for speed: they would take seconds per token. Use --kernels "
            "torch (pip install 'ossia[train]'), or run it all the same with --allow-slow."
        )
