"""A gpt-oss checkpoint (safetensors, MXFP4, Hugging Face names) as GGUF for llama.cpp: the experts
bit for bit, matrices as Q8_0, the rest in float32, as llama.cpp's own converter stores them.

    PYTHON benchmarks/gguf_model.py CHECKPOINT FILE.gguf

PYTHON needs numpy and gguf, and nothing of Ossia: reading and decoding are written anew here, so
that the two forms of a model check each other. The vocabulary is a dummy: speed is measured on ids.
The surprising thing: the nibbles of a block lie in another order than in safetensors, and gate and
up are two tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import gguf
except ImportError:
    sys.exit(f"error: {sys.executable} has no gguf; pip install gguf.")

MXFP4 = gguf.GGMLQuantizationType.MXFP4
Q8_0 = gguf.GGMLQuantizationType.Q8_0
F32 = gguf.GGMLQuantizationType.F32
_ROWS = 4096  # of a matrix quantised at a time
_DTYPES = {"U8": np.uint8, "F32": np.float32, "BF16": np.uint16}

# GGUF's name → name in the checkpoint; {} is the layer.
_MATRICES = {
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
}
_FLOATS = {
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_sinks.weight": "model.layers.{}.self_attn.sinks",
    "blk.{}.post_attention_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate_inp.weight": "model.layers.{}.mlp.router.weight",
    "blk.{}.ffn_gate_inp.bias": "model.layers.{}.mlp.router.bias",
    "blk.{}.ffn_down_exps.bias": "model.layers.{}.mlp.experts.down_proj_bias",
}
_EXPERTS = "model.layers.{}.mlp.experts."


@dataclass(frozen=True)
class Planned:
    """A tensor of the GGUF: its place is known before its bytes are."""

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    """Of the values; the last dimension is contiguous."""
    make: Callable[[], np.ndarray]
    """Its bytes: uint8 of quantised kinds, else float32."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        if self.kind is F32:
            return self.shape
        return tuple(gguf.quants.quant_shape_to_byte_shape(self.shape, self.kind))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.stored_shape)) * (4 if self.kind is F32 else 1)


class Safetensors:
    """The tensors of a folder's .safetensors files, mapped."""

    def __init__(self, folder: Path) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._dtypes: dict[str, str] = {}
        self._files: list[mmap.mmap] = []
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._files.append(mapped)
            data = np.frombuffer(mapped, np.uint8, offset=8 + length)
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    array = data[begin:end].view(_DTYPES[entry["dtype"]])
                    self._arrays[name] = array.reshape(entry["shape"])
                    self._dtypes[name] = entry["dtype"]

    def release(self) -> None:
        """Give back the memory of what has been read; reading it again brings it back."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._files:
                mapped.madvise(mmap.MADV_DONTNEED)

    def raw(self, name: str) -> np.ndarray:
        """As stored; bfloat16 as uint16."""
        return self._arrays[name]

    def floats(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Some rows as float32."""
        stored = self._arrays[name][rows]
        if self._dtypes[name] == "F32":
            return np.asarray(stored)
        return (stored.astype(np.uint32) << 16).view(np.float32)


def ggml_nibbles(blocks: np.ndarray) -> np.ndarray:
    """Blocks [..., 16] of consecutive pairs (byte i: elements 2i and 2i + 1) → ggml's halves (byte
    j: elements j and j + 16). The low nibble is the first of the two in both.
    """
    first, second = blocks[..., :8], blocks[..., 8:]
    out = np.empty_like(blocks)
    out[..., 0::2] = (first & 0x0F) | (second << 4)
    out[..., 1::2] = (first >> 4) | (second & 0xF0)
    return out


def _experts(tensors: Safetensors, stem: str, rows: slice) -> np.ndarray:
    """uint8 [E, rows, groups · 17]: each block is its scale byte and its 16 bytes of nibbles."""
    blocks, scales = tensors.raw(f"{stem}_blocks")[:, rows], tensors.raw(f"{stem}_scales")[:, rows]
    out = np.empty((*scales.shape, 17), np.uint8)
    for expert in range(len(scales)):
        out[expert, ..., 0] = scales[expert]
        out[expert, ..., 1:] = ggml_nibbles(blocks[expert])
    return out.reshape(*scales.shape[:2], -1)


def _quantised(tensors: Safetensors, name: str) -> np.ndarray:
    shape = tensors.raw(name).shape
    out = np.empty(gguf.quants.quant_shape_to_byte_shape(shape, Q8_0), np.uint8)
    for at in range(0, shape[0], _ROWS):
        rows = slice(at, at + _ROWS)
        out[rows] = gguf.quants.quantize(tensors.floats(name, rows), Q8_0)
    return out


def planned_tensors(tensors: Safetensors, layers: int) -> Iterator[Planned]:
    """All tensors of the GGUF, in the order of a forward pass."""

    def matrix(name: str, source: str) -> Planned:
        shape = tensors.raw(source).shape
        return Planned(name, Q8_0, shape, lambda: _quantised(tensors, source))

    def floats(name: str, source: str, columns: slice = slice(None)) -> Planned:
        shape = tensors.raw(source)[..., columns].shape
        return Planned(
            name, F32, shape, lambda: np.ascontiguousarray(tensors.floats(source)[..., columns])
        )

    def experts(name: str, stem: str, rows: slice = slice(None)) -> Planned:
        count, all_rows, groups = tensors.raw(f"{stem}_scales").shape
        shape = (count, len(range(*rows.indices(all_rows))), groups * 32)
        return Planned(name, MXFP4, shape, lambda: _experts(tensors, stem, rows))

    yield matrix("token_embd.weight", "model.embed_tokens.weight")
    for layer in range(layers):
        for name, source in _MATRICES.items():
            name, source = name.format(layer), source.format(layer)
            yield matrix(f"{name}.weight", f"{source}.weight")
            yield floats(f"{name}.bias", f"{source}.bias")
        for name, source in _FLOATS.items():
            yield floats(name.format(layer), source.format(layer))
        stem, block = _EXPERTS.format(layer), f"blk.{layer}"
        for which, rows in (("gate", slice(0, None, 2)), ("up", slice(1, None, 2))):
            yield experts(f"{block}.ffn_{which}_exps.weight", f"{stem}gate_up_proj", rows)
            yield floats(f"{block}.ffn_{which}_exps.bias", f"{stem}gate_up_proj_bias", rows)
        yield experts(f"{block}.ffn_down_exps.weight", f"{stem}down_proj")
    yield floats("output_norm.weight", "model.norm.weight")
    yield matrix("output.weight", "lm_head.weight")


def _add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    rope, vocab = config["rope_scaling"], config["vocab_size"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("random gpt-oss")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_MXFP4_MOE)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list([f"t{token}" for token in range(vocab)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    writer.add_token_merges(["t 0"])  # llama.cpp refuses a vocabulary without any
    writer.add_eos_token_id(vocab - 1)


def write_gguf(checkpoint: Path, path: Path, *, progress: Callable[[int, int], None]) -> None:
    """Write `path` under a temporary name and rename it when it is whole; one tensor is in memory
    at a time. Raises OSError, also for a disk without enough room.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tensors = Safetensors(checkpoint)
    plan = list(planned_tensors(tensors, config["num_hidden_layers"]))
    needed, free = sum(tensor.nbytes for tensor in plan), shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(f"needs {needed:,} bytes, but the disk has {free:,} left")
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT_OSS])
    try:
        _add_metadata(writer, config)
        for tensor in plan:
            dtype = np.dtype(np.float32 if tensor.kind is F32 else np.uint8)
            writer.add_tensor_info(
                tensor.name, tensor.stored_shape, dtype, tensor.nbytes, raw_dtype=tensor.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(plan, 1):
            writer.write_tensor_data(tensor.make())
            tensors.release()
            progress(done, len(plan))
        writer.close()
        _sync(partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # of a full disk, once more
            writer.close()
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        seconds, end = time.monotonic() - start, "\n" if done == total else ""
        line = f"\r{options.file.name}: {done} of {total} tensors, {seconds:.0f} s"
        print(line, end=end, flush=True)

    try:
        write_gguf(options.checkpoint, options.file, progress=progress)
    except KeyError as missing:
        print(
            f"error: {options.checkpoint}: expected {missing}, as in a gpt-oss checkpoint in the "
            "published layout; make one with benchmarks/random_model.py.",
            file=sys.stderr,
        )
        return 1
    except OSError as failure:
        print(f"error: {options.file}: cannot be written ({failure}).", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
