"""Checkpoints of any size without their bytes: a whole header over a file of holes."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from ossia.model.config import ModelConfig
from ossia.model.names import Layout, expected_tensors


def sparse_checkpoint(
    folder: Path, config: ModelConfig, layout: Layout = Layout.HF_MXFP4, *, dtype: str = "BF16"
) -> Path:
    """A folder that opens as a checkpoint, whose tensors are all zero and take no disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(mxfp4=layout is Layout.HF_MXFP4)))
    header, end = {}, 0
    for name, tensor in expected_tensors(config, layout).items():
        kind = "U8" if tensor.dtypes == ("U8",) else dtype
        size = math.prod(tensor.shape) * {"U8": 1, "BF16": 2, "F32": 4}[kind]
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)  # as every writer aligns it
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)
    return folder
