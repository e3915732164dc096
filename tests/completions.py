"""Completions for tests of the parser: written down as text, made into tokens of any vocabulary."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ossia.harmony.events import ContentDelta, HarmonyEvent
from ossia.harmony.offered import ToolSpec
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.tokenizer import Tokenizer
from support import o200k, small_tokenizer

_NOTATION = re.compile(
    r"\{literal: (?P<literal>[^}]*)\}|\{id (?P<id>\d+)\}|\{U\+(?P<character>[0-9A-F]+)\}"
    r"|(?P<control><\|\w+\|>)|(?P<newline>⏎)"
)


def scrambled() -> Tokenizer:
    """A small vocabulary with its ids permuted."""
    return small_tokenizer(True)


def vocabulary(name: str) -> Tokenizer:
    """By name, so that only a test that needs o200k is skipped where there is none."""
    return {"o200k": o200k, "scrambled": scrambled}[name]()


VOCABULARIES = ("o200k", "scrambled")


def tokens_of(tokenizer: Tokenizer, notation: str) -> list[int]:
    """`<|…|>` is that control token, `{literal: …}` the same in ordinary tokens, `{id 4103}` a
    token that is no UTF-8 by itself, `{U+00A0}` a character and ⏎ a newline.
    """
    ids: list[int] = []
    text = ""
    at = 0
    for match in _NOTATION.finditer(notation):
        text += notation[at : match.start()]
        at = match.end()
        if match["character"]:
            text += chr(int(match["character"], 16))
        elif match["newline"]:
            text += "\n"
        else:
            ids += tokenizer.encode(text)
            text = ""
            if match["control"]:
                ids.append(tokenizer.encode_control(match["control"]))
            elif match["literal"] is not None:
                ids += tokenizer.encode(match["literal"])
            else:
                ids.append(not_utf8(tokenizer))
    return ids + tokenizer.encode(text + notation[at:])


@functools.cache
def not_utf8(tokenizer: Tokenizer) -> int:
    """An ordinary token whose bytes end in the middle of a character, whatever comes before."""
    continuations = (
        i for i in sorted(tokenizer.ordinary_ids) if tokenizer.token_bytes(i) == b"\xb8"
    )
    return next(continuations)


def chunked(ids: Sequence[int], rng: random.Random) -> list[Sequence[int]]:
    """The tokens in pieces of random lengths, empty ones among them."""
    pieces: list[Sequence[int]] = []
    at = 0
    while at < len(ids):
        size = rng.choice((0, 1, 1, 2, 3, 7, 50))
        pieces.append(ids[at : at + size])
        at += size
    return pieces


def parse(
    tokenizer: Tokenizer,
    pieces: Iterable[Sequence[int]],
    *,
    cut: bool | None = None,
    tools: Iterable[ToolSpec] = (),
    **options: object,
) -> list[HarmonyEvent]:
    parser = HarmonyParser(tokenizer, tools=tools, **options)  # pyright: ignore[reportArgumentType]
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish(cut=cut)


def joined(events: Iterable[HarmonyEvent]) -> list[HarmonyEvent]:
    """The events with adjacent deltas made one."""
    result: list[HarmonyEvent] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            assert event.kind is last.kind
            span = last.span[0], event.span[1]
            result[-1] = replace(last, span=span, text=last.text + event.text)
        else:
            result.append(event)
    return result
