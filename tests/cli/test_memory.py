"""`--memory`, `--context` and what is said where a model does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ossia
from engine.sparse import sparse_checkpoint
from engine.test_config import GPT_OSS_20B
from ossia.cli.main import run
from ossia.engine.config import EngineConfig
from ossia.engine.machine_memory import MachineMemory
from ossia.errors import UnsupportedError, UsageError
from ossia.kernels.cores import usable_cores
from ossia.loading import parse_size
from support import trained_tokenizer_json, write_tokenizer_json


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Sets how much memory this machine is said to have."""
    real = MachineMemory.describe()

    def of(gigabytes: float, available: float | None = None) -> None:
        total = int(gigabytes * 1e9)
        given = replace(real, total=total, limit=None, available=int((available or 64) * 1e9))
        monkeypatch.setattr(MachineMemory, "describe", lambda root=None: given)

    return of


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt-oss-20b, with a vocabulary, without its bytes."""
    folder = sparse_checkpoint(tmp_path_factory.mktemp("m") / "20b", GPT_OSS_20B)
    write_tokenizer_json(folder, trained_tokenizer_json())
    return folder


def test_the_plan_of_20b_before_it_is_loaded(large: Path, machine, capsys) -> None:
    machine(32)
    assert run(["chat", "--memory", "--model", str(large), "--context", "8192"]) == 0
    out = capsys.readouterr().out
    for line in ("10.2 GB  experts in MXFP4", "1.3 GB  dense tensors", "keys and values of 8,192"):
        assert line in out
    assert "of 32.0 GB that this process may use" in out


def test_as_json(large: Path, machine, capsys) -> None:
    machine(32)
    options = ["--memory", "--json", "--model", str(large), "--context", "8192"]
    assert run(["generate", *options]) == 0  # no prompt is needed
    report = json.loads(capsys.readouterr().out)
    assert report["total"] == sum(item["bytes"] for item in report["items"])
    assert report["fits"] and report["usable"] == 32 * 10**9
    assert report["context"] == 8192


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(large: Path, machine, capsys):
    machine(8)
    assert run(["chat", "--memory", "--model", str(large)]) == 1
    out = capsys.readouterr().out
    assert "experts in MXFP4" in out and "this process may use 8.0 GB" in out
    assert run(["chat", "hello", "--model", str(large)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: This model needs") and error.count("\n") == 1
    with pytest.raises(UnsupportedError, match=r"What helps: .*--expert-memory auto"):
        ossia.load(large)


def test_a_shortened_context_is_said(large: Path, machine, capsys) -> None:
    machine(14)
    assert run(["chat", "--memory", "--model", str(large)]) == 0
    assert "the context is" in capsys.readouterr().out


def test_little_free_memory_is_said(machine, capsys) -> None:
    machine(32, available=0.01)
    assert run(["generate", "--prompt", "x", "--max-tokens", "1"]) == 0
    assert "10.0 MB are free now" in capsys.readouterr().err


def test_the_context_of_a_run(machine, capsys) -> None:
    prompt = ["generate", "--tokens", ",".join(["5"] * 60), "--max-tokens", "1"]
    assert run([*prompt, "--context", "64"]) == 0
    assert run([*prompt, "--context", "32"]) == 1
    assert "32" in capsys.readouterr().err
    assert run([*prompt, "--context", "99999"]) == 2
    assert "at most 2048" in capsys.readouterr().err


def test_in_python(machine) -> None:
    with pytest.raises(UsageError, match="at most 2048"):
        ossia.load("nano", engine=EngineConfig(max_model_len=4096))
    machine(0.05)
    with pytest.raises(UnsupportedError, match=r"50\.0 MB"):
        ossia.load("nano")


def test_paging_where_a_model_does_not_fit(large: Path, machine, capsys) -> None:
    machine(8)
    assert run(["chat", "--memory", "--model", str(large), "--expert-memory", "auto"]) == 0
    assert "experts in MXFP4, those used last" in capsys.readouterr().out
    machine(32)
    assert run(["chat", "--memory", "--model", str(large), "--expert-memory", "3GB"]) == 0
    assert "3.0 GB  experts in MXFP4, those used last" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["some", "", "-1GB", "1K", "9" * 400, True, 1.5, []], ids=str)
def test_sizes_that_are_none(capsys, size) -> None:
    with pytest.raises(UsageError, match=r"such as 6GB or 500MB, or auto; got ") as caught:
        parse_size(size)
    assert str(caught.value).endswith(f"; got {size!r}.")
    if isinstance(size, str):
        assert run(["chat", "hi", f"--expert-memory={size}"]) == 2
        assert f"got {size!r}." in capsys.readouterr().err


def test_a_hot_set_too_small_for_the_model(capsys) -> None:
    for command in (["chat", "hi"], ["bench"], ["generate", "--prompt", "2", "--memory"]):
        assert run([*command, "--expert-memory", "1"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "(--expert-memory) must be at least 0.4 MB for this model" in line


@pytest.mark.parametrize("threads", ["0", "-1", "1000"])
def test_threads_that_this_machine_does_not_have(capsys, threads) -> None:
    assert run(["generate", "--prompt", "2", f"--threads={threads}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"whole number from 1 to {usable_cores()}" in line and f"got {threads}." in line


@pytest.mark.parametrize("size", ["0", "99999999999GB"])
def test_sizes_that_no_model_can_have(capsys, size) -> None:
    assert run(["chat", "hi", "--expert-memory", size]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "whole number of bytes, from 1 to" in line


def test_a_paged_model_answers_as_one_in_memory(capsys) -> None:
    generate = ["generate", "--prompt", "What is 2 + 3?", "--max-tokens", "5", "--json"]
    assert run(generate) == 0
    in_memory = json.loads(capsys.readouterr().out)
    assert run([*generate, "--expert-memory", "0.5MB"]) == 0
    assert json.loads(capsys.readouterr().out) == in_memory
