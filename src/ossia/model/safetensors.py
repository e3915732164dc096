"""A reader of safetensors files: their header, checked to the last byte, and read-only arrays that
are views of the memory-mapped file.

The header is JSON that a stranger wrote, so nothing of it is believed before it is checked against
the file. Tensors need not be aligned: they start wherever the header ends. A file that is truncated
*while* it is mapped kills the process with SIGBUS when a lost page is touched; no reader can turn
that into an error, but `use_mmap=False` reads into memory instead.

What the format's own library refuses is refused here too.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ossia.errors import CheckpointError
from ossia.kernels.mapped import MappedFile
from ossia.model.json_fields import MAX_JSON_BYTES, parse_object, shown

HEADER_LENGTH = struct.Struct("<Q")
"""What a file begins with; the header follows."""
_MAX_DIMS = 32
_MAX_SIZE = 2**62  # of a dimension, a product of them, an offset
_FETCH = "fetch the file again, or remove it"


@dataclass(frozen=True)
class _Dtype:
    bits: int
    numpy: Any = None
    """None where numpy has no such type: the header can be inspected, the tensor not be read."""


_DTYPES = {
    "BOOL": _Dtype(8, np.bool_),
    "F4": _Dtype(4),
    "F6_E2M3": _Dtype(6),
    "F6_E3M2": _Dtype(6),
    "U8": _Dtype(8, np.uint8),
    "I8": _Dtype(8, np.int8),
    "F8_E5M2": _Dtype(8, ml_dtypes.float8_e5m2),
    "F8_E4M3": _Dtype(8, ml_dtypes.float8_e4m3fn),
    "F8_E8M0": _Dtype(8, ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": _Dtype(8, ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": _Dtype(8, ml_dtypes.float8_e5m2fnuz),
    "I16": _Dtype(16, np.int16),
    "U16": _Dtype(16, np.uint16),
    "F16": _Dtype(16, np.float16),
    "BF16": _Dtype(16, ml_dtypes.bfloat16),
    "I32": _Dtype(32, np.int32),
    "U32": _Dtype(32, np.uint32),
    "F32": _Dtype(32, np.float32),
    "C64": _Dtype(64, np.complex64),
    "F64": _Dtype(64, np.float64),
    "I64": _Dtype(64, np.int64),
    "U64": _Dtype(64, np.uint64),
}


def dtype_name(dtype: np.dtype) -> str | None:
    """The safetensors name of a numpy dtype; None when it has none."""
    return next((name for name, known in _DTYPES.items() if known.numpy == dtype), None)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file."""

    dtype: str
    """As safetensors names it: BF16, F32, U8, …"""
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file; offsets in the header count from the header's end."""
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What a file says it holds. `tensors` has only entries that are well formed in themselves."""

    path: Path
    file_size: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """Everything wrong with the file, one sentence each; empty = it can be read."""


def read_header(path: str | Path) -> Header:
    """Read and check the header. Of the tensors' bytes nothing is read.

    Raises CheckpointError when the header itself cannot be read; what is wrong with single tensors
    stands in `problems`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            data_start, values = _parse_header(path, file_size, file.read)
    except OSError as failure:
        raise CheckpointError(f"{path}: cannot be read ({failure.strerror}).") from None
    problems: list[str] = []
    metadata = _metadata(path, values.pop("__metadata__", {}), problems)
    tensors: dict[str, TensorInfo] = {}
    for name, entry in values.items():
        info = _tensor_info(entry, data_start)
        if isinstance(info, TensorInfo):
            tensors[name] = info
        else:
            problems.append(f"{path}: tensor {shown(name)}: {info}; {_FETCH}.")
    malformed = bool(problems)
    problems += _layout_problems(path, tensors, data_start, file_size, complete=not malformed)
    return Header(path, file_size, tensors, metadata, tuple(problems))


def _parse_header(path: Path, file_size: int, read: Any) -> tuple[int, dict[str, Any]]:
    """Offset of the data, and the header's JSON object."""
    if file_size < HEADER_LENGTH.size:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got one of {file_size} bytes; {_FETCH}."
        )
    (length,) = HEADER_LENGTH.unpack(read(HEADER_LENGTH.size))
    if length > file_size - HEADER_LENGTH.size:
        raise CheckpointError(
            f"{path}: expected a safetensors file, but its header would have {length} bytes and "
            f"the file has {file_size}: it is truncated or something else; {_FETCH}."
        )
    if length > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{path}: expected a header of at most {MAX_JSON_BYTES >> 20} MiB, got {length} bytes."
        )
    header = read(length)
    if len(header) != length:
        raise CheckpointError(f"{path}: the file shrank while it was read; {_FETCH}.")
    if not header.startswith(b"{"):  # the format allows padding behind, not before
        raise CheckpointError(f"{path}: expected a safetensors header, got no JSON; {_FETCH}.")
    return HEADER_LENGTH.size + length, parse_object(header, str(path), CheckpointError)


def _metadata(path: Path, values: object, problems: list[str]) -> dict[str, str]:
    if isinstance(values, dict) and all(isinstance(value, str) for value in values.values()):
        return values
    problems.append(f"{path}: __metadata__ must map names to strings, got {shown(values)}.")
    return {}


def _tensor_info(entry: object, data_start: int) -> TensorInfo | str:
    """The checked entry, or what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return f"expected dtype, shape and data_offsets, got {shown(entry)}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    known = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if known is None:
        return f"expected a dtype such as BF16, F32 or U8, got {shown(dtype)}"
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        return f"expected a shape of at most {_MAX_DIMS} sizes, got {shown(shape)}"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"expected data_offsets [begin, end], got {shown(offsets)}"
    # Without zeros: numpy multiplies the strides of an empty array too.
    if math.prod(size for size in shape if size) * known.bits > _MAX_SIZE:
        return f"expected a shape that fits a memory, got {shown(shape)}"
    bits = math.prod(shape) * known.bits
    if bits % 8:
        return f"{dtype} {shape} does not fill whole bytes"
    if offsets[1] - offsets[0] != bits // 8:
        return f"{dtype} {shape} has {bits // 8} bytes, but its offsets {offsets} span others"
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= _MAX_SIZE for value in values
    )


def _layout_problems(
    path: Path, tensors: Mapping[str, TensorInfo], start: int, file_size: int, *, complete: bool
) -> list[str]:
    """Tensors must cover the data exactly: no overlap, no hole, nothing behind the last one. Holes
    can be told only when the header is `complete`, without entries that were unusable.
    """
    problems: list[str] = []
    covered, previous = start, "the header"
    in_file_order = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    for name, info in in_file_order:
        this = f"{path}: tensor {shown(name)}"
        if info.end > file_size:
            problems.append(
                f"{this} ends at byte {info.end}, but the file has {file_size}: it is truncated; "
                f"{_FETCH}."
            )
        elif info.begin < covered:
            problems.append(f"{this} overlaps {previous}; {_FETCH}.")
        elif info.begin > covered and complete:
            problems.append(
                f"{this} starts {info.begin - covered} bytes behind the end of {previous}, where "
                f"the format allows no hole; {_FETCH}."
            )
        if info.end > covered:
            covered, previous = info.end, f"tensor {shown(name)}"
    if file_size > covered and complete:
        problems.append(
            f"{path}: {file_size - covered} bytes behind {previous} belong to no tensor; {_FETCH}."
        )
    return problems


class SafetensorsFile:
    """An open file. Arrays are read-only; mapped ones keep the map alive as long as they live."""

    def __init__(self, source: str | Path | Header, *, use_mmap: bool = True) -> None:
        """Raises CheckpointError for the first of the file's problems."""
        self.header = source if isinstance(source, Header) else read_header(source)
        self.path = self.header.path
        if self.header.problems:
            raise CheckpointError(self.header.problems[0])
        self._bytes: np.ndarray | None = None
        if use_mmap and self.header.file_size:
            self._bytes = self._map()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.header.tensors

    def _map(self) -> np.ndarray:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self.header.file_size:
                    raise CheckpointError(
                        f"{self.path}: the file changed while it was opened; open it again."
                    )
                mapped = MappedFile(file)
        except OSError as failure:
            raise CheckpointError(
                f"{self.path}: cannot be mapped ({failure.strerror}); use --no-mmap."
            ) from None
        return np.frombuffer(mapped, np.uint8)

    def array(self, name: str) -> np.ndarray:
        """The tensor as a read-only array: a view of the map, or, without one, read afresh.

        Raises CheckpointError when the file has no such tensor, numpy no such type, or the file was
        truncated since it was opened (unmapped only).
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path}: there is no tensor {shown(name)}.")
        dtype = _DTYPES[info.dtype].numpy
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: tensor {shown(name)} is {info.dtype}, which numpy cannot hold."
            )
        data = self._read(name, info) if self._bytes is None else self._bytes[info.begin : info.end]
        array = data.view(dtype).reshape(info.shape)
        array.flags.writeable = False
        return array

    def _read(self, name: str, info: TensorInfo) -> np.ndarray:
        try:
            data = np.fromfile(self.path, np.uint8, count=info.nbytes, offset=info.begin)
        except OSError as failure:
            raise CheckpointError(f"{self.path}: cannot be read ({failure.strerror}).") from None
        if data.nbytes != info.nbytes:
            raise CheckpointError(
                f"{self.path}: the file was truncated within tensor {shown(name)} since it was "
                f"opened; {_FETCH}."
            )
        return data
