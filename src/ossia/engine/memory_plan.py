"""How much memory a model will take, line by line, before any of it is loaded.

Exact arithmetic over shapes for the native kernels; for the others an estimate. The surprising
lines: experts are used where their file is mapped, so they count as resident though they are not
copied; of a mapped embedding nothing is, for the native kernels read its rows from the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ossia.engine.config import EnginePlan
from ossia.kernels.interface import Kernels, Part, part_shapes
from ossia.model.checkpoint import Checkpoint
from ossia.model.config import ModelConfig
from ossia.model.cost import WeightFormat
from ossia.model.names import NAMES, Form, parts

_PACK_BYTES = 64 << 20  # what kernels/native.py has in memory of a tensor while it repacks it
_THREAD_BYTES = 1 << 20  # what a thread of the native kernels touches of its own 4 MB, and a stack


@dataclass(frozen=True)
class KernelMemory:
    """What of a set of kernels matters to memory."""

    name: str
    cache_itemsize: int
    repacks: bool = False
    """Whether tensors that are not MXFP4 are repacked into int8."""
    num_threads: int = 1
    expert_bytes: int | None = None
    """Of a model larger than memory: the most that its experts may take."""

    @classmethod
    def of(cls, kernels: Kernels, *, expert_bytes: int | None = None) -> KernelMemory:
        if kernels.name != "native":
            return cls(kernels.name, kernels.cache_itemsize)
        from ossia.kernels.native import NativeKernels

        assert isinstance(kernels, NativeKernels)
        return cls(
            kernels.name,
            kernels.cache_itemsize,
            repacks=kernels.dense_dtype == "int8",
            num_threads=kernels.num_threads,
            expert_bytes=expert_bytes,
        )


@dataclass(frozen=True)
class MemoryItem:
    what: str
    bytes: int
    mapped: bool = False
    """A file's pages, which the system can drop and read again."""
    comes_later: bool = False
    """When the weights have been loaded."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a process with this model has in memory at its fullest."""

    items: tuple[MemoryItem, ...]
    context: int
    """Tokens of the longest sequence."""
    sequences: int
    cache: int
    """Bytes of the keys and values, which are among the items."""
    is_estimate: bool = False
    """For kernels whose representation is not reckoned tensor by tensor."""

    @property
    def total(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def mapped(self) -> int:
        return sum(item.bytes for item in self.items if item.mapped)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"total": self.total}


def memory_plan(
    checkpoint: Checkpoint,
    kernels: KernelMemory,
    engine: EnginePlan,
    *,
    process_bytes: int,
    use_mmap: bool = True,
) -> MemoryPlan:
    """Of a process that serves this checkpoint on these kernels with the plan of an engine, whose
    cache is full and whose steps are as large as they may be.

    `process_bytes` is what the process has already: interpreter, libraries, vocabulary.
    """
    items: list[MemoryItem] = []
    if kernels.name == "native":
        items += _native_items(checkpoint, kernels, engine, use_mmap=use_mmap)
    else:
        items.append(MemoryItem("weights as stored", checkpoint.total_bytes, mapped=use_mmap))
    tokens = engine.num_full_blocks * engine.block_size
    running = (
        MemoryItem(f"keys and values of {tokens:,} tokens", engine.cache_bytes, comes_later=True),
        MemoryItem(
            f"a step of {engine.max_num_batched_tokens} tokens",
            _step_bytes(checkpoint.config, engine),
            comes_later=True,
        ),
    )
    # The last tensor is repacked before there is a cache or a step.
    excess = _largest_source(checkpoint, kernels, use_mmap=use_mmap)
    excess -= sum(item.bytes for item in (*items, *running) if item.comes_later)
    if excess > 0:
        items.append(MemoryItem("what is being repacked, while loading", excess))
    return MemoryPlan(
        items=(*items, *running, MemoryItem("Python, libraries, vocabulary", process_bytes)),
        context=engine.context,
        sequences=engine.max_num_seqs,
        cache=engine.cache_bytes,
        is_estimate=kernels.name != "native",
    )


@dataclass(frozen=True)
class _Tensor:
    """A canonical tensor and how it is stored."""

    part: Part
    key: str
    shape: tuple[int, ...]
    stored: int
    """Bytes."""
    is_mxfp4: bool

    @property
    def is_expert(self) -> bool:
        return self.part is Part.MOE and self.key in ("gate_up", "down")

    @property
    def is_dense(self) -> bool:
        """One of those that the native kernels repack: q, k, v, o, the head, experts in floats."""
        return (
            (self.is_expert and not self.is_mxfp4)
            or (self.part is Part.ATTENTION and self.key in ("q", "k", "v", "o"))
            or (self.part is Part.HEAD and self.key == "weight")
        )

    @property
    def repacked(self) -> int:
        *count, rows, cols = self.shape
        return math.prod(count) * WeightFormat.INT8.matrix_bytes(rows, cols)


def _native_items(
    checkpoint: Checkpoint, kernels: KernelMemory, engine: EnginePlan, *, use_mmap: bool
) -> Iterator[MemoryItem]:
    experts = packed = dense = small = embedding = 0
    for tensor in _tensors(checkpoint):
        if tensor.is_dense:
            packed += tensor.repacked if kernels.repacks else 0
            dense += 0 if kernels.repacks else tensor.stored
        elif tensor.is_expert:
            experts += tensor.stored
        elif tensor.key == "router":
            small += tensor.stored
        elif tensor.part is Part.EMBEDDING:
            embedding = 0 if use_mmap else tensor.stored  # its rows are read from the file
        else:
            # As float32, and the mapped pages from which it was converted.
            small += 4 * math.prod(tensor.shape) + (tensor.stored if use_mmap else 0)
    if kernels.expert_bytes is not None and kernels.expert_bytes < experts:
        yield MemoryItem("experts in MXFP4, those used last", kernels.expert_bytes, mapped=True)
    elif experts:
        yield MemoryItem("experts in MXFP4, in place", experts, mapped=use_mmap)
    if packed:
        yield MemoryItem("dense tensors in int8", packed)
    if dense:
        yield MemoryItem("dense tensors as stored", dense, mapped=use_mmap)
    yield MemoryItem("routers, norms and biases", small)
    if embedding:
        yield MemoryItem("embedding", embedding)
    yield MemoryItem(f"{kernels.num_threads} threads", kernels.num_threads * _THREAD_BYTES)
    angles = 2 * 4 * checkpoint.config.head_dim // 2  # cos and sin of a position
    yield MemoryItem("rotary angles", angles * max(4096, 2 * engine.context))


def _tensors(checkpoint: Checkpoint) -> Iterator[_Tensor]:
    """All of them, in the order in which they are loaded."""
    config = checkpoint.config
    shapes = {part: part_shapes(part, config.dims()) for part in Part}
    for part, layer in parts(config):
        for key, stored in NAMES[checkpoint.layout][part].items():
            shape, name = shapes[part][key], stored.name.format(layer)
            info = checkpoint.files[name].tensors[name]
            size = math.prod(shape) * (info.nbytes // math.prod(info.shape))
            if stored.form is Form.MXFP4:
                scales = stored.scales.format(layer)
                size = info.nbytes + checkpoint.files[scales].tensors[scales].nbytes
            yield _Tensor(part, key, shape, size, is_mxfp4=stored.form is Form.MXFP4)


def _largest_source(checkpoint: Checkpoint, kernels: KernelMemory, *, use_mmap: bool) -> int:
    """Bytes of a checkpoint's tensors that are in memory at most while they are repacked."""
    if not kernels.repacks:
        return 0
    largest = max((tensor.stored for tensor in _tensors(checkpoint) if tensor.is_dense), default=0)
    return min(largest, _PACK_BYTES) if use_mmap else largest


def _step_bytes(config: ModelConfig, engine: EnginePlan) -> int:
    """Activations of one layer at a time, which csrc/common/step.cc has in memory together, and the
    logits. A quantised row has 17 bytes for 8 columns: values, scales and sums of its blocks.
    """
    width, inner = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_dim
    per_expert = _quantised(inner) + 4 * width
    per_token = (
        3 * 4 * width  # residual in, residual out, normalised
        + _quantised(width)
        + 2 * 4 * q_width  # queries, attended values
        + _quantised(q_width)
        + config.num_experts_per_tok * per_expert
        + 4 * config.num_local_experts
    )
    logits = engine.max_num_seqs * 4 * config.vocab_size
    drawing = 4 * 8 * config.vocab_size  # a row in float64, its exponentials, their sums
    return engine.max_num_batched_tokens * per_token + logits + drawing


def _quantised(cols: int) -> int:
    return -(-cols // 128) * 272  # csrc/op_table.h, QuantLayout
