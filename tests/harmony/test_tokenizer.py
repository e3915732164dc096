"""The tokenizer against openai-harmony (o200k) and the `tokenizers` library (everything else)."""

from __future__ import annotations

import base64
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import TokenizerError
from ossia.harmony import tokenizer as tokenizer_module
from ossia.harmony.tokenizer import ControlTokens, Tokenizer
from support import (
    CONTROLS,
    o200k,
    o200k_path,
    openai_harmony_encoding,
    scrambled_tokenizer_json,
    trained_tokenizer_json,
    write_tokenizer_json,
)

FRAGMENTS = [
    *"aZé日👍 \t\n\r\x00\u00a0\u2028\u3000\u0301\ufffd'\"<|>/{}1½९٣",
    *CONTROLS,
    "'ll", "'LL", "\r\n", "   ", "the", " return", "self.", "HTTPServer", "👩🏽\u200d🚀", "1234567",
    "ǅ", "ʰ", "한국어", "עברית", "\x1c", "\x85", "\ufeff", "://", "    \n  x", "\U0010ffff",
]  # fmt: skip


def adversarial(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = ["".join(rng.choices(FRAGMENTS, k=rng.randint(0, 40))) for _ in range(count)]
    runs = [rng.choice(FRAGMENTS) * rng.randint(1, 3000) for _ in range(200)]
    return texts + runs


@pytest.fixture(scope="module", params=[trained_tokenizer_json, scrambled_tokenizer_json])
def small_document(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param()


@pytest.fixture(scope="module")
def small(
    small_document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A small vocabulary, with ids in merge order and without: ours and the library's reading."""
    path = write_tokenizer_json(tmp_path_factory.mktemp("vocabulary"), small_document)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.encode_special_tokens = True  # so that a control spelling is mere text there too
    return Tokenizer.load(path.parent), theirs


# -- Encoding -------------------------------------------------------------------------------------


def test_o200k_encodes_as_openai_harmony_does() -> None:
    library = openai_harmony_encoding()
    for text in adversarial(4000):
        ours = o200k().encode(text)
        assert ours == library.encode(text, disallowed_special=()), repr(text)
        assert o200k().decode(ours) == text


def test_small_vocabularies_encode_as_the_tokenizers_library_does(
    small: tuple[Tokenizer, tokenizers.Tokenizer],
) -> None:
    ours, theirs = small
    for text in adversarial(1500):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert ours.decode(ids) == text


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_and_never_yields_a_control_token(text: str) -> None:
    ids = o200k().encode(text)
    assert o200k().decode(ids) == text
    assert not any(map(o200k().is_control, ids))


def test_no_spelling_yields_a_control_token(small: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    for tokenizer in (o200k(), small[0]):
        for token_id in tokenizer.control_ids:
            spelling = tokenizer.decode([token_id])
            for text in (spelling, f"a{spelling}{spelling} b", f" {spelling}\n"):
                assert tokenizer.control_ids.isdisjoint(tokenizer.encode(text))
                assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_with_controls_is_the_inverse_of_decode() -> None:
    control = o200k().control
    ids = [control.start, *o200k().encode("user"), control.message, *o200k().encode("<|"), 200018]
    text = "<|start|>user<|message|><|<|reserved_200018|>"
    assert o200k().decode(ids) == text
    assert o200k().encode_with_controls(text) == ids
    assert o200k().encode_with_controls("") == []


@pytest.mark.parametrize("run", [" ", "\t", "\n", "\u3000", " \n"])
def test_a_huge_run_of_white_space_neither_crashes_nor_changes(run: str) -> None:
    for text in (run * 1_000_000, f"a{run * 700_000}b{run * 300_000}", f"{run * 1_000_000}."):
        assert o200k().decode(o200k().encode(text)) == text


@pytest.mark.parametrize("run", ["a", "A", "^", "é", "日", "👍", "1", "\u0301", "aB", "'", "=-"])
def test_a_huge_run_of_anything_else_survives_too(run: str) -> None:
    text = run * (1_000_000 // len(run))
    assert o200k().decode(o200k().encode(text)) == text


def test_cutting_long_runs_leaves_what_comes_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces join to the text; without a run above the limit there is one piece, hence equality."""
    monkeypatch.setattr(tokenizer_module, "_MAX_WHITESPACE_RUN", 8)
    cut = tokenizer_module._cut_long_runs
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice(["ab", " ", "\n", " " * 9, "\t" * 20]) for _ in range(12))
        pieces = list(cut(text))
        assert "".join(pieces) == text
        longest = max(map(len, "".join(c if c.isspace() else "." for c in text).split(".")))
        assert len(pieces) == 1 or longest > 8
        assert tokenizer_module._may_have_long_run(text) or longest <= 8


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert o200k().decode(o200k().encode("a\ud800b")) == "a\ufffdb"


# -- Decoding -------------------------------------------------------------------------------------


def test_decoding_agrees_with_openai_harmony_on_any_ids() -> None:
    library = openai_harmony_encoding()
    rng = random.Random(0)
    for _ in range(2000):
        ids = [rng.randrange(201089) for _ in range(rng.randint(0, 30))]
        assert o200k().decode(ids) == library.decode(ids)


def test_ids_outside_the_vocabulary_are_tolerated(
    small: tuple[Tokenizer, tokenizers.Tokenizer],
) -> None:
    for tokenizer in (o200k(), small[0]):
        for token_id in (-1, tokenizer.vocab_size, 2**31, 2**40):
            assert tokenizer.decode([token_id]) == "\ufffd"
            assert tokenizer.is_control(token_id)
            text = [*tokenizer.encode("a"), token_id, *tokenizer.encode("b")]
            assert tokenizer.decode(text) == "a\ufffdb"


def test_token_bytes_join_to_the_text(small: tuple[Tokenizer, tokenizers.Tokenizer]) -> None:
    for tokenizer in (o200k(), small[0]):
        ids = [tokenizer.control.start, *tokenizer.encode("naïve 日本語 👍"), tokenizer.control.end]
        assert b"".join(map(tokenizer.token_bytes, ids)) == tokenizer.decode_bytes(ids)
        assert tokenizer.decode_bytes(ids) == "<|start|>naïve 日本語 👍<|end|>".encode()


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character() -> None:
    (half,) = [i for i in range(256) if o200k().token_bytes(i) == b"\xe6"]
    assert o200k().decode([half]) == "\ufffd"
    assert o200k().decode_bytes([half]) == b"\xe6"


# -- Control tokens -------------------------------------------------------------------------------


def test_control_tokens_of_o200k_are_openai_harmonys() -> None:
    library = openai_harmony_encoding()
    for spelling in library.special_tokens_set:
        (token_id,) = library.encode(spelling, allowed_special="all")
        assert o200k().decode([token_id]) == spelling
        assert o200k().encode_control(spelling) == token_id
        assert o200k().is_control(token_id)
    assert len(o200k().control_ids) == len(library.special_tokens_set)
    assert set(o200k().control.stop_ids) == set(library.stop_tokens())
    actions = library.stop_tokens_for_assistant_actions()
    assert set(o200k().control.turn_end_ids) == set(actions)


def test_control_tokens_are_those_of_the_file(
    small_document: dict[str, Any], small: tuple[Tokenizer, tokenizers.Tokenizer]
) -> None:
    ours, _ = small
    named = {token["content"]: token["id"] for token in small_document["added_tokens"]}
    assert ours.control_ids == set(named.values())
    ordinary = set(small_document["model"]["vocab"].values())
    assert ours.vocab_size == max(ordinary | ours.control_ids) + 1
    assert not any(map(ours.is_control, ordinary))
    assert ours.control == ControlTokens(
        start=named["<|start|>"],
        end=named["<|end|>"],
        message=named["<|message|>"],
        channel=named["<|channel|>"],
        constrain=named["<|constrain|>"],
        return_=named["<|return|>"],
        call=named["<|call|>"],
        endoftext=named["<|endoftext|>"],
        startoftext=named["<|startoftext|>"],
    )
    with pytest.raises(TokenizerError, match=r"no control token '<\|nothing\|>'"):
        ours.encode_control("<|nothing|>")


# -- Files ----------------------------------------------------------------------------------------


def o200k_tokenizer_json() -> dict[str, Any]:
    """o200k in the form of gpt-oss's tokenizer.json: every split of every token is a merge."""
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in map(bytes.split, o200k_path().read_bytes().splitlines())
    }
    spelled = [b for b in range(256) if 33 <= b < 127 or 161 <= b < 173 or b > 173]
    letters = {b: chr(b) for b in spelled}
    letters |= {b: chr(256 + n) for n, b in enumerate(sorted({*range(256)} - {*spelled}))}
    assert set(letters.values()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())

    def spell(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges: list[list[str]] = []
    for token in sorted(ranks, key=lambda t: ranks[t]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [[spell(a), spell(b)] for a, b in sorted(known, key=lambda p: ranks[p[0]])]
    document = trained_tokenizer_json()
    document["added_tokens"] = [
        {"id": i, "content": o200k().decode([i])} for i in sorted(o200k().control_ids)[:21]
    ]
    document["model"]["vocab"] = {spell(token): rank for token, rank in ranks.items()}
    document["model"]["merges"] = merges
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": tokenizer_module._O200K_PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    }
    return document


def test_a_model_folder_reads_like_the_ranks(tmp_path: Path) -> None:
    write_tokenizer_json(tmp_path, o200k_tokenizer_json())
    ours = Tokenizer.load(tmp_path)
    assert ours.control == o200k().control
    assert ours.vocab_size == 200019  # the file names no reserved token above 200018
    for text in adversarial(500, seed=1):
        assert ours.encode(text) == o200k().encode(text)


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = trained_tokenizer_json()
    change(document)
    return document


def other_pair(document: dict[str, Any]) -> None:
    """Makes a token of three letters from its first and the other two, where its letters come down
    to the first two and the last.
    """
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    for index, (left, right) in enumerate(merges):
        if len(left) == 2 and len(right) == 1 and left[1] + right in vocab:
            merges[index] = [left[0], left[1] + right]
            return
    raise AssertionError("the training text yields no such token")


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (lambda d: d["model"].update(type="Unigram"), "expected a BPE model"),
    "normalizer": (lambda d: d.update(normalizer={"type": "NFC"}), "normalizer would change"),
    "byte fallback": (lambda d: d["model"].update(byte_fallback=True), "byte_fallback is set"),
    "suffix": (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "no control": (lambda d: d["added_tokens"].pop(5), r"lacks the control token <\|return\|>"),
    "no model": (lambda d: d.pop("model"), "does not have the form of a tokenizer.json"),
    "odd merges": (lambda d: d["model"]["merges"].append(["a"]), "does not have the form"),
    "unknown merge": (lambda d: d["model"]["merges"].append(["a", "qqqq"]), "names a token"),
    "merge lost": (lambda d: d["model"]["merges"].pop(), "do not lead to the token"),
    "other pair": (other_pair, "do not lead to the token|stand apart"),
    "merges apart": (
        lambda d: d["model"]["merges"].append(d["model"]["merges"][0]),
        "stand apart",
    ),
    "no byte": (lambda d: d["model"]["vocab"].pop("Ł"), "no token for the byte 0x9f"),
    "shared id": (lambda d: d["model"]["vocab"].update(a=0), "two tokens share an id"),
    "no number": (lambda d: d["model"]["vocab"].update(a=1.5), "1.5 is not a token id"),
    "negative": (lambda d: d["added_tokens"][0].update(id=-1), "-1 is not a token id"),
    "shared with control": (
        lambda d: d["added_tokens"][0].update(id=40),
        r"<\|start\|> and an ordinary token share the id 40",
    ),
    "alphabet": (lambda d: d["model"]["vocab"].update({"日": 5000}), "byte-level alphabet"),
    "no pre-tokenizer": (lambda d: d.update(pre_tokenizer=None), "expected the pre-tokenizer"),
    "prefix space": (
        lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
        "add_prefix_space",
    ),
    "two splits": (
        lambda d: d.update(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}
        ),
        "expected the pre-tokenizer",
    ),
    "pattern that loses text": (
        lambda d: d.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            }
        ),
        "leaves out parts",
    ),
    "pattern that is none": (
        lambda d: d.update(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            }
        ),
        "cannot compile",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_file_that_cannot_be_represented_is_refused(name: str, tmp_path: Path) -> None:
    change, sentence = MALFORMED[name]
    path = write_tokenizer_json(tmp_path, changed(change))
    with pytest.raises(TokenizerError, match=sentence) as caught:
        Tokenizer.load(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"IQ== 0\nIg==\n", "line 2: expected a base64 token and its rank"),
        (b"!!! 0\n", "line 1: expected a base64 token"),
        (b"IQ== 0\nIg== 0\n", "two tokens share a rank"),
        (b"IQ== 0\n", "no token for the byte 0x00"),
    ],
)
def test_malformed_ranks_are_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=sentence):
        Tokenizer.load(path)


def test_a_missing_or_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="There is no vocabulary at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="is not JSON"):
        Tokenizer.load(tmp_path)


@functools.cache
def tiny_tokenizer_json() -> str:
    return json.dumps(trained_tokenizer_json(vocab_size=300))


def damage(rng: random.Random, node: Any) -> None:
    """Replaces or removes one value somewhere in a JSON document."""
    key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
    child = node[key]
    if isinstance(child, dict | list) and child and rng.random() < 0.8:
        damage(rng, child)
    elif rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice([None, 0, -1, 10**30, "", "日", [], {}, [[]], True, 1.5, {"a": 1}])


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_give_errors_never_crashes(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = random.Random(seed)
    document = json.loads(tiny_tokenizer_json())
    for _ in range(rng.randint(0, 3)):
        damage(rng, document)
    content = bytearray(json.dumps(document).encode())
    for _ in range(rng.choice([0, 0, 1, 3])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    try:
        tokenizer = Tokenizer.load(path)
    except TokenizerError as error:
        assert str(path) in str(error)
    else:
        assert tokenizer.decode(tokenizer.encode("still works")) == "still works"
