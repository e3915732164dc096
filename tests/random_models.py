"""Random models in which every feature matters, as our tensors and as transformers' own model."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ossia.kernels.interface import NO_BLOCK, HostTensor, PagedIndex, Part, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor, decode, encode
from ossia.model.config import ModelConfig
from ossia.model.inputs import ForwardInput
from ossia.model.transformer import Architecture

BLOCK_SIZE = 32


def tiny_config(**changes) -> ModelConfig:
    values = {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 8,
        "num_experts_per_tok": 4,
        "vocab_size": 301,
        "sliding_window": 128,
        "max_position_embeddings": 131072,
    }
    values |= changes
    layers = values["num_hidden_layers"]
    values.setdefault("sliding_layers", tuple(n % 2 == 0 for n in range(layers)))
    return ModelConfig(**values)


@dataclass(frozen=True)
class RandomModel:
    config: ModelConfig
    seed: int = 0
    mxfp4: bool = True

    def part(self, part: Part, layer: int | None) -> dict[str, HostTensor]:
        """The `PartSource` of the model. bfloat16, as checkpoints hold; sinks, biases and hidden
        activations are large, so that leaving any of them out shows.
        """
        place = (self.seed, list(Part).index(part), 0 if layer is None else layer + 1)
        rng = np.random.default_rng(place)
        tensors = {}
        for name, shape in part_shapes(part, self.config.dims()).items():
            values = rng.standard_normal(shape, np.float32)
            match name:
                case "norm":
                    values = 1 + 0.3 * values
                case "sinks":
                    values = 1 + 2 * values
                case "gate_up":  # beyond the limit of 7 on both sides
                    values *= 4 * shape[-1] ** -0.5
                case "weight":
                    pass
                case _ if name.endswith("_bias"):
                    pass
                case _:
                    values *= shape[-1] ** -0.5
            if name in ("gate_up", "down") and self.mxfp4:
                tensors[name] = encode(values)
            else:
                tensors[name] = values.astype(ml_dtypes.bfloat16)
        return tensors


def transformers_model(model: RandomModel):
    """`GptOssForCausalLM` in float32, eager attention, with the values of `model`."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    config, rope = model.config, model.config.rope
    theirs = GptOssConfig(
        num_hidden_layers=config.num_hidden_layers,
        num_local_experts=config.num_local_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        head_dim=config.head_dim,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        sliding_window=config.sliding_window,
        layer_types=[
            "sliding_attention" if sliding else "full_attention"
            for sliding in config.sliding_layers
        ],
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": rope.theta,
            "factor": rope.factor,
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
        attn_implementation="eager",
        tie_word_embeddings=False,
        pad_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        network = GptOssForCausalLM(theirs)
    network = network.to_empty(device="cpu").float().eval()
    # Buffers (inverse frequencies) are computed by the constructor, which `meta` has prevented.
    network.model.rotary_emb = type(network.model.rotary_emb)(theirs)
    parameters = dict(network.named_parameters())

    def put(name: str, values: HostTensor, *, transpose: bool = False) -> None:
        host = decode(values) if isinstance(values, Mxfp4Tensor) else values.astype(np.float32)
        tensor = torch.from_numpy(host)
        parameters.pop(name).data.copy_(tensor.mT if transpose else tensor)

    put("model.embed_tokens.weight", model.part(Part.EMBEDDING, None)["weight"])
    head = model.part(Part.HEAD, None)
    put("model.norm.weight", head["norm"])
    put("lm_head.weight", head["weight"])
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}."
        tensors = model.part(Part.ATTENTION, n)
        put(layer + "input_layernorm.weight", tensors["norm"])
        put(layer + "self_attn.sinks", tensors["sinks"])
        for name in "qkvo":
            put(f"{layer}self_attn.{name}_proj.weight", tensors[name])
            put(f"{layer}self_attn.{name}_proj.bias", tensors[f"{name}_bias"])
        tensors = model.part(Part.MOE, n)
        put(layer + "post_attention_layernorm.weight", tensors["norm"])
        put(layer + "mlp.router.weight", tensors["router"])
        put(layer + "mlp.router.bias", tensors["router_bias"])
        for name in ("gate_up", "down"):
            put(f"{layer}mlp.experts.{name}_proj", tensors[name], transpose=True)
            put(f"{layer}mlp.experts.{name}_proj_bias", tensors[f"{name}_bias"])
    assert not parameters, f"not set: {sorted(parameters)}"
    return network


def transformers_logits(network, ids) -> np.ndarray:
    """[T, V]"""
    import torch

    with torch.no_grad():
        return network(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()


class PagedSequences:
    """Hand-made paging for tests: scattered blocks, and sliding blocks that are freed (and their
    contents poisoned by reuse) once the window has passed.
    """

    def __init__(self, architecture: Architecture, num_sequences: int, length: int, *, seed=0):
        per_sequence = -(-length // BLOCK_SIZE)
        rng = np.random.default_rng(seed)
        shape = (num_sequences, per_sequence)
        self.window = next((w for w in architecture.windows if w is not None), None)
        self.tables = {
            group: rng.permutation(num_sequences * per_sequence).reshape(shape).astype(np.int32)
            for group in ("full", "sliding")
        }
        self.spec = architecture.cache_spec(
            num_full_blocks=num_sequences * per_sequence,
            num_sliding_blocks=num_sequences * per_sequence,
            block_size=BLOCK_SIZE,
        )

    def step(self, chunks: dict[int, tuple[int, list[int]]]) -> ForwardInput:
        """`chunks`: sequence → (position of its first token, tokens). All rows give logits."""
        ids = np.array([token for _, tokens in chunks.values() for token in tokens], np.int32)
        positions = np.concatenate(
            [np.arange(at, at + len(tokens), dtype=np.int32) for at, tokens in chunks.values()]
        )
        lengths = [len(tokens) for _, tokens in chunks.values()]
        return ForwardInput(
            ids_T=ids,
            positions_T=positions,
            cu_seqlens_S1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            logit_rows=np.arange(len(ids), dtype=np.int32),
            full=self._index("full", chunks),
            sliding=self._index("sliding", chunks),
        )

    def _index(self, group: str, chunks) -> PagedIndex:
        tables, slots = [], []
        for sequence, (at, tokens) in chunks.items():
            table = self.tables[group][sequence].copy()
            table[-(-(at + len(tokens)) // BLOCK_SIZE) :] = NO_BLOCK
            if group == "sliding" and self.window is not None:
                table[: max(at - self.window + 1, 0) // BLOCK_SIZE] = NO_BLOCK
            tables.append(table)
            positions = np.arange(at, at + len(tokens))
            slots.append(table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE)
        return PagedIndex(
            slot_mapping_T=np.concatenate(slots).astype(np.int32),
            block_tables_SB=np.stack(tables),
        )
