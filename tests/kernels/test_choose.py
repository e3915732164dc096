"""Choosing kernels by name, and what is said where that cannot be."""

import subprocess
import sys

import pytest

from ossia.errors import MissingDependencyError, UnsupportedError, UsageError
from ossia.kernels import choose
from ossia.kernels.choose import KERNEL_SETS, choose_kernels, is_available, refuse_large


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_every_set_goes_by_its_name(name):
    kernels, reason = choose_kernels(name)
    assert kernels.name == name
    assert kernels.cache_itemsize == 4  # float32, unless asked otherwise
    assert reason


def test_auto_needs_nothing_but_the_core():
    kernels, reason = choose_kernels()
    assert kernels.name == "reference"
    assert reason


def test_auto_takes_torch_for_what_reference_would_refuse(monkeypatch):
    assert choose_kernels(model_bytes=10**9)[0].name == "reference"
    large = choose_kernels(model_bytes=10**9 + 1)[0]
    assert (large.name, large.cache_itemsize) == ("torch", 2)  # bfloat16
    assert choose_kernels("reference", model_bytes=10**10)[0].name == "reference"
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    assert choose_kernels(model_bytes=10**10)[0].name == "reference"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="auto, reference, torch; got 'cuda'"):
        choose_kernels("cuda")


def test_missing_torch_names_the_extra(monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    assert not is_available("torch")
    assert is_available("reference")
    with pytest.raises(MissingDependencyError, match=r"pip install 'ossia\[train\]'"):
        choose_kernels("torch")


def test_large_models_are_refused_with_the_mend():
    refuse_large(10**9, allow_slow=False)
    with pytest.raises(UnsupportedError, match=r"13\.8 GB.*--kernels torch.*--allow-slow"):
        refuse_large(13_761_264_768, allow_slow=False)
    refuse_large(13_761_264_768, allow_slow=True)


def test_the_core_never_imports_torch():
    code = (
        "import sys, ossia.kernels.choose as c; c.choose_kernels(); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
