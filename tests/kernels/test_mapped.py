"""Rows of a mapped file: the same as the array's, without its pages."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ossia.errors import KernelError
from ossia.kernels.interface import Dims, Part
from ossia.kernels.mapped import FileRows, MappedFile, mapped_at
from ossia.kernels.native import NativeKernels

ROWS, COLS = 200_000, 64  # 26 MB, beside which other pages of the process are few
DIMS = Dims(
    hidden_size=COLS,
    intermediate_size=64,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    num_experts=4,
    experts_per_token=1,
    vocab_size=ROWS,
    rms_norm_eps=1e-5,
    swiglu_limit=7.0,
    swiglu_alpha=1.702,
)
HEAD = 40  # bytes before the table


@pytest.fixture
def table(tmp_path: Path) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((ROWS, COLS)).astype(ml_dtypes.bfloat16)
    (tmp_path / "f").write_bytes(b"x" * HEAD + values.tobytes())
    with (tmp_path / "f").open("rb") as file:
        mapped = MappedFile(file)
    return np.frombuffer(mapped, np.uint8)[HEAD:].view(ml_dtypes.bfloat16).reshape(ROWS, COLS)


def path_of(table: np.ndarray) -> str:
    found = mapped_at(table)
    assert found is not None and isinstance(found[0], MappedFile)
    return found[0].path


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024


def embed(kernels: NativeKernels, weight: np.ndarray, ids: np.ndarray) -> np.ndarray:
    made = kernels.prepare(Part.EMBEDDING, {"weight": weight}, DIMS)
    return kernels.to_host(kernels.embed(ids, made))


def test_where_an_array_lies(table: np.ndarray) -> None:
    found = mapped_at(table[7:])
    assert found is not None and found[1] == HEAD + 7 * COLS * 2
    assert mapped_at(np.zeros(3)) is None
    assert FileRows.of(np.zeros((3, 2), np.float32)) is None
    assert FileRows.of(table[:, ::2]) is None


def test_rows_from_the_file_are_those_of_the_array(table: np.ndarray) -> None:
    kernels = NativeKernels(num_threads=1)
    ids = np.array([0, ROWS - 1, 5, 5, 1234], np.int32)
    wanted = np.array(table)[ids].astype(np.float32)
    os.unlink(path_of(table))
    assert np.array_equal(embed(kernels, table, ids), wanted)
    assert np.array_equal(embed(kernels, np.array(table), ids), wanted)
    assert embed(kernels, table, ids[:0]).shape == (0, COLS)


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages in /proc")
def test_tokens_bring_no_pages_of_the_map(table: np.ndarray) -> None:
    kernels = NativeKernels(num_threads=1)
    made = kernels.prepare(Part.EMBEDDING, {"weight": table}, DIMS)
    ids = np.arange(0, ROWS, 16, dtype=np.int32)  # some in every page
    kernels.to_host(kernels.embed(ids[:1], made))
    before = resident_file_bytes()
    kernels.to_host(kernels.embed(ids, made))
    assert resident_file_bytes() - before < table.nbytes / 4
    assert np.array(table).any()  # through the map all of them come: the count above can tell
    assert resident_file_bytes() - before > table.nbytes / 2


@pytest.mark.parametrize("bad", [-1, ROWS])
def test_tokens_that_are_none(table: np.ndarray, bad: int) -> None:
    kernels = NativeKernels(num_threads=1)
    for weight in (table, np.array(table)):
        with pytest.raises(KernelError, match=rf"token ids from 0 to {ROWS - 1}, got {bad}$"):
            embed(kernels, weight, np.array([3, bad], np.int32))
        with pytest.raises(KernelError, match="embed"):
            embed(kernels, weight, np.array([3], np.int64))


def test_a_file_that_became_shorter(table: np.ndarray) -> None:
    """Through the map that would kill the process."""
    kernels = NativeKernels(num_threads=1)
    made = kernels.prepare(Part.EMBEDDING, {"weight": table}, DIMS)
    path = path_of(table)
    os.truncate(path, HEAD + 1000)
    with pytest.raises(KernelError, match=rf"\[embed\] {path} was truncated .* fetch it again"):
        kernels.embed(np.array([ROWS - 1], np.int32), made)
