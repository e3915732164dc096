"""Random models as transformers' own `GptOssForCausalLM`: the independent implementation."""

from __future__ import annotations

import numpy as np

from ossia.kernels.interface import HostTensor, Part
from ossia.kernels.mxfp4 import Mxfp4Tensor, decode
from ossia.model.config import ModelConfig
from ossia.model.selftest import RandomModel


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


def transformers_config(config: ModelConfig):
    """The same configuration as transformers', eager attention."""
    from transformers import GptOssConfig

    rope = config.rope
    return GptOssConfig(
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


def transformers_model(model: RandomModel):
    """`GptOssForCausalLM` in float32 with the values of `model`."""
    import torch
    from transformers import GptOssForCausalLM

    theirs = transformers_config(model.config)
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
    for n in range(model.config.num_hidden_layers):
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
