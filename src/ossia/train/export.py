"""Trained parameters into a model folder in the Hugging Face layout: experts as MXFP4, the rest in
bfloat16, the tokenizer beside them, and `ossia.json` with what the model calls itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.interface import Part
from ossia.kernels.torch import TorchKernels
from ossia.model.checkpoint import open_checkpoint
from ossia.model.config import GenerationConfig
from ossia.model.inputs import ForwardInput
from ossia.model.transformer import Architecture, PartSource, forward, prepare_weights
from ossia.model.writer import write_checkpoint
from ossia.train.parameters import EXPERTS, Parameters

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CARD = "ossia.json"


@dataclass(frozen=True)
class Fidelity:
    """How near the exported model is to the trained one, on the same tokens.

    KL in nats per token, from the trained model's distribution to the exported one's.
    """

    tokens: int
    kl_rounded: float
    """The trained model as its last stage ran: on rounded weights."""
    kl_unrounded: float
    """The weights that the optimizer holds, before rounding: what rounding costs."""
    largest_difference: float
    """Of any logit, to the model as its last stage ran."""


def export_model(
    parameters: Parameters,
    folder: Path,
    *,
    tokenizer_folder: Path,
    model_identity: str,
    description: str,
    sample: ForwardInput,
) -> Fidelity:
    """Write the model to `folder`, which must not exist or be empty; read it back, and compare it
    on `sample` with what was trained.

    It samples greedily by default, and ends its turn at `<|return|>`, `<|endoftext|>` and
    `<|call|>`.
    """
    control = Tokenizer.load(tokenizer_folder).control
    config = replace(
        parameters.config,
        eos_token_ids=(control.return_,),
        pad_token_id=control.endoftext,
    )
    generation = GenerationConfig(
        eos_token_ids=(control.return_, control.endoftext, control.call),
        pad_token_id=control.endoftext,
        bos_token_id=control.startoftext,
        do_sample=False,
    )
    card = tokenizer_folder / CARD
    text = json.dumps({"model_identity": model_identity, "description": description}, indent=2)
    card.write_text(text + "\n")
    write_checkpoint(
        folder,
        config,
        host_source(parameters),
        generation=generation,
        beside=[*(tokenizer_folder / name for name in TOKENIZER_FILES), card],
    )
    return measure_fidelity(parameters, folder, sample)


def measure_fidelity(parameters: Parameters, folder: Path, sample: ForwardInput) -> Fidelity:
    """Compare the model in `folder` with the parameters that it was made of."""
    architecture = Architecture.of(parameters.config)
    kernels = TorchKernels()

    @torch.no_grad()
    def logits(source: PartSource) -> Tensor:
        weights = prepare_weights(architecture, kernels, source)
        return forward(architecture, kernels, weights, sample)

    def kl(trained: Tensor, exported: Tensor) -> float:
        found = F.kl_div(
            exported.log_softmax(-1), trained.log_softmax(-1), reduction="sum", log_target=True
        )
        return max(0.0, found.item() / len(trained))  # rounding may give −1e-9

    exported = logits(open_checkpoint(folder).part)
    trained = logits(parameters.source(rounded=True))
    return Fidelity(
        tokens=len(trained),
        kl_rounded=kl(trained, exported),
        kl_unrounded=kl(logits(parameters.source()), exported),
        largest_difference=(trained - exported).abs().max().item(),
    )


def host_source(parameters: Parameters) -> PartSource:
    """The parameters as numpy arrays: experts in float32, for MXFP4 is rounded to from there, and
    everything else in bfloat16."""
    source = parameters.source()

    def tensors(part: Part, layer: int | None) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, value in source(part, layer).items():
            assert isinstance(value, torch.Tensor)
            array = value.detach().cpu().numpy()
            found[name] = array if name in EXPERTS else array.astype(ml_dtypes.bfloat16)
        return found

    return tensors  # type: ignore[return-value]  # dict is invariant in its values
