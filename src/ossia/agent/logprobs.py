"""Log-probabilities beside the text that is shown: which tokens a piece of text completes.

Text and tokens part ways: a character may take several tokens, and a stop string holds text back or
cuts it inside a token. The bytes of the tokens given out are always those of the text shown.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ossia.agent.events import Alternative, TokenLogprob
from ossia.harmony.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True)
class SampledToken:
    """A token as the engine gave it."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class LogprobAligner:
    """Of one text: put in what it is made of, take out what the shown part of it completes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = _Utf8Decoder("replace")
        self._waiting: deque[TokenLogprob] = deque()
        self._shown = 0
        """Bytes of the first token that waits which are shown."""

    def put(self, tokens: Iterable[SampledToken], text: str) -> None:
        """Tokens that were decoded to this further text, in whole or in part."""
        entries = [self._entry(token) for token in tokens if not self._is_control(token)]
        decoded = self._decoder.decode(b"".join(entry.bytes for entry in entries))
        if decoded != text:  # a message may end inside a character
            decoded += self._decoder.decode(b"", final=True)
        if decoded != text:  # header words stood before or behind it
            entries = _part(entries, text.encode())
        self._waiting += entries

    def put_text(self, text: str) -> None:
        """Text that no token stands for."""
        self._waiting.append(_no_token(text.encode()))

    def show(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens that are complete once this further text is shown."""
        raw = b"".join(entry.bytes for entry in self._waiting)
        end = self._shown
        for character in text:
            end += _num_bytes(raw, end, character)
        complete: list[TokenLogprob] = []
        while self._waiting and len(self._waiting[0].bytes) <= end:
            entry = self._waiting.popleft()
            end -= len(entry.bytes)
            complete.append(entry)
        self._shown = end
        return tuple(complete)

    def cut(self) -> tuple[TokenLogprob, ...]:
        """No more is shown: the last token as far as it is."""
        shown, self._shown = self._shown, 0
        rest = [_shortened(self._waiting[0], 0, shown)] if shown else []
        self._waiting.clear()
        return tuple(rest)

    def _is_control(self, token: SampledToken) -> bool:
        return self._tokenizer.is_control(token.token_id)

    def _entry(self, token: SampledToken) -> TokenLogprob:
        spelt = self._tokenizer.token_bytes(token.token_id)
        top = tuple(self._alternative(*each) for each in token.top)
        return TokenLogprob(_text(spelt), spelt, token.token_id, token.logprob, top)

    def _alternative(self, token_id: int, logprob: float) -> Alternative:
        spelt = self._tokenizer.token_bytes(token_id)
        return Alternative(token_id, _text(spelt), spelt, logprob)


def _text(spelt: bytes) -> str:
    return spelt.decode("utf-8", errors="replace")


def _no_token(spelt: bytes) -> TokenLogprob:
    return TokenLogprob(_text(spelt), spelt, None, None)


def _shortened(entry: TokenLogprob, begin: int, end: int) -> TokenLogprob:
    spelt = entry.bytes[begin:end]
    return replace(entry, text=_text(spelt), bytes=spelt)


def _part(entries: Sequence[TokenLogprob], spelt: bytes) -> list[TokenLogprob]:
    """Those tokens, or parts of them, that are these bytes."""
    begin = b"".join(entry.bytes for entry in entries).find(spelt)
    if begin < 0:
        return [_no_token(spelt)]
    end, at, part = begin + len(spelt), 0, list[TokenLogprob]()
    for entry in entries:
        first, last = max(begin - at, 0), min(end - at, len(entry.bytes))
        if first < last:
            part.append(_shortened(entry, first, last))
        at += len(entry.bytes)
    return part


def _num_bytes(raw: bytes, at: int, character: str) -> int:
    """How many of the bytes there were decoded to the character."""
    spelt = character.encode(errors="surrogatepass")
    if raw.startswith(spelt, at):
        return len(spelt)
    try:
        raw[at : at + 4].decode()
    except UnicodeDecodeError as error:  # bytes that are not UTF-8, shown as one U+FFFD
        return error.end
    return len(spelt)
