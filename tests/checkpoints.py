"""Small random checkpoints in every layout, made with the safetensors library and the published
tensor names written out by hand: nothing here goes through ossia's own name map, reader or writer.
"""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from ossia.kernels.mxfp4 import Mxfp4Tensor, decode, encode
from ossia.model.config import GenerationConfig, ModelConfig, RopeConfig
from ossia.model.names import Layout

TINY = ModelConfig(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=256,
    sliding_window=8,
    sliding_layers=(True, False),
    max_position_embeddings=4096,
    rope=RopeConfig(factor=8.0, original_max_position_embeddings=512),
    eos_token_ids=(5, 6),
    pad_token_id=7,
)


def random_tensors(config=TINY, seed=0, dtype=ml_dtypes.bfloat16):
    """Canonical tensors by (part name, layer): the values do not depend on the layout.

    Matrices have the standard deviation 1/√fan-in, experts are Mxfp4Tensors, the rest is `dtype`.
    """
    rng = np.random.default_rng(seed)
    width, heads, kv, d = (
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )
    experts, inner = config.num_local_experts, config.intermediate_size

    def matrix(*shape):
        return (rng.standard_normal(shape, np.float32) / shape[-1] ** 0.5).astype(dtype)

    def vector(*shape, mean=0.0, deviation=0.1):
        return (mean + deviation * rng.standard_normal(shape, np.float32)).astype(dtype)

    def expert(*shape):
        return encode(rng.standard_normal(shape, np.float32) / shape[-1] ** 0.5)

    tensors = {("embedding", None): {"weight": vector(config.vocab_size, width, deviation=1.0)}}
    for layer in range(config.num_hidden_layers):
        tensors["attention", layer] = {
            "norm": vector(width, mean=1.0),
            "q": matrix(heads * d, width),
            "q_bias": vector(heads * d),
            "k": matrix(kv * d, width),
            "k_bias": vector(kv * d),
            "v": matrix(kv * d, width),
            "v_bias": vector(kv * d),
            "o": matrix(width, heads * d),
            "o_bias": vector(width),
            "sinks": vector(heads, deviation=1.0),
        }
        tensors["moe", layer] = {
            "norm": vector(width, mean=1.0),
            "router": matrix(experts, width),
            "router_bias": vector(experts),
            "gate_up": expert(experts, 2 * inner, width),
            "gate_up_bias": vector(experts, 2 * inner),
            "down": expert(experts, width, inner),
            "down_bias": vector(experts, width),
        }
    tensors["head", None] = {
        "norm": vector(width, mean=1.0),
        "weight": matrix(config.vocab_size, width),
    }
    return tensors


def part_source(tensors):
    """A `transformer.PartSource` over `random_tensors`."""
    return lambda part, layer: tensors[part.value, layer]


def hugging_face_tensors(tensors, *, mxfp4):
    """By their published names; without `mxfp4` the experts are dequantised and transposed."""
    stored = {
        "model.embed_tokens.weight": tensors["embedding", None]["weight"],
        "model.norm.weight": tensors["head", None]["norm"],
        "lm_head.weight": tensors["head", None]["weight"],
    }
    for (part, layer), group in tensors.items():
        prefix = f"model.layers.{layer}."
        if part == "attention":
            stored[f"{prefix}input_layernorm.weight"] = group["norm"]
            stored[f"{prefix}self_attn.sinks"] = group["sinks"]
            for name in "qkvo":
                stored[f"{prefix}self_attn.{name}_proj.weight"] = group[name]
                stored[f"{prefix}self_attn.{name}_proj.bias"] = group[f"{name}_bias"]
        elif part == "moe":
            stored[f"{prefix}post_attention_layernorm.weight"] = group["norm"]
            stored[f"{prefix}mlp.router.weight"] = group["router"]
            stored[f"{prefix}mlp.router.bias"] = group["router_bias"]
            for name in ("gate_up", "down"):
                proj = f"{prefix}mlp.experts.{name}_proj"
                stored[f"{proj}_bias"] = group[f"{name}_bias"]
                if mxfp4:
                    stored[f"{proj}_blocks"] = group[name].blocks
                    stored[f"{proj}_scales"] = group[name].scales
                else:
                    stored[proj] = decode(group[name], group["norm"].dtype).transpose(0, 2, 1)
    return stored


def original_tensors(tensors):
    """By OpenAI's names, q, k and v fused."""
    stored = {
        "embedding.weight": tensors["embedding", None]["weight"],
        "norm.scale": tensors["head", None]["norm"],
        "unembedding.weight": tensors["head", None]["weight"],
    }
    for (part, layer), group in tensors.items():
        prefix = f"block.{layer}."
        if part == "attention":
            stored[f"{prefix}attn.norm.scale"] = group["norm"]
            stored[f"{prefix}attn.sinks"] = group["sinks"]
            stored[f"{prefix}attn.qkv.weight"] = np.concatenate([group[name] for name in "qkv"])
            stored[f"{prefix}attn.qkv.bias"] = np.concatenate(
                [group[f"{name}_bias"] for name in "qkv"]
            )
            stored[f"{prefix}attn.out.weight"] = group["o"]
            stored[f"{prefix}attn.out.bias"] = group["o_bias"]
        elif part == "moe":
            stored[f"{prefix}mlp.norm.scale"] = group["norm"]
            stored[f"{prefix}mlp.gate.weight"] = group["router"]
            stored[f"{prefix}mlp.gate.bias"] = group["router_bias"]
            for name, theirs in (("gate_up", "mlp1"), ("down", "mlp2")):
                stored[f"{prefix}mlp.{theirs}_bias"] = group[f"{name}_bias"]
                stored[f"{prefix}mlp.{theirs}_weight.blocks"] = group[name].blocks
                stored[f"{prefix}mlp.{theirs}_weight.scales"] = group[name].scales
    return stored


def original_config(config):
    """The keys of original/config.json; what that form cannot say must be as published."""
    even_slide = tuple(n % 2 == 0 for n in range(config.num_hidden_layers))
    context = config.rope.original_max_position_embeddings
    assert config.sliding_layers == even_slide
    assert config.max_position_embeddings == context * config.rope.factor
    assert (config.rms_norm_eps, config.swiglu_alpha) == (1e-5, 1.702)
    assert not config.rope.truncate
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": context,
        "rope_theta": config.rope.theta,
        "rope_scaling_factor": config.rope.factor,
        "rope_ntk_alpha": config.rope.beta_slow,
        "rope_ntk_beta": config.rope.beta_fast,
    }


def save_shards(folder, stored, shards, pattern="model-{:05}-of-{:05}.safetensors", index=True):
    """Write tensors, dealt out in order; more than one file has an index."""
    stored = {name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = list(stored), {}
    for shard in range(shards):
        file = pattern.format(shard + 1, shards)
        dealt = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: stored[name] for name in dealt}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(dealt, file)
    if index:
        total_size = sum(tensor.nbytes for tensor in stored.values())
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total_size}, "weight_map": weight_map},
        )


def write_json(path, values):
    path.write_text(json.dumps(values, indent=2))


def random_checkpoint(
    folder, config=TINY, seed=0, layout=Layout.HF_MXFP4, *, shards=1, dtype=ml_dtypes.bfloat16
):
    """Write a random checkpoint and return its folder. The same seed gives the same values in every
    layout (`Layout` or its value), so that the models can be held against each other.
    """
    layout = Layout(layout)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(config, seed, dtype)
    if layout is Layout.ORIGINAL:
        write_json(folder / "config.json", original_config(config))
        pattern = "model--{:05}-of-{:05}.safetensors"
        save_shards(folder, original_tensors(tensors), shards, pattern, index=False)
        return folder
    mxfp4 = layout is Layout.HF_MXFP4
    generation = replace(GenerationConfig.of(config), do_sample=False)
    write_json(folder / "config.json", config.to_json(mxfp4=mxfp4))
    write_json(folder / "generation_config.json", generation.to_json())
    save_shards(folder, hugging_face_tensors(tensors, mxfp4=mxfp4), shards)
    return folder


def same_values(actual, expected):
    """Two canonical tensors hold the same numbers (MXFP4 and its decoded form included)."""
    actual, expected = (
        decode(t, np.float64) if isinstance(t, Mxfp4Tensor) else t.astype(np.float64)
        for t in (actual, expected)
    )
    return actual.shape == expected.shape and np.array_equal(actual, expected)
