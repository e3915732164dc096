"""What does a grammar cost? Compiling a turn with twenty tools, and per token a mask and its
acceptance, in each kind of place of a turn. CPU time, so that a busy machine says the same.

    python benchmarks/grammars.py [--tokenizer PATH] [--vocab-size N] [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

import ossia.nano
from ossia.agent.turn_constraint import token_table
from ossia.engine.constraint import GrammarCompiler
from ossia.harmony.grammar import TurnOptions, turn_grammar
from ossia.harmony.messages import Tool, ToolNamespace
from ossia.harmony.tokenizer import Tokenizer

THOUGHT = "The user asks for the weather in two cities. " * 4
TURN = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.tool_07 <|constrain|>json<|message|>"
    '{"city": "Saint-Rémy-de-Provence, in the south of France", "days": 14, '
    '"units": "celsius", "hours": [6, 12, 18]}<|call|>'
)
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where"},
        "days": {"type": "integer", "minimum": 1, "maximum": 16},
        "units": {"enum": ["celsius", "fahrenheit"]},
        "hours": {"type": "array", "items": {"type": "integer"}, "maxItems": 24},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city", "days"],
}


def twenty_tools() -> tuple[ToolNamespace, ...]:
    # Each schema differs, so that nothing is shared.
    tools = [
        Tool(
            f"tool_{i:02}",
            "",
            {**PARAMETERS, "properties": {**PARAMETERS["properties"], f"p{i}": {}}},
        )
        for i in range(20)
    ]
    return (ToolNamespace("functions", tools=tuple(tools)),)


def place_of(text: str) -> str:
    """The kind of place after this much of the turn."""
    if "<|message|>" not in text.rpartition("<|end|>")[2]:
        return "header"
    if "functions" not in text:
        return "free text"
    return "JSON string" if text.count('"') % 2 else "JSON structure"


def measure(tokenizer: Tokenizer, vocab_size: int, rounds: int) -> dict[str, object]:
    grammar = turn_grammar(TurnOptions(tools=twenty_tools())).text
    warm = GrammarCompiler(lambda: token_table(tokenizer, vocab_size))
    begin = time.process_time()
    warm.constraint("start: /a/")
    adapter = time.process_time() - begin
    begin = time.process_time()
    warm.constraint(grammar)
    compiled = time.process_time() - begin
    copies: list[float] = []
    fills: dict[str, list[float]] = {}
    accepts: list[float] = []
    mask_W = np.zeros(-(-vocab_size // 32), np.uint32)
    ids = tokenizer.encode_with_controls(TURN)
    for _ in range(rounds):
        begin = time.process_time()
        constraint = warm.constraint(grammar)
        copies.append(time.process_time() - begin)
        for at, token in enumerate(ids):
            begin = time.process_time()
            constraint.fill(mask_W)
            filled = time.process_time()
            assert constraint.accept(token), tokenizer.decode(ids[: at + 1])
            accepts.append(time.process_time() - filled)
            fills.setdefault(place_of(tokenizer.decode(ids[:at])), []).append(filled - begin)
    return {
        "tokens": vocab_size,
        "adapter_s": round(adapter, 3),
        "compile_20_tools_ms": round(compiled * 1e3, 2),
        "copy_us": round(statistics.median(copies) * 1e6, 1),
        "accept_us": round(statistics.mean(accepts) * 1e6, 1),
        "mask_us": {
            place: {
                "mean": round(statistics.mean(seconds) * 1e6, 1),
                "median": round(statistics.median(seconds) * 1e6, 1),
                "most": round(max(seconds) * 1e6, 1),
            }
            for place, seconds in fills.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", default=str(Path(ossia.nano.__file__).parent))
    parser.add_argument("--vocab-size", type=int, help="rows of the unembedding")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    tokenizer = Tokenizer.load(args.tokenizer)
    print(json.dumps(measure(tokenizer, args.vocab_size or tokenizer.vocab_size, args.rounds)))


if __name__ == "__main__":
    main()
