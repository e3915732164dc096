"""The package as users meet it: its public names, how fast it starts, how large it is installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ossia

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, **options
    )


def best_seconds(*command: str, tries: int = 5) -> float:
    """The least of several runs: what the command costs when the machine is not busy."""
    seconds = []
    for _ in range(tries):
        begin = time.perf_counter()
        assert run(*command).returncode == 0
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in ossia.__all__:
        value = getattr(ossia, name)
        assert value.__doc__ or not isinstance(value, type), f"ossia.{name} has no docstring"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ossia.nothing_of_the_kind
    assert set(ossia.__all__) <= set(dir(ossia))


def test_import_is_fast() -> None:
    assert best_seconds(sys.executable, "-c", "import ossia; ossia.load") < 0.5


def test_help_is_fast() -> None:
    assert best_seconds(sys.executable, "-m", "ossia.cli.main", "--help") < 0.3


def test_core_runs_without_torch_and_hub() -> None:
    """Nothing of the extras is imported on the way to an answer."""
    code = (
        "import sys, ossia\n"
        "with ossia.load('nano') as llm:\n"
        "    llm.chat('What is 2 + 2?', sampling=ossia.SamplingParams(max_tokens=4))\n"
        "print([m for m in ('torch', 'huggingface_hub', 'transformers') if m in sys.modules])"
    )
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_core_install_is_small_and_works(tmp_path: Path) -> None:
    """`pip install .` in a fresh environment: no torch, under 130 MB, and nano answers."""
    assert run(sys.executable, "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / "bin" / "python"
    install = run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT)
    assert install.returncode == 0, install.stderr
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    tools = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel")
    size = sum(
        file.stat().st_size
        for package in site.iterdir()
        if package.name.split("-")[0] not in tools
        for file in ([package] if package.is_file() else package.rglob("*"))
        if file.is_file()
    )
    print(f"core install: {size / 1e6:.1f} MB with byte code")
    assert size < 130e6
    assert not (site / "torch").exists()
    answer = run(tmp_path / "venv" / "bin" / "ossia", "chat", "What is 2 + 3?", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["finish"] == "stop"


def test_every_module_says_what_it_is() -> None:
    for path in (ROOT / "src" / "ossia").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        if name.startswith(("ossia.train", "ossia.kernels.torch")):
            continue  # these import torch, which is the point of the other tests here
        module = importlib.import_module(name.removesuffix(".__init__"))
        assert (module.__doc__ or "").strip(), f"{name} has no docstring"
