"""The trainable tensors of a model, under the names of `kernels.interface.Part`, and their initial
values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ossia.kernels.interface import HostTensor, Part, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor, decode
from ossia.model.checkpoint import Checkpoint
from ossia.model.config import ModelConfig
from ossia.model.names import parts
from ossia.model.rope import yarn
from ossia.model.transformer import PartSource
from ossia.train.quantize import fake_bfloat16, fake_quantize

MATRICES = ("q", "k", "v", "o", "gate_up", "down")
EXPERTS = ("gate_up", "down")
"""What the export writes as MXFP4."""


class Parameters:
    """Leaf tensors in float32, by `part.layer.name`."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.tensors = dict(tensors)

    @classmethod
    def initial(cls, config: ModelConfig, seed: int) -> Parameters:
        """Unit-variance activations; what writes into the residual stream starts at zero, so that
        every layer begins as the identity. Heads of sliding layers begin with a liking for a place
        (`looking_back`)."""
        generator = torch.Generator().manual_seed(seed)

        def value(part: Part, name: str, shape: tuple[int, ...]) -> Tensor:
            if name == "norm":
                return torch.ones(shape)
            if len(shape) == 1 or name.endswith("bias") or name in ("o", "down"):
                return torch.zeros(shape)
            drawn = torch.randn(shape, generator=generator)
            if part is Part.EMBEDDING:
                return drawn * 0.5
            return drawn * (0.02 if part is Part.HEAD or name == "router" else shape[-1] ** -0.5)

        shapes = {part: part_shapes(part, config.dims()) for part in Part}
        tensors = {
            _key(part, layer, name): value(part, name, shape)
            for part, layer in parts(config)
            for name, shape in shapes[part].items()
        }
        for layer, sliding in enumerate(config.sliding_layers):
            if sliding:
                q_bias, k_bias = looking_back(config)
                tensors[_key(Part.ATTENTION, layer, "q_bias")] = q_bias
                tensors[_key(Part.ATTENTION, layer, "k_bias")] = k_bias
        return cls(config, {key: value.requires_grad_() for key, value in tensors.items()})

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, config: ModelConfig) -> Parameters:
        """A model's weights, decoded to float32."""

        def value(array: HostTensor) -> Tensor:
            decoded = decode(array) if isinstance(array, Mxfp4Tensor) else array
            return torch.from_numpy(np.array(decoded, np.float32)).requires_grad_()

        return cls(
            config,
            {
                _key(part, layer, name): value(array)
                for part, layer in parts(config)
                for name, array in checkpoint.part(part, layer).items()
            },
        )

    def source(self, *, rounded: bool = False) -> PartSource:
        """The tensors by part, for `prepare_weights`; `rounded` as the export will write them."""
        names = {part: tuple(part_shapes(part, self.config.dims())) for part in Part}

        def tensors(part: Part, layer: int | None) -> dict[str, Tensor]:
            found = {name: self.tensors[_key(part, layer, name)] for name in names[part]}
            if not rounded:
                return found
            return {
                name: fake_quantize(value) if name in EXPERTS else fake_bfloat16(value)
                for name, value in found.items()
            }

        return tensors  # type: ignore[return-value]  # TorchKernels takes torch tensors as well

    def matrices(self) -> list[Tensor]:
        return [value for key, value in self.tensors.items() if _name(key) in MATRICES]

    def others(self) -> list[Tensor]:
        return [value for key, value in self.tensors.items() if _name(key) not in MATRICES]


LIKING = 4.0
"""Of a head for its place, in each of `LIKING_PAIRS` pairs of dimensions: enough for most of the
attention, little enough to be unlearnt."""
LIKING_PAIRS = 8


def looking_back(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Biases of q [H · d] and k [K · d] by which head h attends to the key h mod 4 places back.

    Rotated by its position p, the key's bias points at p·ω in each pair of dimensions, and the
    query's at (p − h)·ω: their product Σ cos((p_q − p_k − h)·ω) is greatest where p_k = p_q − h.
    The token before is half of what induction needs, and takes far longer to find from random
    weights (benchmarks/LOG.md).
    """
    dims, half = config.dims(), config.head_dim // 2
    frequencies = torch.tensor(yarn(config.rope, config.head_dim).inv_freq[:LIKING_PAIRS])
    q, k = torch.zeros(dims.num_heads, 2, half), torch.zeros(dims.num_kv_heads, 2, half)
    back = torch.arange(dims.num_heads)[:, None] % 4 * frequencies
    q[:, 0, :LIKING_PAIRS], q[:, 1, :LIKING_PAIRS] = LIKING * back.cos(), -LIKING * back.sin()
    k[:, 0, :LIKING_PAIRS] = LIKING
    return q.flatten(), k.flatten()


def _key(part: Part, layer: int | None, name: str) -> str:
    return f"{part.value}.{name}" if layer is None else f"{part.value}.{layer}.{name}"


def layer_of(key: str) -> int | None:
    """None for the embedding and the head."""
    middle = key.split(".")[1:-1]
    return int(middle[0]) if middle else None


def _name(key: str) -> str:
    return key.rpartition(".")[2]
