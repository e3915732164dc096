"""What several test modules share: where o200k is, and small vocabularies made on the spot."""

from __future__ import annotations

import functools
import inspect
import json
import os
import random
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.choose import choose_kernels
from ossia.kernels.interface import Kernels

_ROOT = Path(__file__).resolve().parent.parent


def in_full_precision(name: str) -> Kernels:
    """The kernel set called `name`, with nothing quantised."""
    return choose_kernels(name, exact=name == "native")[0]


CONTROLS = (
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|constrain|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|startoftext|>",
    "<|reserved_0|>",
)


def o200k_path() -> Path:
    """The file of o200k_base's ranks; skips the test where there is none."""
    named = os.environ.get("OSSIA_O200K")
    path = Path(named) if named else _ROOT / ".oracle" / "o200k_base.tiktoken"
    if path.is_dir():
        path /= "o200k_base.tiktoken"
    if not path.is_file():
        pytest.skip("o200k ranks not found (run scripts/o200k)")
    return path.resolve()


@functools.cache
def o200k() -> Tokenizer:
    """The tokenizer of gpt-oss; skips the test where its ranks are missing."""
    return Tokenizer.from_tiktoken(o200k_path())


@functools.cache
def openai_harmony_encoding() -> Any:
    """openai-harmony's own encoding, loaded without a network; skips the test without ranks."""
    import openai_harmony

    with tempfile.TemporaryDirectory() as folder:
        # The library looks for this very name.
        (Path(folder) / "o200k_base.tiktoken").symlink_to(o200k_path())
        before = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        try:
            return openai_harmony.load_harmony_encoding("HarmonyGptOss")
        finally:
            del os.environ["TIKTOKEN_ENCODINGS_BASE"]
            if before is not None:
                os.environ["TIKTOKEN_ENCODINGS_BASE"] = before


def trained_tokenizer_json(vocab_size: int = 1024) -> dict[str, Any]:
    """A byte-level BPE trained on some Python by the `tokenizers` library, control tokens last."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([inspect.getsource(textwrap), inspect.getsource(json)], trainer)
    trained.add_special_tokens(list(CONTROLS))
    return json.loads(trained.to_str())


def scrambled_tokenizer_json(seed: int = 0) -> dict[str, Any]:
    """The trained vocabulary with its ids permuted, control tokens among them and some ids left
    unused. Whoever takes an id of o200k, or id order for merge order, for granted fails on it.
    """
    document = trained_tokenizer_json()
    vocab, added = document["model"]["vocab"], document["added_tokens"]
    count = len(vocab) + len(added)
    ids = random.Random(seed).sample(range(count + 50), count)
    document["model"]["vocab"] = {t: ids[i] for t, i in vocab.items()}
    document["added_tokens"] = [token | {"id": ids[token["id"]]} for token in added]
    return document


def write_tokenizer_json(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document, ensure_ascii=False))
    return path


@functools.cache
def small_tokenizer(scrambled: bool) -> Tokenizer:
    """The trained vocabulary, its ids in the order of merges or scrambled."""
    document = scrambled_tokenizer_json() if scrambled else trained_tokenizer_json()
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(write_tokenizer_json(Path(folder), document))


def segments(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[bool, str]]:
    """Control tokens and the text between them, apart."""
    out: list[tuple[bool, str]] = []
    begin = 0
    for i, token_id in enumerate([*ids, tokenizer.control.start]):
        if tokenizer.is_control(token_id):
            out += [(False, tokenizer.decode(ids[begin:i])), (True, tokenizer.decode([token_id]))]
            begin = i + 1
    return out
