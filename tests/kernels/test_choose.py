"""Choosing kernels by name, and what is said where that cannot be."""

import builtins
import importlib.util
import subprocess
import sys

import pytest

from ossia.errors import MissingDependencyError, UnsupportedError, UsageError
from ossia.kernels import choose
from ossia.kernels.choose import KERNEL_SETS, choose_kernels, is_available, refuse_large
from ossia.kernels.cores import usable_cores


@pytest.fixture
def without(monkeypatch):
    """Makes modules look as if they were not installed."""

    def remove(*names):
        found = importlib.util.find_spec
        monkeypatch.setattr(
            choose, "find_spec", lambda name: None if name in names else found(name)
        )

    return remove


NATIVE = "ossia.kernels._native"


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_every_set_goes_by_its_name(name):
    kernels, reason = choose_kernels(name)
    assert kernels.name == name
    assert kernels.cache_itemsize == (2 if name == "native" else 4)  # bfloat16, float32
    assert reason


def test_auto_takes_native_at_any_size():
    for size in (0, 10**9, 10**11):
        kernels, reason = choose_kernels(model_bytes=size)
        assert kernels.name == "native"
        assert "built for this machine" in reason


def test_without_the_extension_auto_needs_nothing_but_the_core(without):
    without(NATIVE, "torch")
    for size in (0, 10**10):
        kernels, reason = choose_kernels(model_bytes=size)
        assert kernels.name == "reference"
        assert "native kernels were not built" in reason


def test_without_the_extension_auto_takes_torch_for_what_reference_would_refuse(without):
    without(NATIVE)
    assert choose_kernels(model_bytes=10**9)[0].name == "reference"
    large = choose_kernels(model_bytes=10**9 + 1)[0]
    assert (large.name, large.cache_itemsize) == ("torch", 2)  # bfloat16
    assert choose_kernels("reference", model_bytes=10**10)[0].name == "reference"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="auto, native, reference, torch; got 'cuda'"):
        choose_kernels("cuda")


def test_missing_torch_names_the_extra(without):
    without("torch")
    assert not is_available("torch")
    assert is_available("reference")
    with pytest.raises(MissingDependencyError, match=r"pip install 'ossia\[train\]'"):
        choose_kernels("torch")


def test_a_missing_extension_names_the_compiler(without):
    without(NATIVE)
    assert not is_available("native")
    with pytest.raises(MissingDependencyError, match=r"install a C\+\+20 compiler.*install ossia"):
        choose_kernels("native")


def test_an_extension_that_cannot_be_loaded_is_said_to_be_so(monkeypatch):
    """As one built on another system: it must not pass for a missing one, nor for a slow model."""
    real = builtins.__import__

    def broken(name, *rest):
        if name == "ossia.kernels.native":
            raise ImportError("libstdc++.so.6: version `GLIBCXX_9' not found")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    for name in ("native", "auto"):
        with pytest.raises(MissingDependencyError, match=r"GLIBCXX_9.*--kernels reference"):
            choose_kernels(name)


def test_large_models_are_refused_with_the_mend(without):
    refuse_large(10**9, allow_slow=False)
    refuse_large(13_761_264_768, allow_slow=True)
    with pytest.raises(UnsupportedError, match=r"13\.8 GB.*--kernels native.*--allow-slow"):
        refuse_large(13_761_264_768, allow_slow=False)
    without(NATIVE)
    with pytest.raises(UnsupportedError, match=r"compiler.*--kernels torch.*--allow-slow"):
        refuse_large(13_761_264_768, allow_slow=False)


def test_settings_of_native():
    kernels, _ = choose_kernels(
        "native", threads=1, exact=True, dense_dtype="bf16", instruction_set="scalar"
    )
    assert (kernels.num_threads, kernels.exact, kernels.instruction_set) == (1, True, "scalar")
    assert kernels.cache_itemsize == 4
    kernels, _ = choose_kernels("native")
    assert (kernels.num_threads, kernels.exact) == (usable_cores(), False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": 10_000}, f"from 1 to {usable_cores()}, the cores.*got 10000"),
        ({"threads": 0}, "from 1 to"),
        ({"dense_dtype": "int4"}, "int8 or bf16; got 'int4'"),
        ({"dense_dtype": ""}, "int8 or bf16; got ''"),
        ({"instruction_set": ""}, "instruction sets auto, scalar.*got ''"),
        ({"instruction_set": "amx"}, "instruction sets auto, scalar.*got 'amx'"),
        ({"exact": True, "dense_dtype": "int8"}, "--exact.*cannot be int8"),
    ],
)
def test_settings_that_this_machine_cannot_have(settings, words):
    with pytest.raises(UsageError, match=words) as raised:
        choose_kernels("native", **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["reference", "torch"])
@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"threads": 1}, "--threads"),
        ({"exact": True}, "--exact"),
        ({"dense_dtype": "int8"}, "--dense-dtype"),
        ({"instruction_set": "auto"}, "--instruction-set"),
    ],
)
def test_settings_that_another_set_does_not_have_are_refused(name, settings, option):
    words = f"{option} is a setting of the native kernels.*{name} kernels.*--kernels native"
    with pytest.raises(UsageError, match=words):
        choose_kernels(name, **settings)


def test_settings_are_refused_too_where_auto_comes_to_reference(without):
    without(NATIVE)
    with pytest.raises(UsageError, match="--threads"):
        choose_kernels(threads=1)


def test_the_core_never_imports_torch():
    code = (
        "import sys, ossia.kernels.choose as c; c.choose_kernels(); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
