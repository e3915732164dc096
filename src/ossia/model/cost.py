"""What a forward step has to read and to multiply, from the shapes alone: the two limits that speed
is measured against.

Only what cannot be avoided is counted: every weight that a step needs once, however many tokens use
it, and the keys and values that its tokens see. Activations stay in the caches and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from ossia.model.config import ModelConfig

FLOAT_PRICE = 4
"""int8 multiply-adds that take the time of one in float32: a vector register holds four times as
many of them, and both kinds of instruction issue at the same rate."""


class WeightFormat(Enum):
    """How a matrix lies in memory."""

    MXFP4 = "mxfp4"
    """As published: blocks of 32 columns in 16 bytes, and one of scale."""
    INT8 = "int8"
    """The native kernels' panels of 16 rows: 32 columns in 32 bytes and two of scale, in pairs."""
    BF16 = "bf16"
    F32 = "f32"

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Of one matrix, padding included."""
        match self:
            case WeightFormat.MXFP4:
                return rows * _ceil(cols, 32) * 17
            case WeightFormat.INT8:  # csrc/op_table.h, PanelBytes
                return _ceil(rows, 16) * _ceil(cols, 64) * 2 * 16 * (32 + 2)
            case WeightFormat.BF16:
                return rows * cols * 2
            case WeightFormat.F32:
                return rows * cols * 4


@dataclass(frozen=True)
class WeightFormats:
    """Of a prepared model. Norms, biases and sinks are float32."""

    dense: WeightFormat = WeightFormat.INT8
    """q, k, v, o and the head."""
    experts: WeightFormat = WeightFormat.MXFP4
    router: WeightFormat = WeightFormat.BF16


@dataclass(frozen=True)
class StepCost:
    """Of one step. Bytes and multiply-adds."""

    dense_bytes: int
    """Attention projections, routers and what is small, of all layers."""
    head_bytes: int
    expert_bytes: int
    kv_bytes: int
    product_multiply_adds: int
    """Of the layers' matrix products, int8 unless the kernels are exact."""
    head_multiply_adds: int
    attention_multiply_adds: int
    """Scores and values, in float32."""

    @property
    def read_bytes(self) -> int:
        return self.dense_bytes + self.head_bytes + self.expert_bytes + self.kv_bytes

    @property
    def int8_multiply_adds(self) -> int:
        """All of them, those in float32 at their price."""
        products = self.product_multiply_adds + self.head_multiply_adds
        return products + FLOAT_PRICE * self.attention_multiply_adds


def step_cost(
    config: ModelConfig,
    chunks: Iterable[tuple[int, int]],
    *,
    logit_rows: int,
    formats: WeightFormats | None = None,
    kv_itemsize: int = 2,
    experts_read: float | None = None,
) -> StepCost:
    """Of a step that advances one sequence per chunk, (first position, number of tokens), and gives
    logits of `logit_rows` of its tokens.

    `experts_read`: how many experts got a token, over all layers, where that is known; else what
    comes out on average if every token picks its experts at random.
    """
    formats = formats or WeightFormats()
    chunks = list(chunks)
    tokens = sum(count for _, count in chunks)
    if experts_read is None:
        experts_read = config.num_hidden_layers * expected_experts(config, tokens)
    seen = _KeysSeen.of(config, chunks)
    width, inner = config.hidden_size, config.intermediate_size
    q_width = config.num_attention_heads * config.head_dim
    expert = 3 * inner * width
    router = config.num_local_experts * width
    projections = sum(rows * cols for rows, cols in _projections(config))
    per_token = projections + router + config.num_experts_per_tok * expert
    head = config.vocab_size * width
    return StepCost(
        dense_bytes=config.num_hidden_layers * _dense_layer_bytes(config, formats),
        head_bytes=formats.dense.matrix_bytes(config.vocab_size, width) + 4 * width
        if logit_rows
        else 0,
        expert_bytes=round(experts_read * expert_bytes(config, formats)),
        kv_bytes=seen.read * 2 * config.num_key_value_heads * config.head_dim * kv_itemsize,
        product_multiply_adds=tokens * config.num_hidden_layers * per_token,
        head_multiply_adds=logit_rows * head,
        attention_multiply_adds=seen.pairs * 2 * q_width,
    )


def expert_bytes(config: ModelConfig, formats: WeightFormats | None = None) -> int:
    """Of one expert of one layer, with its biases."""
    form = (formats or WeightFormats()).experts
    width, inner = config.hidden_size, config.intermediate_size
    biases = 4 * (2 * inner + width)
    return form.matrix_bytes(2 * inner, width) + form.matrix_bytes(width, inner) + biases


def expected_experts(config: ModelConfig, tokens: int) -> float:
    """How many experts of a layer get a token if each token picks at random."""
    experts = config.num_local_experts
    return experts * (1 - (1 - config.num_experts_per_tok / experts) ** tokens)


def _projections(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of q, k, v and o."""
    width, d = config.hidden_size, config.head_dim
    q_width, kv_width = config.num_attention_heads * d, config.num_key_value_heads * d
    return ((q_width, width), (kv_width, width), (kv_width, width), (width, q_width))


def _dense_layer_bytes(config: ModelConfig, formats: WeightFormats) -> int:
    projections = _projections(config)
    biases = sum(rows for rows, _ in projections)
    vectors = 2 * config.hidden_size + config.num_attention_heads + config.num_local_experts
    return (
        sum(formats.dense.matrix_bytes(rows, cols) for rows, cols in projections)
        + formats.router.matrix_bytes(config.num_local_experts, config.hidden_size)
        + 4 * (biases + vectors)
    )


@dataclass(frozen=True)
class _KeysSeen:
    """Over all layers and sequences."""

    read: int
    """Keys of which at least one token of the step sees something."""
    pairs: int
    """Of a token and a key that it sees."""

    @classmethod
    def of(cls, config: ModelConfig, chunks: list[tuple[int, int]]) -> _KeysSeen:
        read = pairs = 0
        for window in config.windows():
            for start, count in chunks:
                end = start + count
                reach = end if window is None else window  # keys that a token sees at most
                read += min(end, count + reach - 1)
                # Token p sees min(p + 1, reach) keys: a triangle up to `reach`, level beyond.
                below = range(start, min(end, reach))
                pairs += sum(below) + len(below) + (count - len(below)) * reach
        return cls(read, pairs)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
