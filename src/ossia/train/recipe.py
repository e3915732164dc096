"""Everything that a training run depends on, as one frozen value, read from one TOML file.

Two runs of one recipe on the same machine give the same weights, bit for bit. Keys that are not
known, and values of another type, are refused with the key named.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ossia.errors import TrainingError
from ossia.model.config import ModelConfig
from ossia.train.curriculum.lessons import SOURCES

BUILT_IN = Path(__file__).parent / "recipes"
"""Recipes that come with the package, by name: `nano.toml`."""


class Stage(StrEnum):
    """The stages of training that change weights, in their order."""

    PRETRAIN = "pretrain"
    SFT = "sft"
    """Supervised fine-tuning on conversations."""
    QUANTIZE = "quantize"
    """The same, on weights that are rounded as the export will write them."""


@dataclass(frozen=True)
class Architecture:
    """Sizes; what is not here is as in the published models."""

    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    num_local_experts: int = 16
    intermediate_size: int = 64
    vocab_size: int = 2048
    max_position_embeddings: int = 2048

    def config(
        self, *, eos_token_ids: tuple[int, ...] = (), pad_token_id: int | None = None
    ) -> ModelConfig:
        return ModelConfig(
            num_hidden_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=64,
            num_local_experts=self.num_local_experts,
            num_experts_per_tok=4,
            vocab_size=self.vocab_size,
            sliding_window=128,
            sliding_layers=tuple(n % 2 == 0 for n in range(self.num_hidden_layers)),
            max_position_embeddings=self.max_position_embeddings,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
        )

    @classmethod
    def of(cls, config: ModelConfig) -> Architecture:
        """Of a model that exists."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Optimization:
    matrix_lr: float = 0.02
    """Muon: attention projections and experts."""
    other_lr: float = 3e-3
    """AdamW: embeddings, router, norms, biases, sinks."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    balance_weight: float = 0.01
    """Of the router's load-balance loss."""


@dataclass(frozen=True)
class StageRecipe:
    steps: int
    mix: Mapping[str, float]
    """Relative shares of the sources of text; see `curriculum.lessons.SOURCES`."""
    batch_tokens: int = 4096
    """Tokens of a step; the last document is taken whole."""
    warmup_steps: int = 0
    rate_from: float = 1.0
    """Factor of the learning rates at the stage's first step, after the warm-up."""
    rate_to: float = 1.0
    """And at its last; linear between."""
    full_system: float = 0.5
    """Share of the lessons under a whole system message."""
    repeat_steps: int = 0
    """Steps at the beginning on nothing but repeated random tokens; see `curriculum.repeats`."""
    files: tuple[str, ...] = ()
    """JSON Lines of conversations beside the mix, relative to the recipe's own folder."""
    files_share: float = 0.5
    """Of the batches' documents, where there are files."""


@dataclass(frozen=True)
class Recipe:
    """One run: what the model is, what it is taught, and how long."""

    pretrain: StageRecipe
    sft: StageRecipe
    quantize: StageRecipe
    name: str = "nano"
    identity: str = "You are nano, the tiny model built into Ossia."
    """The identity line of the model's own system message."""
    description: str = ""
    """What the model is, for `ossia.json`."""
    seed: int = 0
    shards: int = 2
    """Parts of a batch that run side by side, each in a thread or process of its own. Part of the
    recipe, as the order of sums depends on it."""
    dtype: str = "auto"
    """Of matrix products: float32, bfloat16, or auto for the one that this machine is faster at."""
    filters: tuple[str, ...] = ("cbrn",)
    """Rules of the data filter that every text has to pass."""
    tokenizer_texts: int = 20_000
    """Documents and lessons that the vocabulary is learnt from."""
    sample_texts: int = 2000
    """Of each stage's mix, in the sample that the data stage writes and filters."""
    architecture: Architecture = field(default_factory=Architecture)
    optimization: Optimization = field(default_factory=Optimization)

    def stage(self, stage: Stage) -> StageRecipe:
        return getattr(self, stage.value)

    @property
    def tokens(self) -> int:
        """About how many tokens the run trains on."""
        return sum(self.stage(s).steps * self.stage(s).batch_tokens for s in Stage)

    def scaled(self, factor: float) -> Recipe:
        """Every stage longer or shorter by a factor, one step at the least."""
        changed = {
            s.value: replace(
                self.stage(s),
                steps=max(1, round(self.stage(s).steps * factor)),
                repeat_steps=round(self.stage(s).repeat_steps * factor),
            )
            for s in Stage
        }
        return replace(self, **changed)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """What `to_json` made, or the tables of a recipe file. Raises TrainingError with the key
        that is wrong."""
        recipe = _read(cls, values, source, "")
        for stage in Stage:
            _check_stage(recipe.stage(stage), f"{source}: {stage.value}")
        _check(recipe, source)
        return recipe


def load_recipe(path: str | Path) -> Recipe:
    """From a TOML file, or by the name of one that comes with the package.

    Raises TrainingError for a file that is missing, is not TOML, or holds what a recipe does not.
    """
    built_in = BUILT_IN / f"{path}.toml"
    file = built_in if built_in.exists() else Path(path)
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.toml")))
        raise TrainingError(
            f"There is no recipe {path}: expected a TOML file, or one of: {known}."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{file}: this recipe cannot be read: {error}.") from error
    recipe = Recipe.from_json(values, source=str(file))
    return _with_absolute_files(recipe, file.parent)


def _with_absolute_files(recipe: Recipe, folder: Path) -> Recipe:
    changed = {
        s.value: replace(
            recipe.stage(s), files=tuple(str((folder / f).resolve()) for f in recipe.stage(s).files)
        )
        for s in Stage
    }
    return replace(recipe, **changed)


# ---- checks ------------------------------------------------------------------------------------


def _check_stage(stage: StageRecipe, source: str) -> None:
    for name in stage.mix:
        if name not in SOURCES:
            raise TrainingError(
                f"{source}.mix: there is no source of text {name!r}{_meant(name, SOURCES)}; known "
                f"are {', '.join(SOURCES)}."
            )
    if any(share < 0 for share in stage.mix.values()) or not sum(stage.mix.values()) > 0:
        raise TrainingError(
            f"{source}.mix: expected shares of 0 and more, one of them above 0; got "
            f"{dict(stage.mix)}."
        )
    at_least = {"steps": 1, "batch_tokens": 1, "warmup_steps": 0, "repeat_steps": 0}
    at_least |= {"rate_from": 0, "rate_to": 0}
    _check_bounds(stage, at_least, source)
    for name in ("full_system", "files_share"):
        if not 0 <= getattr(stage, name) <= 1:
            raise TrainingError(
                f"{source}.{name}: expected a share from 0 to 1, got {getattr(stage, name)}."
            )


def _check(recipe: Recipe, source: str) -> None:
    _check_bounds(recipe, {"shards": 1, "tokenizer_texts": 1, "sample_texts": 1}, source)
    sizes = {f.name: 1 for f in fields(Architecture)} | {"num_local_experts": 4}
    _check_bounds(recipe.architecture, sizes, f"{source}: architecture")
    architecture = recipe.architecture
    for name in ("hidden_size", "intermediate_size"):
        if getattr(architecture, name) % 32:
            raise TrainingError(
                f"{source}: architecture.{name}: expected a multiple of 32, the block of MXFP4; "
                f"got {getattr(architecture, name)}."
            )
    if architecture.num_attention_heads % architecture.num_key_value_heads:
        raise TrainingError(
            f"{source}: architecture: expected num_attention_heads to be a multiple of "
            f"num_key_value_heads; got {architecture.num_attention_heads} and "
            f"{architecture.num_key_value_heads}."
        )
    if recipe.dtype not in ("auto", "float32", "bfloat16"):
        raise TrainingError(
            f"{source}: dtype: expected auto, float32 or bfloat16; got {recipe.dtype!r}."
        )


def _check_bounds(value: object, at_least: Mapping[str, float], source: str) -> None:
    for name, bound in at_least.items():
        if not getattr(value, name) >= bound:
            raise TrainingError(
                f"{source}.{name}: expected {bound} or more, got {getattr(value, name)}."
            )


# ---- typed reading -----------------------------------------------------------------------------


def _read(kind: type[Any], values: Any, source: str, path: str) -> Any:
    """`values`, JSON or TOML, as the dataclass `kind`; `path` names the place in messages."""
    if not isinstance(values, Mapping):
        raise TrainingError(f"{source}: {path or 'the recipe'}: expected a table, got {values!r}.")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise TrainingError(
                f"{source}: there is no {_joined(path, key)}{_meant(key, known)}; known are "
                f"{', '.join(known)}."
            )
    for name, known_field in known.items():
        optional = (known_field.default, known_field.default_factory)
        if name not in values and all(d is dataclasses.MISSING for d in optional):
            raise TrainingError(f"{source}: {_joined(path, name)} is missing.")
    return kind(
        **{
            key: _value(hints[key], value, source, _joined(path, key))
            for key, value in values.items()
        }
    )


def _value(hint: Any, value: Any, source: str, path: str) -> Any:
    def refuse(expected: str) -> TrainingError:
        return TrainingError(f"{source}: {path}: expected {expected}, got {value!r}.")

    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value, source, path)
    origin = get_origin(hint)
    if origin is tuple:
        inner = get_args(hint)
        length = None if inner[-1] is Ellipsis else len(inner)
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            raise refuse("a list" if length is None else f"a list of {length}")
        return tuple(_value(inner[0], item, source, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is not None and origin not in (Union, types.UnionType):  # Mapping[str, float]
        if not isinstance(value, Mapping):
            raise refuse("a table of shares")
        return {k: _value(float, v, source, _joined(path, k)) for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise refuse({int: "a whole number", float: "a number", str: "a text"}[hint])
    return value


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _meant(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
