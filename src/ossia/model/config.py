"""The hyper-parameters of a gpt-oss model, read from `config.json` in the Hugging Face or the
`original/` form, and its generation defaults, from `generation_config.json`.

The Hugging Face form comes in two dialects: `rope_scaling` and `rope_theta` (transformers 4, as
published) and `rope_parameters` (transformers 5). A value that ossia would not compute as meant is
an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ossia.errors import ConfigError
from ossia.kernels.interface import Dims
from ossia.model.json_fields import Fields, shown

MODEL_TYPE = "gpt_oss"
ARCHITECTURE = "GptOssForCausalLM"
_MAX_LAYERS = 10_000  # what a hostile file may make us allocate
_UNQUANTISED_MODULES = (
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
)
# Keys of the published config.json, or written by transformers, that change nothing in a forward
# pass: dropout and losses of training, notes of the writer, and the code's own settings.
_IRRELEVANT_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "initializer_range",
    "output_router_logits",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "_name_or_path",
)


@dataclass(frozen=True)
class RopeConfig:
    """YaRN constants; the defaults are those of both published models."""

    theta: float = 150000.0
    factor: float = 32.0
    """1 = plain rotary embedding."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position_embeddings: int = 4096
    truncate: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """One model. Field names are those of the Hugging Face config."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    sliding_window: int
    sliding_layers: tuple[bool, ...]
    """One per layer; in the published models the even layers slide."""
    max_position_embeddings: int
    rope: RopeConfig = RopeConfig()
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str) -> ModelConfig:
        """The configuration in a parsed config.json of either form; `source` names the file.

        Raises ConfigError: an unknown architecture, a field that is missing, mistyped or out of
        bounds, a value that ossia does not compute, or two fields that contradict each other.
        """
        fields = Fields(values, source)
        if is_original_form(values):
            return _from_original(fields)
        if not {"model_type", "architectures"} & set(values):
            raise ConfigError(
                f'{source}: expected the config.json of a gpt-oss model ("model_type": '
                f'"{MODEL_TYPE}", or the keys of its original/ form), got neither; '
                "point --model at such a model."
            )
        return _from_hugging_face(fields)

    def to_json(self, *, mxfp4: bool) -> dict[str, Any]:
        """The Hugging Face form, with the keys of the published files (transformers 4.55 and later
        read it). `mxfp4` says whether the tensors beside it hold MXFP4 experts.
        """
        rope, eos = self.rope, list(self.eos_token_ids)
        values: dict[str, Any] = {
            "architectures": [ARCHITECTURE],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "experts_per_token": self.num_experts_per_tok,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": rope.original_max_position_embeddings,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_types": [
                "sliding_attention" if sliding else "full_attention"
                for sliding in self.sliding_layers
            ],
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": MODEL_TYPE,
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_local_experts": self.num_local_experts,
            "output_router_logits": False,
            "pad_token_id": self.pad_token_id,
            "quantization_config": {
                "modules_to_not_convert": list(_UNQUANTISED_MODULES),
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": {
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_max_position_embeddings,
                "rope_type": "yarn",
                "truncate": rope.truncate,
            },
            "rope_theta": rope.theta,
            "router_aux_loss_coef": 0.9,
            "sliding_window": self.sliding_window,
            "swiglu_alpha": self.swiglu_alpha,
            "swiglu_limit": self.swiglu_limit,
            "tie_word_embeddings": False,
            "transformers_version": "4.55.0",
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        if not mxfp4:
            del values["quantization_config"]
        return values

    def dims(self) -> Dims:
        return Dims(
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            num_experts=self.num_local_experts,
            experts_per_token=self.num_experts_per_tok,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            rms_norm_eps=self.rms_norm_eps,
            swiglu_limit=self.swiglu_limit,
            swiglu_alpha=self.swiglu_alpha,
        )

    def windows(self) -> tuple[int | None, ...]:
        """Per layer: the sliding window, or None where attention is full."""
        return tuple(self.sliding_window if sliding else None for sliding in self.sliding_layers)

    def num_parameters(self) -> int:
        """All of them: 20,914,757,184 in gpt-oss-20b."""
        embedding = self.vocab_size * self.hidden_size
        return embedding + self._parameters_used(self.num_local_experts)

    def num_active_parameters(self) -> int:
        """Those that one token passes through, the input embedding not counted: 3,608,307,264 in
        gpt-oss-20b.
        """
        return self._parameters_used(self.num_experts_per_tok)

    def _parameters_used(self, experts: int) -> int:
        width, heads, d = self.hidden_size, self.num_attention_heads, self.head_dim
        q_width, kv_width = heads * d, self.num_key_value_heads * d
        projections_in = (q_width + 2 * kv_width) * (width + 1)
        attention = width + projections_in + width * (q_width + 1) + heads
        expert = 2 * self.intermediate_size * (width + 1) + width * (self.intermediate_size + 1)
        moe = width + self.num_local_experts * (width + 1) + experts * expert
        return self.num_hidden_layers * (attention + moe) + width + self.vocab_size * width

    def kv_bytes_per_token(self, itemsize: int = 2) -> int:
        """Keys and values of one token in all layers, in a cache of `itemsize` bytes a number."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize

    def kv_cache_bytes(self, num_tokens: int, itemsize: int = 2) -> int:
        """Of one sequence of `num_tokens`; a sliding layer keeps no more than its window."""
        per_layer = self.kv_bytes_per_token(itemsize) // self.num_hidden_layers
        kept = (min(num_tokens, window or num_tokens) for window in self.windows())
        return per_layer * sum(kept)


@dataclass(frozen=True)
class GenerationConfig:
    """What a model asks to be sampled with, as its generation_config.json says.

    A file that does not mention `do_sample` means sampling here, at temperature 1 and top-p 1 as
    OpenAI recommends for these models; transformers would take it to mean greedy.
    """

    eos_token_ids: tuple[int, ...] = ()
    """Generation ends at any of them. `<|end|>` closes a message, not the turn: it is never one."""
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    do_sample: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, config: ModelConfig) -> GenerationConfig:
        """The defaults where there is no generation_config.json."""
        return cls(eos_token_ids=config.eos_token_ids, pad_token_id=config.pad_token_id)

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], source: str, config: ModelConfig
    ) -> GenerationConfig:
        """Of a parsed generation_config.json; what it leaves out comes from `config` and the
        defaults. Raises ConfigError for a field that is mistyped or out of bounds.
        """
        fields, vocab = Fields(values, source), config.vocab_size
        eos = fields.token_ids("eos_token_id", vocab_size=vocab)
        return cls(
            eos_token_ids=eos or config.eos_token_ids,
            pad_token_id=fields.integer(
                "pad_token_id", default=config.pad_token_id, minimum=0, maximum=vocab - 1
            ),
            bos_token_id=fields.integer("bos_token_id", default=None, minimum=0, maximum=vocab - 1),
            do_sample=fields.boolean("do_sample", default=cls.do_sample),
            temperature=fields.number("temperature", default=cls.temperature, exclusive=False),
            top_p=fields.number("top_p", default=cls.top_p, maximum=1),
            top_k=fields.integer("top_k", default=cls.top_k, minimum=0),
            min_p=fields.number("min_p", default=cls.min_p, maximum=1, exclusive=False),
            repetition_penalty=fields.number("repetition_penalty", default=cls.repetition_penalty),
        )

    def to_json(self) -> dict[str, Any]:
        """The Hugging Face form, keys as `from_json` reads them."""
        values = asdict(self)
        values["eos_token_id"] = list(values.pop("eos_token_ids"))
        return dict(sorted((key, value) for key, value in values.items() if value is not None))


def is_original_form(values: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json has the keys of OpenAI's `original/` folder."""
    return "model_type" not in values and {"num_experts", "rope_scaling_factor"} <= set(values)


def is_mxfp4(values: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json of the Hugging Face form declares MXFP4 experts."""
    return values.get("quantization_config") is not None


def unrecognised_keys(values: Mapping[str, Any], source: str) -> list[str]:
    """Keys of a valid config.json that ossia does not know, and so does not act on."""
    fields = Fields(values, source)
    _from_original(fields) if is_original_form(values) else _from_hugging_face(fields)
    return [name for name in fields.unread() if name not in _IRRELEVANT_KEYS]


def _from_hugging_face(fields: Fields) -> ModelConfig:
    only_gpt_oss = "no other architecture is known to ossia"
    fields.constant("model_type", MODEL_TYPE, only_gpt_oss)
    fields.constant("architectures", [ARCHITECTURE], only_gpt_oss)
    fields.constant("hidden_act", "silu", "the activation is the published clamped SwiGLU")
    fields.constant("attention_bias", True, "q, k, v and o have biases")
    fields.constant("tie_word_embeddings", False, "embedding and unembedding are two tensors")
    quantization = fields.object("quantization_config")
    if quantization is not None and quantization.get("quant_method") != "mxfp4":
        quantization.refuse("quant_method", '"mxfp4"', "take the model as published, or as bf16")

    layers = fields.integer("num_hidden_layers", maximum=_MAX_LAYERS)
    max_positions = fields.integer("max_position_embeddings")
    rope = _rope_of_hugging_face(fields)
    _check_alias(fields, "num_experts_per_tok", "experts_per_token")
    _check_alias(fields, "num_local_experts", "num_experts")
    initial = fields.integer("initial_context_length", default=None)
    if initial not in (None, rope.original_max_position_embeddings):
        fields.refuse(
            "initial_context_length",
            f"{rope.original_max_position_embeddings}, the rope's original_max_position_embeddings",
        )
    vocab = fields.integer("vocab_size")
    config = ModelConfig(
        num_hidden_layers=layers,
        **_common_fields(fields),
        num_local_experts=fields.integer("num_local_experts"),
        num_experts_per_tok=fields.integer("num_experts_per_tok"),
        vocab_size=vocab,
        sliding_layers=_sliding_layers(fields, layers),
        max_position_embeddings=max_positions,
        rope=rope,
        rms_norm_eps=fields.number("rms_norm_eps"),
        swiglu_limit=fields.number("swiglu_limit", default=ModelConfig.swiglu_limit),
        swiglu_alpha=fields.number("swiglu_alpha", default=ModelConfig.swiglu_alpha),
        eos_token_ids=fields.token_ids("eos_token_id", vocab_size=vocab),
        pad_token_id=fields.integer("pad_token_id", default=None, minimum=0, maximum=vocab - 1),
    )
    _check_sizes(fields, config, "num_experts_per_tok", "num_local_experts")
    return config


def _from_original(fields: Fields) -> ModelConfig:
    layers = fields.integer("num_hidden_layers", maximum=_MAX_LAYERS)
    context = fields.integer("initial_context_length")
    factor = fields.number(
        "rope_scaling_factor", minimum=1, maximum=(2**31 - 1) // context, exclusive=False
    )
    config = ModelConfig(
        num_hidden_layers=layers,
        **_common_fields(fields),
        num_local_experts=fields.integer("num_experts"),
        num_experts_per_tok=fields.integer("experts_per_token"),
        vocab_size=fields.integer("vocab_size"),
        sliding_layers=_even_layers_slide(layers),
        max_position_embeddings=int(context * factor),
        rope=RopeConfig(
            theta=fields.number("rope_theta", minimum=1),
            factor=factor,
            beta_fast=fields.number("rope_ntk_beta"),
            beta_slow=fields.number("rope_ntk_alpha"),
            original_max_position_embeddings=context,
            truncate=False,
        ),
        swiglu_limit=fields.number("swiglu_limit", default=ModelConfig.swiglu_limit),
    )
    _check_sizes(fields, config, "experts_per_token", "num_experts")
    return config


def _common_fields(fields: Fields) -> dict[str, Any]:
    """Those that both forms name alike."""
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
    )
    return {name: fields.integer(name) for name in names}


def _check_sizes(fields: Fields, config: ModelConfig, per_token: str, experts: str) -> None:
    if config.num_attention_heads % config.num_key_value_heads:
        heads = config.num_attention_heads
        fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if config.head_dim % 2:
        fields.refuse("head_dim", "even, for the rotary embedding turns pairs")
    if config.num_experts_per_tok > config.num_local_experts:
        fields.refuse(per_token, f"at most {experts} ({config.num_local_experts})")


def _check_alias(fields: Fields, name: str, alias: str) -> None:
    """Two names of one value, of which the published files carry both."""
    value = fields.get(name)
    if fields.get(alias) not in (None, value):
        fields.refuse(alias, f"{shown(value)}, as {name} says")


def _even_layers_slide(layers: int) -> tuple[bool, ...]:
    return tuple(n % 2 == 0 for n in range(layers))


def _sliding_layers(fields: Fields, layers: int) -> tuple[bool, ...]:
    types = fields.get("layer_types")
    if types is None:
        return _even_layers_slide(layers)
    known = ("sliding_attention", "full_attention")
    if not isinstance(types, list) or any(kind not in known for kind in types):
        fields.refuse("layer_types", f"a list of {shown(known[0])} and {shown(known[1])}")
    if len(types) != layers:
        fields.refuse("layer_types", f"{layers} entries, as num_hidden_layers says")
    return tuple(kind == known[0] for kind in types)


def _rope_of_hugging_face(fields: Fields) -> RopeConfig:
    theta = fields.number("rope_theta", default=None, minimum=1)
    found = {
        name: _rope(part, theta, fields)
        for name in ("rope_parameters", "rope_scaling")
        if (part := fields.object(name)) is not None
    }
    if not found:
        fields.refuse("rope_parameters", "an object, or rope_scaling beside rope_theta")
    if len(set(found.values())) > 1:
        fields.refuse("rope_scaling", "absent, or equal to rope_parameters")
    return next(iter(found.values()))


def _rope(part: Fields, outer_theta: float | None, fields: Fields) -> RopeConfig:
    kind = part.get("rope_type") or part.get("type")
    part.get("type")  # the name of transformers < 4.43; some writers keep both
    if kind not in ("yarn", "default"):
        part.refuse("rope_type", '"yarn" or "default"', "ossia runs gpt-oss models as published")
    theta = part.number("rope_theta", default=outer_theta, minimum=1)
    if theta is None:
        part.refuse("rope_theta", "a number above 1")
    if outer_theta not in (None, theta):
        fields.refuse("rope_theta", f"{theta:g}, as inside rope_parameters")
    if kind == "default":
        rope = RopeConfig(
            theta=theta,
            factor=1.0,
            original_max_position_embeddings=fields.integer("max_position_embeddings"),
        )
    else:
        rope = RopeConfig(
            theta=theta,
            factor=part.number("factor", minimum=1, exclusive=False),
            beta_fast=part.number("beta_fast", default=32.0),
            beta_slow=part.number("beta_slow", default=1.0),
            original_max_position_embeddings=part.integer("original_max_position_embeddings"),
            truncate=part.boolean("truncate", default=True),  # transformers' default
        )
    for name in part.unread():  # mscale, attention_factor, partial_rotary_factor, …: all matter
        if part.get(name) is not None:
            part.refuse(name, "absent: ossia computes the published YaRN alone")
    return rope
