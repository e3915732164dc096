"""Trained parameters into a model folder in the Hugging Face layout: experts as MXFP4, the rest in
bfloat16, the tokenizer beside them, and `ossia.json` with what the model calls itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.interface import Part
from ossia.model.config import GenerationConfig
from ossia.model.transformer import PartSource
from ossia.model.writer import write_checkpoint
from ossia.train.parameters import EXPERTS, Parameters

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
CARD = "ossia.json"


def export_model(
    parameters: Parameters,
    folder: Path,
    *,
    tokenizer_folder: Path,
    model_identity: str,
    description: str,
) -> Path:
    """Write the model to `folder`, which must not exist or be empty.

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
    return write_checkpoint(
        folder,
        config,
        host_source(parameters),
        generation=generation,
        beside=[*(tokenizer_folder / name for name in TOKENIZER_FILES), card],
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
