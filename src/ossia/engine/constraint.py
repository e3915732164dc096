"""Which tokens may come next: a grammar's text and a vocabulary → a bit mask per step (llguidance).

A compiler serves one vocabulary and keeps the grammars it has compiled; a constraint is the state
of one request. Text never passes here: a grammar speaks of tokens by their bytes, and of control
tokens by their spelling. llguidance is imported with the first grammar, never before.

Legend: V vocabulary, W = ceil(V / 32) words of a mask.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ossia.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_KEPT_GRAMMARS = 64  # compiled ones, about 1 MB each for twenty tools


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A vocabulary, as far as a grammar needs it."""

    tokens: Sequence[bytes]
    """By id, one per row of the unembedding; empty where an id stands for nothing. Of a control
    token: its spelling."""
    control_ids: frozenset[int]
    end_id: int
    """The control token that is allowed where the grammar may end."""
    encode: Callable[[str], list[int]]
    """Text → ordinary ids. Where the grammar leaves one text, its tokens are the encoder's."""

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)


class TokenConstraint:
    """A grammar on the way through one request. Not for several threads at once."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self.vocab_size = vocab_size
        self.num_accepted = 0
        """Tokens that it has followed."""
        self._astray: int | None = None

    def fill(self, mask_W: np.ndarray) -> None:
        """Write the bits of the tokens that may come next: uint32 [W], contiguous, bit i of word w
        = token 32·w + i. No bit is set after a failure. Releases the GIL meanwhile.
        """
        words = -(-self.vocab_size // 32)
        assert mask_W.dtype == np.uint32 and mask_W.shape == (words,), (mask_W.dtype, mask_W.shape)
        assert mask_W.flags.c_contiguous
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        if self.failure is not None:  # the matcher would let the end token through
            mask_W[:] = 0

    def accept(self, token_id: int) -> bool:
        """Follow a token. False, and nothing has changed, where the grammar does not allow it."""
        accepted = self._matcher.try_consume_tokens([token_id]) == 1
        self.num_accepted += accepted
        return accepted

    def follow(self, token_id: int) -> None:
        """Accept a token that stands in the answer; one that is not allowed there, since somebody
        else than the sampler put it there, is a failure for good.
        """
        if not self.accept(token_id):
            self._astray = token_id

    def rollback(self, num_tokens: int) -> None:
        """Take back the last tokens that were accepted. Raises ValueError for more than those."""
        if not 0 <= num_tokens <= self.num_accepted:
            raise ValueError(
                f"{self.num_accepted} tokens were accepted; {num_tokens} cannot be taken back."
            )
        if num_tokens:
            self._matcher.rollback(num_tokens)
            self.num_accepted -= num_tokens

    def count_legal(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, from the first one on, may follow. Changes nothing."""
        return self._matcher.validate_tokens(list(token_ids))

    @property
    def may_end(self) -> bool:
        """Whether the tokens so far satisfy the grammar; more of them may still be allowed."""
        return self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether they satisfy it and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def failure(self) -> str | None:
        """Why it cannot go on, in one sentence. A grammar also gives up, its work for one token
        being bounded.
        """
        if self._matcher.is_error():
            said = _line(self._matcher.get_error())
            return f"The grammar cannot be followed any further: {said}."
        if self._astray is not None:
            return f"The grammar does not allow the token {self._astray}, which was put there."
        return None


class GrammarCompiler:
    """Grammars for one vocabulary. May be called from any thread."""

    def __init__(self, table: Callable[[], TokenTable]) -> None:
        """`table` is called with the first grammar: 200,000 tokens take a second or two."""
        self._table = table
        self._tokenizer: LLTokenizer | None = None
        self._vocab_size = 0
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, grammar: str, written: Sequence[int] = ()) -> TokenConstraint:
        """A grammar for one request, at its beginning or after the tokens `written`, which stand
        in the prompt. `grammar` is Lark text as llguidance reads it, or its JSON form with several
        grammars.

        Raises RequestError for a grammar that cannot be compiled, naming the keyword of a JSON
        schema where one is the reason; and for tokens that it does not allow.
        """
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compiled[grammar] = self._compile(grammar)
                if len(self._compiled) > _KEPT_GRAMMARS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            copy = matcher.deep_copy()
        legal = copy.try_consume_tokens(list(written)) if written else 0
        if legal < len(written):
            raise RequestError(
                f"The prompt begins an answer that its grammar does not allow: {legal} of its "
                f"{len(written)} tokens fit."
            )
        return TokenConstraint(copy, self._vocab_size)

    def _compile(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        if self._tokenizer is None:
            table = self._table()
            self._tokenizer, self._vocab_size = _adapt(table), table.vocab_size
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestError(_refusal(matcher.get_error()))
        return matcher


class _Adapter:
    """What llguidance's `TokenizerWrapper` asks for."""

    def __init__(self, table: TokenTable) -> None:
        self.tokens = table.tokens
        self.special_token_ids = sorted(table.control_ids)
        self.eos_token_id = table.end_id
        self.bos_token_id = None
        self._encode = table.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


def _adapt(table: TokenTable) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Adapter(table)), n_vocab=table.vocab_size)


# What llguidance says of a JSON schema → the keywords that it does not name itself.
_KEYWORDS = (
    (r"Unimplemented keys: \[(.*?)\]", r"\1"),
    (r"oneOf constraints are not supported", "oneOf, whose branches are not known to exclude "
     "each other"),
    (r"min/maxProperties only supported", "minProperties or maxProperties beside optional "
     "properties"),
    (r"patternProperty regexes (.*?) and (.*?) are not disjoint", r"patternProperties, of which "
     r"\1 and \2 overlap"),
    (r"Unknown format: (\S+)", r"format with the value \1"),
    (r"Invalid type: (\S+)", r"type with the value \1"),
    (r"Failed to generate regex for \w+ range", "minimum or maximum of this size"),
    (r"(?:Resource|Pointer) '(.*?)'.*(?:registry|does not exist)", r"$ref to \1, which is not a "
     r"part of the same schema"),
)  # fmt: skip
_IN_SCHEMA = "failed to compile JSON schema: "


def _refusal(message: str) -> str:
    """llguidance's error as one sentence, without the dump of its state."""
    _, in_schema, said = message.partition(_IN_SCHEMA)
    if in_schema and (found := _REGEX_ERROR.search(said)):
        return f"The JSON schema's keyword pattern cannot be enforced: {_line(found[1])}."
    if in_schema:
        for pattern, keyword in _KEYWORDS:
            if found := re.search(pattern, said):
                named = found.expand(keyword).replace('"', "")
                return f"Grammars do not support the JSON schema's keyword {named}; leave it out."
        return f"The JSON schema cannot be enforced: {_line(said)}."
    if found := _REGEX_ERROR.search(message):
        return f"The regular expression cannot be compiled: {_line(found[1])}."
    return f"The grammar cannot be compiled: {_line(message)}."


_REGEX_ERROR = re.compile(r"regex parse error.*?error: ([^\n]*)", re.DOTALL)


def _line(message: str) -> str:
    return message.strip().partition("\n")[0].rstrip(".")[:200]
