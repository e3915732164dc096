"""Where the tensors of each `Part` lie in the checkpoint layouts: the name map, as data.

A canonical tensor (names and shapes: `kernels.interface.Part`) is stored plain, as some rows of a
fused tensor, transposed, or as MXFP4 blocks and scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from ossia.kernels.interface import Part, part_shapes
from ossia.kernels.mxfp4 import BLOCK_SIZE
from ossia.model.config import ModelConfig


class Layout(Enum):
    HF_MXFP4 = "hf-mxfp4"
    """Hugging Face names, experts as MXFP4: the published form."""
    HF_BF16 = "hf-bf16"
    """Hugging Face names, experts dequantised (bfloat16 or float32) and transposed."""
    ORIGINAL = "original"
    """OpenAI's own names, q, k and v fused, experts as MXFP4."""


class Form(Enum):
    PLAIN = "plain"
    FUSED = "fused"
    """The tensors of one name lie one below the other, in the order of the map."""
    TRANSPOSED = "transposed"
    """The last two dimensions are swapped."""
    MXFP4 = "mxfp4"
    """Two tensors of uint8: blocks and scales."""


@dataclass(frozen=True)
class Stored:
    """How one canonical tensor is stored; `{}` in a name stands for the number of the layer."""

    name: str
    form: Form = Form.PLAIN
    scales: str = ""
    """Of the form MXFP4, whose blocks are `name`."""


def _mxfp4(stem: str, separator: str) -> Stored:
    return Stored(f"{stem}{separator}blocks", Form.MXFP4, f"{stem}{separator}scales")


_HF_ATTENTION = {
    "norm": Stored("model.layers.{}.input_layernorm.weight"),
    "q": Stored("model.layers.{}.self_attn.q_proj.weight"),
    "q_bias": Stored("model.layers.{}.self_attn.q_proj.bias"),
    "k": Stored("model.layers.{}.self_attn.k_proj.weight"),
    "k_bias": Stored("model.layers.{}.self_attn.k_proj.bias"),
    "v": Stored("model.layers.{}.self_attn.v_proj.weight"),
    "v_bias": Stored("model.layers.{}.self_attn.v_proj.bias"),
    "o": Stored("model.layers.{}.self_attn.o_proj.weight"),
    "o_bias": Stored("model.layers.{}.self_attn.o_proj.bias"),
    "sinks": Stored("model.layers.{}.self_attn.sinks"),
}
_HF_MOE = {
    "norm": Stored("model.layers.{}.post_attention_layernorm.weight"),
    "router": Stored("model.layers.{}.mlp.router.weight"),
    "router_bias": Stored("model.layers.{}.mlp.router.bias"),
    "gate_up": Stored("model.layers.{}.mlp.experts.gate_up_proj", Form.TRANSPOSED),
    "gate_up_bias": Stored("model.layers.{}.mlp.experts.gate_up_proj_bias"),
    "down": Stored("model.layers.{}.mlp.experts.down_proj", Form.TRANSPOSED),
    "down_bias": Stored("model.layers.{}.mlp.experts.down_proj_bias"),
}
_HF_BF16 = {
    Part.EMBEDDING: {"weight": Stored("model.embed_tokens.weight")},
    Part.ATTENTION: _HF_ATTENTION,
    Part.MOE: _HF_MOE,
    Part.HEAD: {"norm": Stored("model.norm.weight"), "weight": Stored("lm_head.weight")},
}
_HF_MXFP4 = _HF_BF16 | {
    Part.MOE: _HF_MOE
    | {
        "gate_up": _mxfp4("model.layers.{}.mlp.experts.gate_up_proj", "_"),
        "down": _mxfp4("model.layers.{}.mlp.experts.down_proj", "_"),
    }
}
_ORIGINAL = {
    Part.EMBEDDING: {"weight": Stored("embedding.weight")},
    Part.ATTENTION: {
        "norm": Stored("block.{}.attn.norm.scale"),
        "q": Stored("block.{}.attn.qkv.weight", Form.FUSED),
        "k": Stored("block.{}.attn.qkv.weight", Form.FUSED),
        "v": Stored("block.{}.attn.qkv.weight", Form.FUSED),
        "q_bias": Stored("block.{}.attn.qkv.bias", Form.FUSED),
        "k_bias": Stored("block.{}.attn.qkv.bias", Form.FUSED),
        "v_bias": Stored("block.{}.attn.qkv.bias", Form.FUSED),
        "o": Stored("block.{}.attn.out.weight"),
        "o_bias": Stored("block.{}.attn.out.bias"),
        "sinks": Stored("block.{}.attn.sinks"),
    },
    Part.MOE: {
        "norm": Stored("block.{}.mlp.norm.scale"),
        "router": Stored("block.{}.mlp.gate.weight"),
        "router_bias": Stored("block.{}.mlp.gate.bias"),
        "gate_up": _mxfp4("block.{}.mlp.mlp1_weight", "."),
        "gate_up_bias": Stored("block.{}.mlp.mlp1_bias"),
        "down": _mxfp4("block.{}.mlp.mlp2_weight", "."),
        "down_bias": Stored("block.{}.mlp.mlp2_bias"),
    },
    Part.HEAD: {"norm": Stored("norm.scale"), "weight": Stored("unembedding.weight")},
}
NAMES: dict[Layout, dict[Part, dict[str, Stored]]] = {
    Layout.HF_MXFP4: _HF_MXFP4,
    Layout.HF_BF16: _HF_BF16,
    Layout.ORIGINAL: _ORIGINAL,
}

FLOATS = ("BF16", "F32")
"""What a tensor that is not MXFP4 may be. Not F16: gpt-oss was trained in bfloat16, whose range
float16 does not have."""
BYTES = ("U8",)


@dataclass(frozen=True)
class Expected:
    """A tensor that a checkpoint must hold."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


def parts(config: ModelConfig) -> Iterator[tuple[Part, int | None]]:
    """All parts of a model with their layer, in the order in which a forward pass needs them."""
    yield Part.EMBEDDING, None
    for layer in range(config.num_hidden_layers):
        yield Part.ATTENTION, layer
        yield Part.MOE, layer
    yield Part.HEAD, None


def expected_tensors(config: ModelConfig, layout: Layout) -> dict[str, Expected]:
    """Every tensor of a checkpoint by its name in the files, in the order of `parts`."""
    tensors: dict[str, Expected] = {}
    shapes = {part: part_shapes(part, config.dims()) for part in Part}
    for part, layer in parts(config):
        for key, stored in NAMES[layout][part].items():
            shape, name = shapes[part][key], stored.name.format(layer)
            match stored.form:
                case Form.PLAIN:
                    tensors[name] = Expected(shape, FLOATS)
                case Form.TRANSPOSED:
                    tensors[name] = Expected((*shape[:-2], shape[-1], shape[-2]), FLOATS)
                case Form.FUSED:
                    rows = tensors[name].shape[0] if name in tensors else 0
                    tensors[name] = Expected((rows + shape[0], *shape[1:]), FLOATS)
                case Form.MXFP4:
                    groups = (*shape[:-1], -(-shape[-1] // BLOCK_SIZE))
                    tensors[name] = Expected((*groups, BLOCK_SIZE // 2), BYTES)
                    tensors[stored.scales.format(layer)] = Expected(groups, BYTES)
    return tensors


def checkpoint_bytes(config: ModelConfig, layout: Layout, *, dense_itemsize: int = 2) -> int:
    """Bytes of all tensors, what is not MXFP4 taken at `dense_itemsize`: 13,761,264,768 for the
    published gpt-oss-20b.
    """
    return sum(
        math.prod(tensor.shape) * (1 if tensor.dtypes == BYTES else dense_itemsize)
        for tensor in expected_tensors(config, layout).values()
    )
