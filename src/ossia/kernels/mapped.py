"""Arrays that are views of a mapped file → where in the file they lie, and reading rows of them
without touching the map.

A page that is touched through a map brings its neighbours into the process: 64 KB around it, or all
of a large folio, 2 MB and more, as Linux maps them since 6.18. The embedding of a model is used a
row here and a row there, and a long prompt would have all of it resident.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ossia.errors import KernelError


class MappedFile(mmap.mmap):
    """A file mapped for reading that can be read from as well, also when its name is gone."""

    path: str
    descriptor: int

    def __new__(cls, file: IO[bytes]) -> MappedFile:
        mapped = super().__new__(cls, file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.path = str(file.name)
        mapped.descriptor = os.dup(file.fileno())
        weakref.finalize(mapped, os.close, mapped.descriptor)
        return mapped


def mapped_at(array: np.ndarray) -> tuple[mmap.mmap, int] | None:
    """The map that an array is a view of, and the byte at which the view starts."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap):
        return None
    start = array.__array_interface__["data"][0] - np.frombuffer(base, np.uint8).ctypes.data
    return base, start


def release_pages(array: np.ndarray) -> None:
    """Let go of the memory behind a view of a mapped file; the file stays mapped and readable. An
    array in memory of its own is left alone.
    """
    found = mapped_at(array)
    if found is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    if not (array.flags.c_contiguous or array.T.flags.c_contiguous):
        return  # its bytes are mixed with those of others
    base, start = found
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first:
        base.madvise(mmap.MADV_DONTNEED, first, end - first)


@dataclass(frozen=True)
class FileRows:
    """The rows of a matrix that lies in a mapped file."""

    file: MappedFile
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype

    @classmethod
    def of(cls, array: np.ndarray) -> FileRows | None:
        """None for an array that is no contiguous view of a MappedFile."""
        found = mapped_at(array) if hasattr(os, "preadv") else None
        if found is None or not isinstance(found[0], MappedFile) or not array.flags.c_contiguous:
            return None
        rows, cols = array.shape
        return cls(found[0], found[1], (rows, cols), array.dtype)

    def has(self, rows: np.ndarray) -> bool:
        """Whether these are numbers of rows, int32."""
        if rows.dtype != np.int32 or rows.ndim != 1:
            return False
        return bool(((rows >= 0) & (rows < self.shape[0])).all())

    def read(self, rows: np.ndarray) -> np.ndarray:
        """`[len(rows), cols]`, from the file. Raises KernelError for a file that has become
        shorter.
        """
        size = self.shape[1] * self.dtype.itemsize
        into = np.empty((len(rows), size), np.uint8)
        for row, line in zip(rows.tolist(), into, strict=True):
            if os.preadv(self.file.descriptor, [line.data], self.offset + row * size) != size:
                raise KernelError(
                    f"[embed] {self.file.path} was truncated while the model was in use; fetch it "
                    "again"
                )
        return into.view(self.dtype)
