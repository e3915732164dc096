"""The measuring that both engines share, with an engine that only notes what it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peer_plan
import pytest
from peer_plan import FIRST_TOKENS, Plan, Stopwatch, measure

PLAN = Plan(
    model="",
    threads=1,
    tokens=list(range(10_000)),
    context=64,
    prefill=[32, 128],
    depths=[0, 256],
    sequences=[1, 3],
    windows=2,
    steps=5,
)
WARM_UP = 2
DECODED = WARM_UP + 2 * 5


class NotingEngine:
    """Every position must follow the one before it; the greedy token is the last one plus one."""

    def __init__(self, plan):
        self.asked = []
        self.length = 0

    def describe(self):
        return {"name": "noting"}

    def open(self, sequences):
        self.sequences, self.length = sequences, 0
        self.asked.append(("open", len(sequences), len(sequences[0])))

    def reset(self):
        self.length = 0
        self.asked.append(("reset",))

    def advance(self, start, count):
        assert start == self.length
        self.length += count
        assert self.length <= len(self.sequences[0])
        self.asked.append((start, count))
        return [ids[self.length - 1] + 1 for ids in self.sequences]

    def read_gb_per_s(self):
        return 34.0


@pytest.fixture
def measured():
    engines, samples = [], []

    def load(plan):
        engines.append(NotingEngine(plan))
        return engines[0]

    measure(PLAN, load, started=0.0, emit=samples.append)
    return engines[0].asked, samples


def test_a_deeper_measurement_goes_on_from_the_one_before(measured):
    asked, _ = measured
    ones = [(position, 1) for position in range(DECODED)]
    assert asked == [
        ("open", 1, 256 + DECODED),
        (0, FIRST_TOKENS),
        ("reset",),
        *ones,
        ("reset",),
        (0, 32),
        ("reset",),
        (0, 128),
        (128, 256 - 128),
        *((256 + position, 1) for position in range(DECODED)),
        ("open", 1, DECODED),
        *ones,
        ("open", 3, DECODED),
        *ones,
    ]


def test_every_sample_says_what_it_measured(measured):
    _, samples = measured
    kinds = [(s["kind"], s.get("depth", s.get("tokens", s.get("when")))) for s in samples]
    assert kinds == [
        ("engine", None),
        ("load", None),
        ("first token", None),
        ("memory", "first token"),
        *[("decode", 0)] * 2,
        ("prefill", 32),
        ("prefill", 128),
        *[("decode", 256)] * 2,
        ("memory", "one sequence"),
        *[("batch", 0)] * 4,
        ("memory", "all"),
    ]
    decode, batch = samples[8], samples[-2]
    # Warm-up first: the first window at depth 256 computes positions 258 to 262.
    assert decode["ids"] == [259, 260, 261, 262, 263]
    assert (decode["sequences"], decode["tokens"], decode["read_gb_per_s"]) == (1, 5, 34.0)
    assert (batch["sequences"], batch["tokens"], len(batch["ids"])) == (3, 15, 15)
    assert all(s["seconds"] > 0 for s in samples if "seconds" in s)


def test_sequences_side_by_side_read_different_tokens():
    first, second = PLAN.tokens_of(0, 50), PLAN.tokens_of(1, 50)
    assert first == list(range(50))
    assert set(first).isdisjoint(second)
    assert len(PLAN.tokens_of(40, 9_000)) == 9_000  # past the end it begins anew


def test_the_longest_sequence_decides_the_cache():
    assert PLAN.longest == 256 + DECODED
    assert replace(PLAN, depths=[]).longest == 128
    assert replace(PLAN, depths=[], prefill=[]).longest == FIRST_TOKENS


def test_memory_is_that_of_the_process():
    before = peer_plan.memory("now")
    block = b"x" * (64 << 20)
    after = peer_plan.memory("now")
    grown = after["anonymous_bytes"] - before["anonymous_bytes"]
    assert 60 << 20 < grown < 80 << 20
    assert after["peak_bytes"] >= after["anonymous_bytes"] + after["file_bytes"] - (1 << 20)
    del block
    assert peer_plan.memory("now")["peak_bytes"] >= after["peak_bytes"] - (1 << 20)


def test_the_stopwatch_tells_our_work_from_others(monkeypatch):
    busy = iter([100.0, 103.0])  # all cores together: 3 s of work in the meantime
    times = iter([(1.0, 0.5), (2.0, 0.5)])  # 1 s of it ours
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(peer_plan, "_processor_seconds", lambda: next(busy))
    monkeypatch.setattr(peer_plan.os, "times", lambda: next(times))
    monkeypatch.setattr(peer_plan.time, "perf_counter", lambda: next(clock))
    assert Stopwatch().read() == {"seconds": 4.0, "other_cores": 0.5}


def test_a_failure_is_a_sample_with_one_sentence_and_output_of_libraries_is_apart():
    script = """
import os, sys
from peer_plan import run
def load(plan):
    os.write(1, b"a library greets\\n")
    raise ValueError(f"no model of {plan.threads} threads")
sys.exit(run(load, (ValueError,)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=PLAN.to_json(),
        capture_output=True,
        text=True,
        cwd=Path(peer_plan.__file__).parent,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"kind": "error", "message": "no model of 1 threads"}
    assert "a library greets" in done.stderr
