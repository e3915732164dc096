"""A vocabulary file into text ↔ token ids, with the control tokens strictly apart from text.

Everything goes through one explicitly built `tiktoken.Encoding`: nothing is ever downloaded.
`encode` knows no control token, whatever the text spells; those are reached by id, through
`Tokenizer.control`. No other module of ossia knows a literal token id.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tiktoken

from ossia.errors import TokenizerError

REPLACEMENT = "\ufffd"
"""What an id outside the vocabulary decodes to."""

# The pre-tokenizer of o200k_base, as OpenAI publishes it.
_O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# What a ByteLevel pre-tokenizer splits by when its file names no other pattern: GPT-2's.
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_SPELLINGS = {
    "start": "<|start|>",
    "end": "<|end|>",
    "message": "<|message|>",
    "channel": "<|channel|>",
    "constrain": "<|constrain|>",
    "return_": "<|return|>",
    "call": "<|call|>",
    "endoftext": "<|endoftext|>",
}

# tiktoken's regex engine backtracks over a run of whitespace and overflows its stack near 10^6.
_MAX_WHITESPACE_RUN = 1 << 16

# Text that visits every branch of a pattern: letters of both cases, marks, digits, punctuation,
# contractions, emoji and each kind of whitespace.
_PROBE = (
    "Ab aB'll ÉÀ é\u0301 日本語 1234½ ,;{}_<|> 👍🏽\u200d 's "
    "\u00a0\u3000\t \r\n\n  \x00\x7f\ufeffx\x0b\x85 "
)


def _o200k_harmony_controls() -> dict[str, int]:
    """The control tokens that o200k_harmony adds above the 199,998 ranks of o200k_base."""
    named = {
        "<|startoftext|>": 199998,
        "<|endoftext|>": 199999,
        "<|return|>": 200002,
        "<|constrain|>": 200003,
        "<|channel|>": 200005,
        "<|start|>": 200006,
        "<|end|>": 200007,
        "<|message|>": 200008,
        "<|call|>": 200012,
    }
    taken = set(named.values())
    # 201088 lies one past the published embedding table; openai-harmony knows it, so we do.
    reserved = {f"<|reserved_{i}|>": i for i in range(199998, 201089) if i not in taken}
    return named | reserved


@dataclass(frozen=True)
class ControlTokens:
    """The ids of the tokens that give a conversation its structure."""

    start: int
    end: int
    message: int
    channel: int
    constrain: int
    return_: int
    call: int
    endoftext: int
    startoftext: int | None = None

    @property
    def stop_ids(self) -> tuple[int, int, int]:
        """Ids that end a message: `<|return|>`, `<|call|>`, `<|end|>`."""
        return self.return_, self.call, self.end

    @property
    def turn_end_ids(self) -> tuple[int, int]:
        """Ids that end the assistant's turn, hence its sampling: `<|return|>`, `<|call|>`."""
        return self.return_, self.call


@dataclass(frozen=True)
class _Vocabulary:
    """What a vocabulary file says, checked and ready for tiktoken."""

    name: str
    pattern: str
    ranks: dict[bytes, int]
    controls: dict[str, int]
    ids: list[int] | None = None
    """Rank → token id where the two differ (no published gpt-oss model); None where they agree."""


class Tokenizer:
    """Text to ordinary token ids and back. Immutable; safe to share between threads."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        ranks = vocabulary.ranks
        self.name = vocabulary.name
        self._rank_to_id = vocabulary.ids
        used = (ranks.values(), vocabulary.ids or (), vocabulary.controls.values())
        for i in itertools.chain(*used):
            if type(i) is not int or not 0 <= i < 2**31:
                raise TokenizerError(f"{self.name}: {i!r} is not a token id.")
        ordinary = set(ranks.values() if vocabulary.ids is None else vocabulary.ids)
        spellings: dict[int, str] = {}
        for spelling, i in vocabulary.controls.items():
            if i in ordinary:
                raise TokenizerError(
                    f"{self.name}: {spelling} and an ordinary token share the id {i}; "
                    "every token needs its own."
                )
            spellings.setdefault(i, spelling)
        self._spellings = spellings
        self._spelling_to_id = vocabulary.controls
        longest_first = sorted(vocabulary.controls, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)))
        self.control_ids = frozenset(spellings)
        """The ids of every control token, reserved ones included."""
        self.vocab_size = max(ordinary | self.control_ids) + 1
        """One more than the largest id; ids below it need not all be in use."""
        missing_bytes = [b for b in range(256) if bytes([b]) not in ranks]
        if missing_bytes:
            raise TokenizerError(
                f"{self.name}: the vocabulary has no token for the byte 0x{missing_bytes[0]:02x}; "
                "a byte-level vocabulary holds all 256 bytes."
            )
        try:
            self._encoding = tiktoken.Encoding(
                self.name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except ValueError as error:
            raise TokenizerError(
                f"{self.name}: tiktoken cannot compile the split pattern: {error}"
            ) from error
        self._id_to_rank = (
            None
            if vocabulary.ids is None
            else {token_id: rank for rank, token_id in enumerate(vocabulary.ids)}
        )
        self.ordinary_ids = frozenset(ordinary)
        """The ids of every token that stands for text."""
        self.control = self._find_controls()
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise TokenizerError(
                f"{self.name}: the split pattern leaves out parts of a text, which would then be "
                "lost; a pattern must cover every character."
            )

    def _find_controls(self) -> ControlTokens:
        known = self._spelling_to_id
        missing = [spelling for spelling in _SPELLINGS.values() if spelling not in known]
        if missing:
            raise TokenizerError(
                f"{self.name}: the vocabulary lacks the control token {missing[0]}, which Harmony "
                "needs; use the vocabulary of a gpt-oss model."
            )
        ids = {field: known[spelling] for field, spelling in _SPELLINGS.items()}
        return ControlTokens(**ids, startoftext=known.get("<|startoftext|>"))

    # -- Loading -----------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a model folder (its tokenizer.json), a tokenizer.json, or an
        `o200k_base.tiktoken`-style file of ranks.

        Raises TokenizerError when there is none, or it cannot be represented exactly.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"There is no vocabulary at {path}; give a model folder with a tokenizer.json, a "
                "tokenizer.json, or an o200k_base.tiktoken file."
            )
        if path.suffix == ".tiktoken":
            return cls.from_tiktoken(path)
        return cls.from_tokenizer_json(path)

    @classmethod
    def from_tiktoken(cls, path: str | Path) -> Tokenizer:
        """From a file of `base64 rank` lines, to which the o200k_harmony control tokens are
        added. Id = rank.
        """
        path = Path(path)
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(_read(path).splitlines(), 1):
            if not line:
                continue
            try:
                spelled, rank = line.split()
                ranks[base64.b64decode(spelled, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as error:
                raise TokenizerError(
                    f"{path}, line {number}: expected a base64 token and its rank, got "
                    f"{line[:40]!r}."
                ) from error
        if len(set(ranks.values())) != len(ranks):
            raise TokenizerError(f"{path}: two tokens share a rank; every token needs its own.")
        return cls(_Vocabulary(path.name, _O200K_PATTERN, ranks, _o200k_harmony_controls()))

    @classmethod
    def from_tokenizer_json(cls, path: str | Path) -> Tokenizer:
        """From a Hugging Face tokenizer.json that holds a byte-level BPE; its ids, control tokens
        and split pattern are taken as they stand.
        """
        path = Path(path)
        try:
            document = json.loads(_read(path))
        except ValueError as error:
            raise TokenizerError(f"{path} is not JSON: {error}.") from error
        try:
            vocabulary = _read_document(str(path), document)
        except TokenizerError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise TokenizerError(
                f"{path} does not have the form of a tokenizer.json: {type(error).__name__} at "
                f"{error}."
            ) from error
        return cls(vocabulary)

    # -- Text to ids -------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ordinary tokens only: `<|start|>` in the text becomes the letters, never the control
        token. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.

        A run of more than 65,536 whitespace characters is encoded in pieces of that length, so
        that no text can exhaust the regex engine; the text is the same, the tokens are those of
        the pieces.
        """
        if len(text) > _MAX_WHITESPACE_RUN and _may_have_long_run(text):
            ids = [
                i for piece in _cut_long_runs(text) for i in self._encoding.encode_ordinary(piece)
            ]
        else:
            ids = self._encoding.encode_ordinary(text)
        if self._rank_to_id is not None:
            ids = [self._rank_to_id[rank] for rank in ids]
        return ids

    def encode_with_controls(self, text: str) -> list[int]:
        """Like `encode`, but a spelled control token becomes that token: the inverse of `decode`
        on rendered conversations. Never for text that somebody else wrote.
        """
        ids: list[int] = []
        begin = 0
        for match in self._control_pattern.finditer(text):
            ids += self.encode(text[begin : match.start()])
            ids.append(self._spelling_to_id[match.group()])
            begin = match.end()
        return ids + self.encode(text[begin:])

    def encode_control(self, spelling: str) -> int:
        """The id of a control token by its spelling, such as `<|start|>`."""
        try:
            return self._spelling_to_id[spelling]
        except KeyError:
            raise TokenizerError(f"{self.name} has no control token {spelling!r}.") from None

    # -- Ids to text -------------------------------------------------------------------------

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the tokens; control tokens as their spelling, ids outside the vocabulary
        as U+FFFD.
        """
        try:
            if self._id_to_rank is None:
                return self._encoding.decode_bytes(ids)
            return self._encoding.decode_bytes([self._id_to_rank[i] for i in ids])
        except (KeyError, OverflowError):  # a control token or an unknown id among them
            return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: `decode_bytes([token_id])`."""
        if token_id in self.ordinary_ids:
            rank = token_id if self._id_to_rank is None else self._id_to_rank[token_id]
            return self._encoding.decode_single_token_bytes(rank)
        return self._spellings.get(token_id, REPLACEMENT).encode()

    def is_control(self, token_id: int) -> bool:
        """Whether the id carries no text of its own: a control or reserved token, or an id outside
        the vocabulary (an embedding table is often larger than its vocabulary).
        """
        return token_id not in self.ordinary_ids


# -- Reading files --------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"Cannot read {path}: {error.strerror}.") from error


def _read_document(name: str, document: Any) -> _Vocabulary:
    model: Mapping[str, Any] = document["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"{name}: expected a BPE model, got {model['type']!r}.")
    if document.get("normalizer") is not None:
        raise TokenizerError(f"{name}: a normalizer would change the text; gpt-oss has none.")
    for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise TokenizerError(f"{name}: {key} is set; a byte-level BPE does without it.")
    controls = {str(t["content"]): t["id"] for t in document.get("added_tokens", ())}
    vocab = cast("dict[str, int]", dict(model["vocab"]))
    for spelling, token_id in controls.items():
        # Trainers list the control tokens in the vocabulary as well.
        if vocab.get(spelling) == token_id:
            del vocab[spelling]
    merged = _merge_order(name, vocab, model["merges"])
    spelled = _bytes_of(name, vocab)
    pattern = _split_pattern(name, document.get("pre_tokenizer"))
    if all(a < b for a, b in itertools.pairwise(merged)):
        ranks = {spelled[token]: token_id for token, token_id in vocab.items()}
        return _Vocabulary(name, pattern, ranks, controls)
    # Merges happen in an order of their own. Tokens that no merge makes never compete, so any
    # ranks below the others do for them.
    made = set(merged)
    ids = [token_id for token_id in vocab.values() if token_id not in made] + merged
    rank_of = {token_id: rank for rank, token_id in enumerate(ids)}
    ranks = {spelled[token]: rank_of[token_id] for token, token_id in vocab.items()}
    return _Vocabulary(name, pattern, ranks, controls, ids)


def _merge_order(name: str, vocab: Mapping[str, int], merges: Iterable[Any]) -> list[int]:
    """The ids of merged tokens in the order in which they are made."""
    if len(set(vocab.values())) != len(vocab):
        raise TokenizerError(f"{name}: two tokens share an id; every token needs its own.")
    pairs: dict[str, list[str]] = {}  # a token → the left parts of the pairs that make it
    last = None
    for pair in merges:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        token = left + right
        if not (left in vocab and right in vocab and token in vocab):
            raise TokenizerError(
                f"{name}: the merge of {left!r} and {right!r} names a token that is not in the "
                "vocabulary."
            )
        if token == last:
            pairs[token].append(left)
        elif token not in pairs:
            pairs[token] = [left]
        else:
            raise TokenizerError(
                f"{name}: the merges that make {token!r} stand apart, so ranks of tokens cannot "
                "express their order; convert the file from its original ranks."
            )
        last = token
    _check_pairs(name, vocab, pairs)
    return [vocab[token] for token in pairs]


def _check_pairs(name: str, vocab: Mapping[str, int], pairs: Mapping[str, list[str]]) -> None:
    """Hugging Face merges the pairs it lists, tiktoken any two neighbours that make a token. The
    results agree when each token lists the one pair that its own letters come down to.
    """
    order = {token: position for position, token in enumerate(pairs)}
    for token in vocab:
        length = len(token)
        if length == 1:
            continue
        lefts = pairs.get(token, [])
        splits = [i for i in range(1, length) if token[:i] in vocab and token[i:] in vocab]
        if lefts and len(lefts) == len(splits):  # all there are, as in files made from ranks
            continue
        parts = list(token)
        while len(parts) > 2:
            joined = [order.get(a + b, len(order)) for a, b in itertools.pairwise(parts)]
            best = min(joined)
            if best >= order.get(token, 0):
                break
            i = joined.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) != 2 or parts[0] not in lefts:
            raise TokenizerError(
                f"{name}: the merges do not lead to the token {token!r}, or not by the pair "
                "listed, so tiktoken would encode other tokens; convert the file from its "
                "original ranks."
            )


def _bytes_of(name: str, vocab: Iterable[str]) -> dict[str, bytes]:
    """Undoes GPT-2's byte-to-unicode map, which spells every byte as a printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    try:
        return {token: bytes([byte_of[c] for c in token]) for token in vocab}
    except KeyError as error:
        raise TokenizerError(
            f"{name}: the character {error} is not in the byte-level alphabet; expected a "
            "byte-level BPE."
        ) from None


def _split_pattern(name: str, pre_tokenizer: Any) -> str:
    """The regex that cuts a text into pieces, from `ByteLevel` or `Sequence[Split, ByteLevel]`."""
    steps: list[Any] = [pre_tokenizer]
    if pre_tokenizer is not None and pre_tokenizer["type"] == "Sequence":
        steps = list(pre_tokenizer["pretokenizers"])
    kinds = [None if step is None else step["type"] for step in steps]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise TokenizerError(
            f"{name}: expected the pre-tokenizer ByteLevel, or one Split followed by ByteLevel; "
            f"got {kinds}."
        )
    byte_level = steps[-1]
    if byte_level.get("add_prefix_space"):
        raise TokenizerError(f"{name}: add_prefix_space would change the text; gpt-oss has it off.")
    if kinds == ["ByteLevel"]:
        if not byte_level.get("use_regex", True):
            return r"[\s\S]+"
        return _GPT2_PATTERN
    split = steps[0]
    behavior = split.get("behavior"), bool(split.get("invert"))
    if behavior not in (("Isolated", False), ("Removed", True)) or byte_level.get(
        "use_regex", True
    ):
        raise TokenizerError(
            f"{name}: the Split must keep what it matches as the pieces (Isolated), with "
            "use_regex off in ByteLevel."
        )
    return str(split["pattern"]["Regex"])


# -- Long runs of whitespace ----------------------------------------------------------------------


def _may_have_long_run(text: str) -> bool:
    """A run longer than the limit covers one of the aligned windows of half its length."""
    window = _MAX_WHITESPACE_RUN // 2
    return any(text[i : i + window].isspace() for i in range(0, len(text), window))


def _cut_long_runs(text: str) -> Iterable[str]:
    """The text in pieces none of which holds a run of whitespace above the limit."""
    begin = position = 0
    while position < len(text):
        if not text[position].isspace():
            position += 1
            continue
        run = position
        while position < len(text) and text[position].isspace():
            position += 1
        while position - run > _MAX_WHITESPACE_RUN:
            run += _MAX_WHITESPACE_RUN
            yield text[begin:run]
            begin = run
    yield text[begin:]
