"""How many tokens a second does the Harmony parser take where nothing needs repair?

    python benchmarks/parser.py VOCABULARY [--seconds 2]

VOCABULARY is a model's folder, its tokenizer.json or a file of o200k ranks. The stream is a turn of
a long thought, a call and a long answer, fed whole, in pieces of 64 tokens, and one by one; each
figure is the best of the runs that fit into the time. The aim is 200,000 a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from ossia.harmony.parser import HarmonyParser
from ossia.harmony.tokenizer import Tokenizer

PROSE = (
    "The user asks for the area of a circle of radius 3. It is pi times r squared, so 9 pi, "
    'about 28.27. Größe und Maß: 日本語のテキスト, naïve café, `print(1)`, {"a": [1, 2]}. '
)


def turn(tokenizer: Tokenizer, tokens: int) -> list[int]:
    """A turn of at least so many tokens without anything to repair."""
    prose = tokenizer.encode(PROSE)
    half = prose * (tokens // (2 * len(prose)) + 1)
    ids: list[int] = []
    for piece in (
        "<|channel|>analysis<|message|>",
        half,
        "<|end|><|start|>assistant<|channel|>commentary to=functions.f json<|message|>",
        tokenizer.encode('{"radius": 3}'),
        "<|call|><|start|>assistant<|channel|>final<|message|>",
        half,
        "<|return|>",
    ):
        ids += tokenizer.encode_with_controls(piece) if isinstance(piece, str) else piece
    return ids


def parse(tokenizer: Tokenizer, pieces: Sequence[Sequence[int]]) -> None:
    parser = HarmonyParser(tokenizer, tools=["f"])
    for piece in pieces:
        parser.feed(piece)
    parser.finish()


def best_seconds(work: Callable[[], None], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("vocabulary")
    arguments.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    options = arguments.parse_args()
    tokenizer = Tokenizer.load(options.vocabulary)
    ids = turn(tokenizer, 20_000)
    print(f"{len(ids)} tokens of {tokenizer.name}")
    for size in (len(ids), 64, 1):
        pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
        took = best_seconds(lambda pieces=pieces: parse(tokenizer, pieces), options.seconds)
        label = "whole" if size == len(ids) else f"{size} at a time"
        print(f"{label:>14}: {len(ids) / took:>12,.0f} tokens/s")


if __name__ == "__main__":
    main()
