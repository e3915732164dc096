"""A name from the command line → a set of kernels, and why it is that one. The only place that
knows which sets there are; imports none of them before it is chosen.
"""

from __future__ import annotations

from importlib.util import find_spec

from ossia.errors import MissingDependencyError, UnsupportedError, UsageError
from ossia.kernels.interface import Kernels

KERNEL_SETS = {
    "native": "C++ with SIMD, int8 activations; the default; built by pip where a C++ compiler is",
    "reference": "numpy, float32; the specification, for models below 1 GB",
    "torch": "PyTorch on the CPU, float32, bfloat16 for models above 1 GB; needs pip install "
    "'ossia[train]'",
}
"""By name: what it is and what it needs."""

LARGEST_REFERENCE_BYTES = 10**9
"""A checkpoint above this would take the `reference` kernels seconds per token."""

_MODULES = {"native": "ossia.kernels._native", "torch": "torch"}
_BUILD_NATIVE = (
    "install a C++20 compiler (g++ or clang++) and install ossia again, which then builds them"
)
_SETTINGS = {
    "threads": "--threads",
    "exact": "--exact",
    "dense_dtype": "--dense-dtype",
    "instruction_set": "--instruction-set",
    "expert_bytes": "--expert-memory",
}
_INSTEAD = {
    "reference": "they compute everything in float32, with as many threads as numpy takes "
    "(OMP_NUM_THREADS)",
    "torch": "they compute in float32, or bfloat16 above 1 GB, with as many threads as PyTorch "
    "takes (OMP_NUM_THREADS)",
}


def is_available(name: str) -> bool:
    """Can this set be loaded here? Found out without importing anything heavy."""
    return name not in _MODULES or find_spec(_MODULES[name]) is not None


def choose_kernels(
    name: str = "auto",
    *,
    model_bytes: int = 0,
    threads: int | None = None,
    exact: bool = False,
    dense_dtype: str | None = None,
    instruction_set: str | None = None,
    expert_bytes: int | None = None,
) -> tuple[Kernels, str]:
    """The kernels called `name`, and the reason in a few words.

    `auto` takes `native` where its extension was built; else `reference`, or for a checkpoint too
    large for it `torch`, where that is installed. `model_bytes` is the size of the checkpoint, 0
    when it does not matter. The other settings are those of `NativeKernels`, None = its defaults.

    Raises UsageError for an unknown name, a setting that the set does not have or that this machine
    cannot have; MissingDependencyError where a package or the extension is missing.
    """
    reason = "asked for by name"
    if name == "auto":
        name, reason = _best(model_bytes)
    if name not in KERNEL_SETS:
        known = ", ".join(("auto", *KERNEL_SETS))
        raise UsageError(f"--kernels takes one of {known}; got {name!r}.")
    if name == "native":
        return _native(threads, exact, dense_dtype, instruction_set, expert_bytes), reason
    _refuse_settings(
        name,
        threads=threads,
        exact=exact or None,
        dense_dtype=dense_dtype,
        instruction_set=instruction_set,
        expert_bytes=expert_bytes,
    )
    if name == "reference":
        from ossia.kernels.reference import ReferenceKernels

        return ReferenceKernels(), reason
    if not is_available("torch"):
        raise MissingDependencyError(
            "The torch kernels need PyTorch, which is not installed: pip install 'ossia[train]'."
        )
    from ossia.kernels.torch import TorchKernels

    # float32 would double the memory of a large model for a precision that the published
    # implementations do not have either.
    large = model_bytes > LARGEST_REFERENCE_BYTES
    return TorchKernels.in_bfloat16() if large else TorchKernels(), reason


def refuse_large(total_bytes: int, *, allow_slow: bool) -> None:
    """Raises UnsupportedError for a checkpoint that `reference` would run too slowly."""
    if total_bytes <= LARGEST_REFERENCE_BYTES or allow_slow:
        return
    if is_available("native"):
        mend = "Use --kernels native"
    else:
        mend = (
            f"For the native ones, {_BUILD_NATIVE}; or use --kernels torch (pip install "
            "'ossia[train]')"
        )
    raise UnsupportedError(
        f"This model holds {total_bytes / 1e9:.1f} GB, and the reference kernels are the "
        "specification, not made for speed: they would take seconds per token. "
        f"{mend}, or run it all the same with --allow-slow."
    )


def _best(model_bytes: int) -> tuple[str, str]:
    """What `auto` comes to, and why."""
    if is_available("native"):
        return "native", "built for this machine, the fastest at any size"
    missing = "the native kernels were not built when ossia was installed"
    if model_bytes > LARGEST_REFERENCE_BYTES and is_available("torch"):
        return "torch", f"{missing}; reference would take seconds per token of a model this large"
    return "reference", f"{missing}; this set needs nothing beyond the core install"


def _native(
    threads: int | None,
    exact: bool,
    dense_dtype: str | None,
    instruction_set: str | None,
    expert_bytes: int | None,
) -> Kernels:
    if not is_available("native"):
        raise MissingDependencyError(
            f"The native kernels were not built when ossia was installed: {_BUILD_NATIVE}."
        )
    try:
        from ossia.kernels.native import DENSE_DTYPES, NativeKernels
    except ImportError as error:
        raise MissingDependencyError(
            f"The native kernels are there but cannot be loaded ({error}): they were built for "
            "another system. Install ossia again on this machine, or use "
            "--kernels reference."
        ) from error
    if exact and dense_dtype == "int8":
        raise UsageError(
            "--exact quantises nothing, so dense tensors cannot be int8; leave out one of --exact "
            "and --dense-dtype int8."
        )
    return NativeKernels(
        num_threads=threads,
        exact=exact,
        dense_dtype=DENSE_DTYPES[0] if dense_dtype is None else dense_dtype,
        instruction_set="auto" if instruction_set is None else instruction_set,
        expert_bytes=expert_bytes,
    )


def _refuse_settings(name: str, **settings: object) -> None:
    for key, value in settings.items():
        if value is not None:
            raise UsageError(
                f"{_SETTINGS[key]} is a setting of the native kernels. The {name} kernels have no "
                f"such thing: {_INSTEAD[name]}. Leave it out, or use --kernels native."
            )
