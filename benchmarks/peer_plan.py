"""What an engine is measured on, and the measuring itself: a plan comes in as JSON on standard
input, every sample goes out as a line of JSON. Both engines run this same code.

The tokens are given, never fed back: the token at a position is the same for every engine and
round, so that all route to the same experts, and the engines' greedy choices can be compared.
Drawing the greedy token after every step is part of what is timed.

Only the standard library: the interpreter of the peer need not have Ossia.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

FIRST_TOKENS = 16
"""Prompt of the measurement from process start to first token."""
_WARM_UP_STEPS = 2
_STRIDE = 997  # sequences side by side read the same tokens so far apart

Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What to measure on one model, in one process."""

    model: str
    threads: int
    tokens: list[int]
    """The token at each position; the sequences of a batch start at different places in it."""
    context: int
    """Positions that a single sequence's cache holds."""
    chunk: int = 512
    """Tokens computed together while a prompt is read."""
    prefill: list[int] = field(default_factory=list[int])
    """Lengths of prompts, ascending."""
    depths: list[int] = field(default_factory=list[int])
    """Positions in the cache when one sequence begins to decode, ascending."""
    sequences: list[int] = field(default_factory=list[int])
    """How many sequences decode together, from an empty cache."""
    windows: int = 10
    """Samples of each decode."""
    steps: int = 4
    """Steps of each window."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """The engine's own."""

    @classmethod
    def read(cls) -> Plan:
        return cls(**json.load(sys.stdin))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def decoded(self) -> int:
        """Positions that one decode measurement adds."""
        return _WARM_UP_STEPS + self.windows * self.steps

    @property
    def longest(self) -> int:
        """Positions that one sequence reaches."""
        ends = [depth + self.decoded for depth in self.depths]
        return max([FIRST_TOKENS, *self.prefill, *ends])

    def tokens_of(self, sequence: int, length: int) -> list[int]:
        start, total = sequence * _STRIDE, len(self.tokens)
        return [self.tokens[(start + position) % total] for position in range(length)]


class Engine(Protocol):
    """A loaded model."""

    def describe(self) -> dict[str, Any]:
        """Name, version and settings."""
        ...

    def open(self, sequences: Sequence[Sequence[int]]) -> None:
        """An empty cache for these sequences, whose tokens are known beforehand; gives back the one
        before.
        """
        ...

    def reset(self) -> None:
        """Forget all keys and values."""
        ...

    def advance(self, start: int, count: int) -> list[int]:
        """Compute positions [start, start + count) of every sequence; the greedy next token of
        each. Waits for the result.
        """
        ...

    def read_gb_per_s(self) -> float | None:
        """Bandwidth at which the model's own file is read now by the same threads without any
        arithmetic; None where the engine cannot tell.
        """
        ...


def measure(plan: Plan, load: Callable[[Plan], Engine], started: float, emit: Emit) -> None:
    """Run the whole plan. `started` is `time.monotonic()` when the process was started, which all
    processes of a machine share.
    """
    engine = load(plan)
    emit({"kind": "engine", **engine.describe()})
    emit({"kind": "load", "seconds": time.monotonic() - started})
    engine.open([plan.tokens_of(0, max(plan.context, plan.longest))])
    ids = engine.advance(0, FIRST_TOKENS)
    emit({"kind": "first token", "seconds": time.monotonic() - started, "ids": ids})
    emit(memory("first token"))
    _single(plan, engine, emit)
    emit(memory("one sequence"))
    for count in plan.sequences:
        engine.open([plan.tokens_of(s, plan.decoded) for s in range(count)])
        _decode(plan, engine, emit, depth=0, sequences=count, kind="batch")
    emit(memory("all"))


def _single(plan: Plan, engine: Engine, emit: Emit) -> None:
    """Prompts and depths, shallow first: a deeper one goes on from what is in the cache."""
    length = FIRST_TOKENS
    for depth, is_prompt in sorted(
        [(n, True) for n in plan.prefill] + [(n, False) for n in plan.depths]
    ):
        if is_prompt or length > depth:
            engine.reset()
            length = 0
        if is_prompt:
            stopwatch = Stopwatch()
            ids = engine.advance(0, depth)
            emit({"kind": "prefill", "tokens": depth, **stopwatch.read(), "ids": ids})
            length = depth
        else:
            if length < depth:
                engine.advance(length, depth - length)
            _decode(plan, engine, emit, depth=depth, sequences=1, kind="decode")
            length = depth + plan.decoded


def _decode(
    plan: Plan, engine: Engine, emit: Emit, *, depth: int, sequences: int, kind: str
) -> None:
    position = depth
    for _ in range(_WARM_UP_STEPS):
        engine.advance(position, 1)
        position += 1
    for _ in range(plan.windows):
        ids: list[int] = []
        stopwatch = Stopwatch()
        for _ in range(plan.steps):
            ids += engine.advance(position, 1)
            position += 1
        elapsed = stopwatch.read()
        emit(
            {
                "kind": kind,
                "depth": depth,
                "sequences": sequences,
                "tokens": plan.steps * sequences,
                **elapsed,
                "read_gb_per_s": engine.read_gb_per_s(),
                "ids": ids,
            }
        )


class Stopwatch:
    """Wall time, and how much processor time everybody else took meanwhile: with a thread per core,
    one busy neighbour can cost an engine far more than its share.
    """

    def __init__(self) -> None:
        self._others = _processor_seconds() - sum(os.times()[:2])
        self._start = time.perf_counter()

    def read(self) -> dict[str, float]:
        """`seconds`, and `other_cores`: cores that were not idle and not ours, on average."""
        seconds = time.perf_counter() - self._start
        others = _processor_seconds() - sum(os.times()[:2]) - self._others
        return {"seconds": seconds, "other_cores": round(max(others, 0.0) / seconds, 3)}


def _processor_seconds() -> float:
    """All cores' time that was not idle since the machine started, in ticks of mostly 10 ms; stolen
    time of a virtual machine included.
    """
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def memory(when: str) -> dict[str, Any]:
    """This process's resident memory in bytes: the peak so far, and of what it consists now. Mapped
    pages of the model's file count as resident.
    """
    fields: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssAnon", "RssFile"):
            fields[name] = int(value.split()[0]) * 1024
    return {
        "kind": "memory",
        "when": when,
        "peak_bytes": fields["VmHWM"],
        "anonymous_bytes": fields["RssAnon"],
        "file_bytes": fields["RssFile"],
    }


def run(load: Callable[[Plan], Engine], failures: tuple[type[Exception], ...]) -> int:
    """The whole life of a measured process: the plan from standard input, samples to standard
    output. `failures` end it with one sentence in place of a sample.
    """
    # A library may print to standard output; the samples keep a descriptor of their own.
    samples = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(sample: dict[str, Any]) -> None:
        print(json.dumps(sample), file=samples, flush=True)

    started = float(sys.argv[1]) if len(sys.argv) > 1 else time.monotonic()
    try:
        measure(Plan.read(), load, started, emit)
    except failures as failure:
        emit({"kind": "error", "message": str(failure)})
        return 1
    return 0
