"""The trained vocabulary: its order, its digits, and equal ids from all who read the file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ossia.errors import TokenizerError
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    Tool,
    ToolNamespace,
)
from ossia.harmony.render import render_for_completion
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum.lesson import IDENTITY
from ossia.train.recipe import Architecture, load_recipe
from ossia.train.stages import Run
from ossia.train.tokenizer import (
    FIXED_PASSAGES,
    byte_tokenizer,
    save_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = Run.begin(load_recipe("nano"), tmp_path_factory.mktemp("run"))
    run.make_tokenizer()
    return run.folder.tokenizer


@pytest.fixture(scope="module")
def readers(folder):
    """Ours, the library's, and transformers'."""
    return (
        Tokenizer.load(folder),
        HfTokenizer.from_file(str(folder / "tokenizer.json")),
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
        AutoTokenizer.from_pretrained(folder),
    )


def test_bytes_first_then_merges_in_order_then_controls(folder):
    document = json.loads((folder / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    by_id = sorted(vocab, key=vocab.get)
    assert [vocab[token] for token in by_id] == list(range(2032))
    assert all(len(token) == 1 for token in by_id[:256])
    merged = ["".join(pair) for pair in document["model"]["merges"]]
    assert list(dict.fromkeys(merged)) == by_id[256:]
    controls = [token["content"] for token in document["added_tokens"]]
    assert [token["id"] for token in document["added_tokens"]] == list(range(2032, 2048))
    # The order in which o200k_harmony has them from 199998 on.
    offsets = {
        0: "<|startoftext|>", 1: "<|endoftext|>", 4: "<|return|>", 5: "<|constrain|>",
        7: "<|channel|>", 8: "<|start|>", 9: "<|end|>", 10: "<|message|>", 14: "<|call|>",
    }  # fmt: skip
    for i, spelling in enumerate(controls):
        assert spelling == offsets.get(i, f"<|reserved_{2032 + i}|>")


def test_every_byte_has_a_token_and_every_digit_stands_alone(readers):
    ours = readers[0]
    assert {ours.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}
    with_digits = [
        ours.decode([i])
        for i in range(256, 2032)
        if any(48 <= b <= 57 for b in ours.token_bytes(i))
    ]
    assert all(any(text in passage for passage in FIXED_PASSAGES) for text in with_digits)
    assert [ours.decode([i]) for i in ours.encode("48×37=1776")] == list("48×37=1776")


def test_what_harmony_always_writes_is_a_few_tokens(readers):
    ours = readers[0]
    system = SystemContent(model_identity=IDENTITY, conversation_start_date="2026-11-30")
    offered = DeveloperContent("Be brief.", (ToolNamespace("functions", tools=(Tool("f", "F."),)),))
    conversation = Conversation(
        (Message(Role.SYSTEM, (system,)), Message(Role.DEVELOPER, (offered,)))
    )
    prompt = render_for_completion(ours, conversation)
    assert len(ours.decode(prompt.token_ids)) > 7 * len(prompt.token_ids)
    for passage in FIXED_PASSAGES:
        assert len(ours.encode(f"x{passage}x")) < 2 + max(3, len(passage) / 8), passage


def test_a_passage_cut_short_is_read_word_by_word(readers):
    ours = readers[0]
    ids = ours.encode("You are nano, the tiny model built into a shop.")
    assert [ours.decode([i]) for i in ids][:4] == ["You", " are", " ", "nano"]


def test_a_name_is_the_same_tokens_wherever_it_stands(readers):
    ours = readers[0]
    for name in ("velora", "tiokrund", "weather", "Bremzeat"):
        alone = ours.encode(name)
        for before, after in (
            (" ", " "),
            ('"', '"'),
            ("_", "_"),
            ("(", ")"),
            ("\n", ":"),
            ("=", ","),
        ):
            ids = ours.encode(f"{before}{name}{after}")
            assert any(
                ids[i : i + len(alone)] == alone for i in range(len(ids) - len(alone) + 1)
            ), (before, name)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("0123456789 +-×=→.,\n'aAsS<|>"))
def test_all_readers_give_the_same_ids(readers, text):
    ours, library, fast, auto = readers
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    # Control tokens in a text are text for us and tokens for the others: compare without them.
    if "<|" not in text:
        assert library.encode(text, add_special_tokens=False).ids == ids
        assert fast.encode(text, add_special_tokens=False) == ids
        assert auto.encode(text, add_special_tokens=False) == ids


def test_control_tokens_are_the_same_for_all_readers(readers):
    ours, library, fast, auto = readers
    spelled = {
        "<|start|>": ours.control.start,
        "<|return|>": ours.control.return_,
        "<|call|>": ours.control.call,
        "<|endoftext|>": ours.control.endoftext,
    }
    for spelling, token_id in spelled.items():
        assert library.token_to_id(spelling) == token_id
        assert fast.convert_tokens_to_ids(spelling) == token_id
        assert ours.control.start not in ours.encode(spelling)
    assert auto.eos_token_id == ours.control.return_
    assert auto.pad_token_id == ours.control.endoftext
    assert auto.bos_token_id == ours.control.startoftext


def test_the_same_lessons_give_the_same_file(tmp_path):
    recipe = replace(
        load_recipe("nano"), architecture=Architecture(vocab_size=512), tokenizer_texts=300
    )
    files = []
    for name in ("a", "b"):
        run = Run.begin(recipe, tmp_path / name)
        run.make_tokenizer()
        files.append((run.folder.tokenizer / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_refuses_what_it_cannot_fill(tmp_path):
    with pytest.raises(TokenizerError, match="vocabulary of 2"):
        train_tokenizer(["too little text"], 2048)
    with pytest.raises(TokenizerError, match="needs 272 ids for the bytes"):
        train_tokenizer(["text"], 200)
    save_tokenizer(byte_tokenizer(), tmp_path)
    assert Tokenizer.load(tmp_path).vocab_size == 256 + 16
