"""A checkpoint folder, checked as a whole before any work starts, and its tensors by canonical part
as read-only views of the mapped files.

Three layouts (`names.Layout`): Hugging Face with MXFP4 or with dequantised experts, and OpenAI's
`original/`. Whatever is missing, extra, misshapen, mistyped, overlapping, truncated or at odds with
config.json is named, file and tensor; `survey` finds all of it, `open_checkpoint` raises the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ossia.errors import CheckpointError, ConfigError, ModelNotFoundError, OssiaError
from ossia.kernels.interface import HostTensor, Part, part_shapes
from ossia.kernels.mxfp4 import BLOCK_SIZE, Mxfp4Tensor
from ossia.model.config import (
    GenerationConfig,
    ModelConfig,
    is_mxfp4,
    is_original_form,
    unrecognised_keys,
)
from ossia.model.json_fields import read_object, shown
from ossia.model.names import NAMES, Expected, Form, Layout, expected_tensors
from ossia.model.safetensors import Header, SafetensorsFile, read_header

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FETCH = "fetch the checkpoint again"
_FILE_NAME = re.compile(r"[\w. -]+\.safetensors", re.ASCII)
_SHARD_NUMBER = re.compile(r"-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class Survey:
    """What a folder holds and everything that is wrong with it."""

    folder: Path
    """The one with config.json in it: `original/` where only that is there."""
    config: ModelConfig | None
    generation: GenerationConfig | None
    layout: Layout | None
    headers: tuple[Header, ...]
    """Of the files whose header can be read, by name."""
    problems: tuple[OssiaError, ...]
    """ConfigErrors and CheckpointErrors; empty = the checkpoint can be opened."""
    unrecognised: tuple[str, ...] = ()
    """Keys of config.json that ossia does not know, and so does not act on."""

    @property
    def total_bytes(self) -> int:
        """Of all tensors that could be found."""
        return sum(tensor.nbytes for header in self.headers for tensor in header.tensors.values())


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; `part` is a `transformer.PartSource`."""

    folder: Path
    layout: Layout
    config: ModelConfig
    generation: GenerationConfig
    files: Mapping[str, SafetensorsFile]
    """The file of every tensor, by the tensor's name in it."""

    @property
    def total_bytes(self) -> int:
        """Of all tensors."""
        return sum(file.tensors[name].nbytes for name, file in self.files.items())

    def part(self, part: Part, layer: int | None) -> dict[str, HostTensor]:
        """The tensors of a part under the names and in the orientation that `Part` documents.

        All are read-only views: slices of a fused tensor, transposes, MXFP4 in place. Only without
        mmap are they in memory, read anew by each call.
        """
        shapes = part_shapes(part, self.config.dims())
        rows_taken: dict[str, int] = {}
        tensors: dict[str, HostTensor] = {}
        for key, stored in NAMES[self.layout][part].items():
            name = stored.name.format(layer)
            match stored.form:
                case Form.PLAIN:
                    tensors[key] = self._array(name)
                case Form.TRANSPOSED:
                    tensors[key] = self._array(name).swapaxes(-1, -2)
                case Form.FUSED:
                    begin = rows_taken.get(name, 0)
                    rows_taken[name] = begin + shapes[key][0]
                    tensors[key] = self._array(name)[begin : rows_taken[name]]
                case Form.MXFP4:
                    tensors[key] = Mxfp4Tensor(
                        blocks=self._array(name), scales=self._array(stored.scales.format(layer))
                    )
        return tensors

    def _array(self, name: str) -> np.ndarray:
        return self.files[name].array(name)


def open_checkpoint(path: str | Path, *, use_mmap: bool = True) -> Checkpoint:
    """Check everything about a checkpoint but the values of its tensors, and open it.

    With `use_mmap` the files must stay as they are while the checkpoint is in use: a file truncated
    meanwhile kills the process (SIGBUS).

    Raises ModelNotFoundError when `path` is no checkpoint's folder, else ConfigError or
    CheckpointError for the first problem found.
    """
    found = survey(path)
    if found.problems:
        first, more = found.problems[0], len(found.problems) - 1
        note = f" ({more} more: `ossia inspect {path}` lists them all.)" if more else ""
        raise type(first)(f"{first}{note}")
    assert found.config is not None and found.generation is not None and found.layout is not None
    opened = [SafetensorsFile(header, use_mmap=use_mmap) for header in found.headers]
    return Checkpoint(
        folder=found.folder,
        layout=found.layout,
        config=found.config,
        generation=found.generation,
        files={name: file for file in opened for name in file.tensors},
    )


def survey(path: str | Path) -> Survey:
    """Read configuration and headers, and note everything wrong with them.

    Raises ModelNotFoundError when `path` is no checkpoint's folder; nothing else.
    """
    folder = _checkpoint_folder(Path(path))
    problems: list[OssiaError] = []
    values: dict[str, Any] = {}
    config = generation = None
    unrecognised: tuple[str, ...] = ()
    try:
        values = read_object(folder / CONFIG, ConfigError)
        config = ModelConfig.from_json(values, str(folder / CONFIG))
        unrecognised = tuple(unrecognised_keys(values, str(folder / CONFIG)))
        generation = _generation_config(folder, config)
    except ConfigError as error:
        problems.append(error)

    files = _weight_files(folder, index_needed=bool(values) and not is_original_form(values))
    headers = _read_headers(files, problems)
    layout = _layout_of(headers, values)
    if config is not None:
        problems += _contradictions(folder, config, values, layout)
        problems += _tensor_problems(files, headers, expected_tensors(config, layout), config)
    if not problems:
        problems += _total_size_problem(files, headers)
    return Survey(
        folder, config, generation, layout, headers, tuple(problems), unrecognised=unrecognised
    )


def _checkpoint_folder(path: Path) -> Path:
    if not path.exists():
        raise ModelNotFoundError(f"{path}: there is no such folder.")
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: expected a checkpoint's folder, got a file.")
    if (path / CONFIG).exists() or any(path.glob("*.safetensors")):
        return path
    if (path / "original" / CONFIG).exists():
        return path / "original"
    raise ModelNotFoundError(
        f"{path}: expected a checkpoint's folder, but it holds neither {CONFIG} nor a "
        ".safetensors file; name the folder that does."
    )


def _generation_config(folder: Path, config: ModelConfig) -> GenerationConfig:
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return GenerationConfig.of(config)
    return GenerationConfig.from_json(read_object(path, ConfigError), str(path), config)


@dataclass(frozen=True)
class _WeightFiles:
    """Which files a checkpoint's tensors lie in."""

    source: Path
    """What says so: the index, the only file, or the folder."""
    paths: tuple[Path, ...]
    problems: tuple[CheckpointError, ...]
    weight_map: Mapping[str, str] | None = None
    """Tensor → file name, of the index."""
    total_size: object = None


def _weight_files(folder: Path, *, index_needed: bool) -> _WeightFiles:
    present = tuple(sorted(folder.glob("*.safetensors")))
    index, single = folder / INDEX, folder / SINGLE_FILE
    if index.exists():
        return _indexed_files(index, present)
    shards = tuple(path for path in present if _SHARD_NUMBER.search(path.name))
    problems: list[CheckpointError] = []
    if single in present:
        used, source = (single,), single
    elif shards and not index_needed:  # OpenAI's own code reads every file of `original/`
        used, source = shards, folder
        problems += _missing_shards(folder, shards)
    else:
        used, source = (), folder
        missing = INDEX if shards else SINGLE_FILE
        problems.append(CheckpointError(f"{folder / missing}: the file is missing; {_FETCH}."))
    problems += _extra_files(used, present, source)
    return _WeightFiles(source, used, tuple(problems))


def _indexed_files(index: Path, present: tuple[Path, ...]) -> _WeightFiles:
    try:
        values = read_object(index, CheckpointError)
    except CheckpointError as error:
        return _WeightFiles(index, present, (error,))
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and _FILE_NAME.fullmatch(name) for name in weight_map.values()
    ):
        problem = f"{index}: weight_map must map tensors to names of files beside it; {_FETCH}."
        return _WeightFiles(index, present, (CheckpointError(problem),))
    metadata = values.get("metadata")
    named = tuple(index.parent / name for name in sorted(set(weight_map.values())))
    problems = [
        CheckpointError(
            f"{path}: the file is missing, though {INDEX} names it for "
            f"{list(weight_map.values()).count(path.name)} tensors; {_FETCH}."
        )
        for path in named
        if not path.exists()
    ]
    return _WeightFiles(
        source=index,
        paths=tuple(path for path in named if path.exists()),
        problems=(*problems, *_extra_files(named, present, index)),
        weight_map=weight_map,
        total_size=metadata.get("total_size") if isinstance(metadata, dict) else None,
    )


def _missing_shards(folder: Path, shards: tuple[Path, ...]) -> list[CheckpointError]:
    """Gaps in `…-k-of-n.safetensors`, for layouts without an index. k starts at 1, or at 0."""
    matches = [match for path in shards if (match := _SHARD_NUMBER.search(path.name))]
    numbers = {int(match[1]) for match in matches}
    width, last = len(matches[0][1]), max(int(match[2]) for match in matches)
    if last > 10_000:
        return [CheckpointError(f"{shards[0]}: expected at most 10000 files, got {last}.")]
    wanted = set(range(1, last)) if 0 in numbers else set(range(1, last + 1))
    return [
        CheckpointError(f"{folder}: shard {k:0{width}} of {last} is missing; {_FETCH}.")
        for k in sorted(wanted - numbers)
    ]


def _extra_files(
    used: tuple[Path, ...], present: tuple[Path, ...], source: Path
) -> list[CheckpointError]:
    return [
        CheckpointError(
            f"{path}: the file does not belong to the checkpoint that {source.name} describes; "
            "remove it from the folder."
        )
        for path in present
        if path not in used
    ]


def _read_headers(files: _WeightFiles, problems: list[OssiaError]) -> tuple[Header, ...]:
    problems += files.problems
    headers: list[Header] = []
    for path in files.paths:
        try:
            header = read_header(path)
        except CheckpointError as error:
            problems.append(error)
        else:
            problems += map(CheckpointError, header.problems)
            headers.append(header)
    return tuple(headers)


def _layout_of(headers: tuple[Header, ...], values: Mapping[str, Any]) -> Layout:
    """By the names of the tensors; by config.json where they say nothing."""
    names = [name for header in headers for name in header.tensors]
    if any(name.startswith(("block.", "embedding.", "unembedding.")) for name in names):
        return Layout.ORIGINAL
    if any(name.endswith((".gate_up_proj_blocks", ".down_proj_blocks")) for name in names):
        return Layout.HF_MXFP4
    if any(name.endswith((".gate_up_proj", ".down_proj")) for name in names):
        return Layout.HF_BF16
    if is_original_form(values):
        return Layout.ORIGINAL
    return Layout.HF_MXFP4 if is_mxfp4(values) else Layout.HF_BF16


def _contradictions(
    folder: Path, config: ModelConfig, values: Mapping[str, Any], layout: Layout
) -> list[OssiaError]:
    """Where config.json and the names of the tensors cannot both be right."""
    path, problems = folder / CONFIG, list[OssiaError]()
    if is_original_form(values) != (layout is Layout.ORIGINAL):
        forms = ("OpenAI's original form", "the Hugging Face form")
        of_config, of_tensors = forms if is_original_form(values) else forms[::-1]
        problems.append(
            ConfigError(
                f"{path}: it has {of_config}, but the tensors beside it have names of "
                f"{of_tensors}; put the config.json there that belongs to them."
            )
        )
    elif layout is not Layout.ORIGINAL and is_mxfp4(values) != (layout is Layout.HF_MXFP4):
        says, are = ("declares", "dequantised") if is_mxfp4(values) else ("lacks", "MXFP4")
        problems.append(
            ConfigError(
                f"{path}: it {says} an MXFP4 quantization_config, but the experts beside it are "
                f"{are}; put the config.json there that belongs to them."
            )
        )
    if layout is not Layout.HF_BF16:
        for name in ("hidden_size", "intermediate_size"):
            if (size := getattr(config, name)) % BLOCK_SIZE:
                problems.append(
                    ConfigError(
                        f"{path}: {name} must be a multiple of {BLOCK_SIZE} where the experts are "
                        f"MXFP4, got {size}."
                    )
                )
    return problems


def _tensor_problems(
    files: _WeightFiles,
    headers: tuple[Header, ...],
    expected: Mapping[str, Expected],
    config: ModelConfig,
) -> list[OssiaError]:
    problems: list[str] = []
    home: dict[str, Path] = {}
    for header in headers:
        for name, info in header.tensors.items():
            this = f"{header.path}: tensor {shown(name)}"
            wanted = expected.get(name)
            if name in home:
                problems.append(f"{this} is also in {home[name].name}; {_FETCH}.")
                continue
            home[name] = header.path
            if wanted is None:
                problems.append(f"{this} {_why_extra(name, config)}.")
            elif info.shape != wanted.shape:
                problems.append(
                    f"{this} has the shape {list(info.shape)}, but {CONFIG} asks for "
                    f"{list(wanted.shape)}; one of the two belongs to another model."
                )
            elif info.dtype not in wanted.dtypes:
                problems.append(
                    f"{this} is {info.dtype}, expected {' or '.join(wanted.dtypes)}; convert it."
                )
            if files.weight_map is not None:
                problems += _index_problems(files, header.path, name)
    whole = {header.path.name for header in headers if not header.problems}
    problems += _missing_tensors(files, home, expected, whole)
    return [CheckpointError(problem) for problem in problems]


def _why_extra(name: str, config: ModelConfig) -> str:
    if "inv_freq" in name or name.endswith((".masked_bias", ".attn.bias")):
        return (
            f"is a table that follows from {CONFIG}; ossia computes its own and would ignore it: "
            "write the checkpoint without it"
        )
    if "lora_" in name:
        return "belongs to an adapter; merge it into the model first"
    return f"does not belong to a gpt-oss model of {config.num_hidden_layers} layers; remove it"


def _index_problems(files: _WeightFiles, path: Path, name: str) -> list[str]:
    assert files.weight_map is not None
    said = files.weight_map.get(name)
    if said is None:
        return [f"{path}: tensor {shown(name)} is not in {INDEX}; {_FETCH}."]
    if said != path.name:
        return [f"{path}: tensor {shown(name)} is here, but {INDEX} says {said}; {_FETCH}."]
    return []


def _missing_tensors(
    files: _WeightFiles, home: Mapping[str, Path], expected: Mapping[str, Expected], whole: set[str]
) -> list[str]:
    """Expected tensors, and those the index promises, that no file holds. Those that may lie in a
    file which is missing or not `whole` are passed over: that file has been named already.
    """
    indexed, promised = files.weight_map is not None, files.weight_map or {}
    all_read = not files.problems and all(path.name in whole for path in files.paths)
    problems: list[str] = []
    for name in (*expected, *(name for name in promised if name not in expected)):
        if name in home:
            continue
        file = promised.get(name)
        if file is None and (indexed or all_read):
            problems.append(f"{files.source}: tensor {shown(name)} is missing; {_FETCH}.")
        elif file in whole:
            problems.append(
                f"{files.source.parent / file}: tensor {shown(name)} is missing, though {INDEX} "
                f"says it is here; {_FETCH}."
            )
    return problems


def _total_size_problem(files: _WeightFiles, headers: tuple[Header, ...]) -> list[CheckpointError]:
    """Only asked when nothing else is wrong: a missing file changes the sum too."""
    total = sum(info.nbytes for header in headers for info in header.tensors.values())
    if files.total_size is None or files.total_size == total:
        return []
    return [
        CheckpointError(
            f"{files.source}: metadata.total_size must be {total}, the bytes of all tensors, got "
            f"{shown(files.total_size)}; {_FETCH}."
        )
    ]
