"""Writing a checkpoint in the Hugging Face layout: canonical parts in, a folder out.

Tensors that need no conversion keep their bytes. One tensor is in memory at a time; its file's
header is written last, into room left for it at the front. The folder is built under a temporary
name and renamed when it is whole, so that nothing half-written ever has the final name.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ossia.errors import CheckpointError, KernelError, UnsupportedError
from ossia.kernels.interface import HostTensor, Part, part_shapes
from ossia.kernels.mxfp4 import BLOCK_SIZE, Mxfp4Tensor, decode, encode
from ossia.model.checkpoint import CONFIG, GENERATION_CONFIG, INDEX, SINGLE_FILE
from ossia.model.config import GenerationConfig, ModelConfig
from ossia.model.json_fields import shown
from ossia.model.names import (
    FLOATS,
    NAMES,
    Expected,
    Form,
    Layout,
    Stored,
    checkpoint_bytes,
    expected_tensors,
    parts,
)
from ossia.model.safetensors import HEADER_LENGTH, dtype_name
from ossia.model.transformer import PartSource

DEFAULT_SHARD_BYTES = 5_000_000_000
"""What transformers uses; the published 20b has shards of this size."""
_METADATA = {"__metadata__": {"format": "pt"}}  # transformers refuses files without a format


def write_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    tensors: PartSource,
    *,
    layout: Layout = Layout.HF_MXFP4,
    generation: GenerationConfig | None = None,
    beside: Sequence[Path] = (),
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a model's tensors and configuration to `folder`, which must not exist or be empty.

    `tensors` is a `Checkpoint.part` or anything like it. Float tensors are written as the float32
    or bfloat16 they are; experts as `layout` says: MXFP4 (floats are encoded), or dequantised and
    transposed (MXFP4 is decoded to bfloat16, exactly). `beside` are files to copy there too, such
    as tokenizer.json. A tensor that alone exceeds `max_shard_bytes` gets a file of its own.
    `progress(done, total)` is called after each part.

    Raises CheckpointError when the folder is taken, a tensor does not fit `config`, or writing
    fails (a full disk); nothing of it is left behind then.
    """
    folder = Path(folder)
    if layout is Layout.ORIGINAL:
        raise UnsupportedError("checkpoints are written in the Hugging Face layout only.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: already there; name a folder that is not, or is empty.")
    if absent := [str(path) for path in beside if not path.is_file()]:
        raise CheckpointError(f"{absent[0]}: expected a file to copy, but there is none.")
    partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        _refuse_full_disk(folder, partial, checkpoint_bytes(config, layout))
        for path in beside:
            shutil.copyfile(path, partial / path.name)
        _write_json(partial / CONFIG, config.to_json(mxfp4=layout is Layout.HF_MXFP4))
        generation = generation or GenerationConfig.of(config)
        _write_json(partial / GENERATION_CONFIG, generation.to_json())
        _write_shards(partial, config, tensors, layout, max_shard_bytes, progress)
        _sync(partial)
        partial.rename(folder)
    except OSError as failure:
        reason = failure.strerror or failure
        raise CheckpointError(f"{folder}: cannot be written ({reason}).") from failure
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already when all went well
    return folder


def _refuse_full_disk(folder: Path, partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise CheckpointError(f"{folder}: needs {needed:,} bytes, but the disk has {free:,} left.")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """To the disk itself: a rename must not outlive its contents in a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Output:
    """A tensor about to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]
    """Its values in order, contiguous each."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def _write_shards(
    folder: Path,
    config: ModelConfig,
    tensors: PartSource,
    layout: Layout,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    all_parts = list(parts(config))
    waiting = expected_tensors(config, layout)
    shards: list[_Shard] = []
    with contextlib.ExitStack() as files:
        for done, (part, layer) in enumerate(all_parts, 1):
            for output in _outputs(part, layer, tensors(part, layer), config, layout):
                if not shards or shards[-1].is_full(output.nbytes, max_shard_bytes):
                    if shards:
                        shards[-1].finish()
                    file = files.enter_context((folder / f"shard-{len(shards)}").open("wb"))
                    shards.append(_Shard.begin(file, waiting))
                shards[-1].write(output)
                del waiting[output.name]
            if progress is not None:
                progress(done, len(all_parts))
        shards[-1].finish()
    _name_shards(folder, shards)


def _name_shards(folder: Path, shards: Sequence[_Shard]) -> None:
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for n, shard in enumerate(shards):
        name = f"model-{n + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{n}").rename(folder / name)
        weight_map |= dict.fromkeys(shard.entries, name)
    total_size = sum(shard.size for shard in shards)
    _write_json(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


@dataclass
class _Shard:
    """A safetensors file that grows; its header follows when all is written."""

    file: BinaryIO
    room: int
    """Bytes left for the header in front of the data, its length field not counted."""
    entries: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    """Bytes of data so far."""

    @classmethod
    def begin(cls, file: BinaryIO, waiting: Mapping[str, Expected]) -> _Shard:
        """With room for the entries of all tensors that are still to come, in as many digits as
        they may need; the header is filled up with blanks, as the format allows.
        """
        longest = 2 * [sum(4 * math.prod(tensor.shape) for tensor in waiting.values())]
        header = _METADATA | {
            name: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": longest}
            for name, tensor in waiting.items()
        }
        room = -(-len(_json_bytes(header)) // 8) * 8  # tensors begin at a multiple of 8
        file.seek(HEADER_LENGTH.size + room)
        return cls(file, room)

    def is_full(self, nbytes: int, max_bytes: int) -> bool:
        return self.size > 0 and self.size + nbytes > max_bytes

    def write(self, output: _Output) -> None:
        begin = self.size
        for piece in output.pieces:
            self.file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            self.size += piece.nbytes
        assert self.size == begin + output.nbytes
        self.entries[output.name] = {
            "dtype": dtype_name(output.dtype),
            "shape": list(output.shape),
            "data_offsets": [begin, self.size],
        }

    def finish(self) -> None:
        self.file.seek(0)
        header = _json_bytes(_METADATA | self.entries)
        self.file.write(HEADER_LENGTH.pack(self.room) + header.ljust(self.room))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _outputs(
    part: Part,
    layer: int | None,
    tensors: Mapping[str, HostTensor],
    config: ModelConfig,
    layout: Layout,
) -> Iterator[_Output]:
    """The tensors of a part as they will lie in the file; raises CheckpointError first."""
    shapes = part_shapes(part, config.dims())
    place = part.value if layer is None else f"{part.value} of layer {layer}"
    if tensors.keys() != shapes.keys():
        raise CheckpointError(
            f"{place}: expected the tensors {sorted(shapes)}, got {sorted(tensors)}."
        )
    for key, tensor in tensors.items():
        if tensor.shape != shapes[key]:
            raise CheckpointError(
                f"{place}: expected {key} of shape {list(shapes[key])}, got {list(tensor.shape)}."
            )
        if isinstance(tensor, np.ndarray) and dtype_name(tensor.dtype) not in FLOATS:
            raise CheckpointError(
                f"{place}: expected {key} in float32 or bfloat16, got {tensor.dtype}."
            )
    for key, stored in NAMES[layout][part].items():
        yield from _stored_outputs(stored, layer, tensors[key])


def _stored_outputs(stored: Stored, layer: int | None, tensor: HostTensor) -> Iterator[_Output]:
    name = stored.name.format(layer)
    match stored.form:
        case Form.MXFP4:
            packed = tensor if isinstance(tensor, Mxfp4Tensor) else _encoded(name, tensor)
            for stem, array in ((stored.name, packed.blocks), (stored.scales, packed.scales)):
                yield _Output(stem.format(layer), array.dtype, array.shape, [array])
        case Form.TRANSPOSED:
            dtype = tensor.dtype if isinstance(tensor, np.ndarray) else np.dtype(ml_dtypes.bfloat16)
            *lead, rows, columns = tensor.shape
            yield _Output(name, dtype, (*lead, columns, rows), _transposed_experts(tensor))
        case Form.PLAIN:
            if not isinstance(tensor, np.ndarray):
                raise CheckpointError(f"tensor {shown(name)}: only experts are stored as MXFP4.")
            yield _Output(name, tensor.dtype, tensor.shape, [tensor])
        case Form.FUSED:
            raise AssertionError("the Hugging Face layouts fuse nothing")


def _encoded(name: str, experts: np.ndarray) -> Mxfp4Tensor:
    """One expert at a time, for the encoder works in float32."""
    groups = (*experts.shape[:-1], experts.shape[-1] // BLOCK_SIZE)
    blocks = np.empty((*groups, BLOCK_SIZE // 2), np.uint8)
    scales = np.empty(groups, np.uint8)
    try:
        for e, expert in enumerate(experts):
            one = encode(expert)
            blocks[e], scales[e] = one.blocks, one.scales
    except KernelError as error:
        raise CheckpointError(f"tensor {shown(name)}: {error}") from error
    return Mxfp4Tensor(blocks, scales)


def _transposed_experts(experts: HostTensor) -> Iterator[np.ndarray]:
    for e in range(experts.shape[0]):
        if isinstance(experts, Mxfp4Tensor):
            one = Mxfp4Tensor(experts.blocks[e], experts.scales[e])
            yield decode(one, ml_dtypes.bfloat16).T
        else:
            yield experts[e].T
