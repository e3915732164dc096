"""One random model in the published shapes, as safetensors for Ossia and as GGUF for llama.cpp, to
measure both on the same values.

    python benchmarks/random_model.py --folder models [--shape 20b] [--layers 24] \
        [--llama-python PYTHON]

Speed does not depend on what the weights are, as long as activations stay finite and the router
spreads its tokens: variances are those of a fresh network. The GGUF is made from the safetensors by
benchmarks/gguf_model.py, which needs the package `gguf`, in the interpreter of --llama-python.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from ossia.errors import OssiaError, UsageError
from ossia.kernels.interface import HostTensor, Part, part_shapes
from ossia.kernels.mxfp4 import BLOCK_SIZE, E2M1_VALUES, Mxfp4Tensor
from ossia.model.config import ModelConfig
from ossia.model.writer import write_checkpoint

_20B = ModelConfig(
    num_hidden_layers=24,
    hidden_size=2880,
    intermediate_size=2880,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201088,
    sliding_window=128,
    sliding_layers=(True, False) * 12,
    max_position_embeddings=131072,
)
SHAPES = {
    "20b": _20B,
    "120b": replace(
        _20B, num_hidden_layers=36, sliding_layers=(True, False) * 18, num_local_experts=128
    ),
}
"""Those of the published models."""

_BIAS_DEVIATION = 0.1
_CHUNK = 1 << 22  # numbers drawn at a time: 16 MiB of float32
_SCALE_STEPS = np.array([-2] * 3 + [-1] * 7 + [0] * 5 + [1], np.int16)
"""Exponents of the shared scales around their centre, equally likely; with a centre of 2^-7 (2,880
columns: bytes 118 to 121) the variance of a product comes to 1.03."""


def shape_config(shape: str, layers: int | None = None) -> ModelConfig:
    """The configuration of a published shape, or of its first `layers` layers."""
    if shape not in SHAPES:
        raise UsageError(f"--shape takes one of {', '.join(SHAPES)}; got {shape!r}.")
    config = SHAPES[shape]
    layers = config.num_hidden_layers if layers is None else layers
    if not 1 <= layers <= config.num_hidden_layers:
        raise UsageError(
            f"--layers takes 1 to {config.num_hidden_layers} for {shape}; got {layers}."
        )
    return replace(config, num_hidden_layers=layers, sliding_layers=config.sliding_layers[:layers])


@dataclass(frozen=True)
class RandomTensors:
    """The tensors of a random model, the same for the same seed, drawn whenever they are asked for:
    one part is in memory at a time.
    """

    config: ModelConfig
    seed: int = 0

    def part(self, part: Part, layer: int | None) -> dict[str, HostTensor]:
        """A `PartSource`: experts in MXFP4, everything else in bfloat16."""
        rng = np.random.default_rng((self.seed, list(Part).index(part), (layer or 0) + 1))
        return {
            name: self._tensor(rng, part, name, shape)
            for name, shape in part_shapes(part, self.config.dims()).items()
        }

    def _tensor(
        self, rng: np.random.Generator, part: Part, name: str, shape: tuple[int, ...]
    ) -> HostTensor:
        if name in ("gate_up", "down"):
            return _mxfp4(rng, shape)
        if name == "norm":
            return _normal(rng, shape, mean=1.0, deviation=_BIAS_DEVIATION)
        if name.endswith("_bias"):
            return _normal(rng, shape, deviation=_BIAS_DEVIATION)
        if name == "sinks" or part is Part.EMBEDDING:
            return _normal(rng, shape, deviation=1.0)
        return _normal(rng, shape, deviation=1 / math.sqrt(shape[-1]))


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], *, mean: float = 0.0, deviation: float
) -> np.ndarray:
    values = np.empty(math.prod(shape), ml_dtypes.bfloat16)
    for at in range(0, len(values), _CHUNK):
        part = values[at : at + _CHUNK]
        part[:] = mean + deviation * rng.standard_normal(len(part), np.float32)
    return values.reshape(shape)


def _mxfp4(rng: np.random.Generator, shape: tuple[int, ...]) -> Mxfp4Tensor:
    """Values of mean 0 and, but for the rounding of the scales to powers of two, variance
    1 / columns."""
    rms = math.sqrt(sum(value**2 for value in E2M1_VALUES) / len(E2M1_VALUES))
    centre = 127 + round(math.log2(1 / math.sqrt(shape[-1]) / rms))
    groups = (*shape[:-1], shape[-1] // BLOCK_SIZE)
    steps = rng.integers(0, len(_SCALE_STEPS), groups, np.uint8)
    return Mxfp4Tensor(
        blocks=rng.integers(0, 256, (*groups, BLOCK_SIZE // 2), np.uint8),
        scales=(centre + _SCALE_STEPS).astype(np.uint8)[steps],
    )


@dataclass(frozen=True)
class ModelFiles:
    """Where the two forms of one random model lie, or will."""

    folder: Path
    shape: str
    layers: int

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.shape}-{self.layers}-layers"

    @property
    def gguf(self) -> Path:
        return self.checkpoint.with_suffix(".gguf")


def ensure_checkpoint(
    files: ModelFiles, *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The safetensors, written unless they are there. Raises CheckpointError, as on a full disk."""
    if not files.checkpoint.exists():
        config = shape_config(files.shape, files.layers)
        write_checkpoint(files.checkpoint, config, RandomTensors(config).part, progress=progress)
    return files.checkpoint


def ensure_gguf(files: ModelFiles, python: str) -> Path:
    """The GGUF, made from the safetensors unless it is there, by the interpreter `python`, which
    has `gguf`. Raises UsageError when that fails; its standard error has said why.
    """
    if not files.gguf.exists():
        script = Path(__file__).with_name("gguf_model.py")
        command = [python, str(script), str(files.checkpoint), str(files.gguf)]
        try:
            status = subprocess.run(command, check=False).returncode
        except OSError as failure:
            raise UsageError(
                f"--llama-python {python}: cannot be run ({failure.strerror}); name a Python "
                "interpreter that has gguf and numpy."
            ) from failure
        if status:
            raise UsageError(f"{files.gguf}: was not written; the line above says why.")
    return files.gguf


def progress_line(what: str) -> Callable[[int, int], None]:
    """A callback that keeps one line of the terminal up to date."""
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        seconds = time.monotonic() - start
        end = "\n" if done == total else ""
        print(f"\r{what}: {done} of {total} parts, {seconds:.0f} s", end=end, flush=True)

    return show


def _sizes(files: ModelFiles) -> Iterator[str]:
    for path in (files.checkpoint, files.gguf):
        found = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if found:
            yield f"{path}: {sum(file.stat().st_size for file in found):,} bytes"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the models are kept")
    parser.add_argument("--shape", default="20b", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, help="only so many, for a quick run")
    parser.add_argument("--llama-python", help="an interpreter with gguf: write the GGUF as well")
    options = parser.parse_args()
    try:
        config = shape_config(options.shape, options.layers)
        files = ModelFiles(options.folder, options.shape, config.num_hidden_layers)
        ensure_checkpoint(files, progress=progress_line(files.checkpoint.name))
        if options.llama_python:
            ensure_gguf(files, options.llama_python)
    except OssiaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in _sizes(files):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
