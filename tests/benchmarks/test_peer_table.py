"""Figures, ratios and the printed table, from samples whose medians are known by arithmetic."""

from __future__ import annotations

import pytest
from peer_table import agreement, bytes_per_token, cells, rows, summary, table
from random_model import SHAPES

CONFIG = SHAPES["20b"]


def decode(engine, number, seconds, **more):
    return {
        "engine": engine,
        "round": number,
        "kind": "decode",
        "depth": 0,
        "sequences": 1,
        "tokens": 4,
        "seconds": seconds,
        "read_gb_per_s": None,
        "ids": [1, 2, 3, 4],
    } | more


def memory(engine, when, peak):
    return {"engine": engine, "round": 0, "kind": "memory", "when": when, "peak_bytes": peak}


def test_bytes_of_a_token_are_the_published_shape_s():
    # 4 of 32 experts of 3 · 2880 · 2880 weights at 4.25 bits; the rest of the 3,608,307,264 active
    # parameters at 8.5.
    experts = 24 * 4 * 3 * 2880 * 2880
    expected = experts * 4.25 / 8 + (3_608_307_264 - experts) * 8.5 / 8
    assert bytes_per_token(CONFIG, 0) == pytest.approx(expected, rel=1e-3)
    # Twelve full layers of 2 · 8 · 64 elements of 2 bytes a position, twelve of 128 positions.
    grown = bytes_per_token(CONFIG, 4096) - bytes_per_token(CONFIG, 0)
    assert grown == 12 * 2048 * (4096 + 128)


def test_median_and_range_over_rounds_and_the_ratio_within_each():
    samples = [
        *(decode("ossia", 0, s) for s in (0.2, 0.4, 0.8)),  # 20, 10, 5
        *(decode("llama.cpp", 0, s) for s in (0.8, 0.8)),  # 5
        decode("ossia", 1, 0.1),  # 40
        decode("llama.cpp", 1, 0.4),  # 10
        decode("ossia", 2, 0.1),  # no partner
    ]
    (entry,) = summary(samples, CONFIG)
    assert entry["ossia"] == pytest.approx([20, 5, 40])
    assert entry["llama.cpp"] == pytest.approx([5, 5, 10])
    assert entry["ratio"] == pytest.approx([3, 2, 4])
    assert "share of read bandwidth" not in entry


def test_share_of_the_bandwidth_probed_beside_each_window():
    # 10 tokens/s of 2.565 GB each are 25.65 GB/s.
    samples = [decode("ossia", 0, 0.4, read_gb_per_s=gb) for gb in (25.648, 51.296, 30.0)]
    (entry,) = summary(samples, CONFIG)
    assert entry["share of read bandwidth"] == pytest.approx([0.855, 0.5, 1.0], abs=1e-3)
    assert entry["read GB/s"] == [30.0, 25.648, 51.296]
    assert cells(entry)[-1] == "85 % (50–100) of 30.0 GB/s"


def test_peak_memory_is_the_largest_with_one_sequence():
    samples = [
        memory("ossia", "first token", 3 << 30),
        memory("ossia", "one sequence", 2 << 30),
        memory("ossia", "all", 9 << 30),
        memory("llama.cpp", "first token", 6 << 30),
    ]
    (entry,) = summary(samples, CONFIG)
    assert entry["ossia"] == [3 << 30] * 3
    assert entry["ratio"] == [0.5] * 3


def test_the_table_has_a_line_for_each_measurement_in_order():
    batch = decode("ossia", 0, 0.4) | {"kind": "batch", "sequences": 2}
    first = {"engine": "ossia", "round": 0, "kind": "first token", "seconds": 2.5, "ids": [7]}
    prefill = {"engine": "ossia", "round": 0, "kind": "prefill", "tokens": 512, "seconds": 2.0}
    samples = [first, batch, decode("ossia", 0, 0.4), decode("ossia", 0, 0.2), prefill]
    lines = table(rows(summary(samples, CONFIG))).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "prefill 512, tokens/s",
        "decode at depth 0, tokens/s",
        "decode, 2 sequences, total tokens/s",
        "start to first token, s",
    ]
    assert "| 15.0 (10.0–20.0) |" in lines[3]
    assert lines[3].split("|")[3].strip() == "–"  # llama.cpp has not run
    assert len({len(line) for line in lines}) == 1


def test_agreement_counts_the_same_token_at_the_same_place():
    samples = [
        decode("ossia", 0, 1.0),
        decode("ossia", 0, 1.0, ids=[5, 6, 7, 8]),
        decode("llama.cpp", 0, 1.0, ids=[1, 2, 3, 9]),
        decode("llama.cpp", 0, 1.0, ids=[5, 0, 7, 8]),
        decode("llama.cpp", 1, 1.0),
    ]
    assert list(agreement(samples)) == ["same greedy token after the same tokens: 6 of 8"]


def test_disturbed_samples_are_left_out_where_others_remain():
    samples = [
        decode("ossia", 0, 0.4, other_cores=0.02),  # 10
        decode("ossia", 0, 4.0, other_cores=0.5),  # 1, left out
        decode("llama.cpp", 0, 0.8, other_cores=0.5),  # 5, all there is
        decode("llama.cpp", 0, 0.8, other_cores=0.5),
    ]
    (entry,) = summary(samples, CONFIG)
    assert entry["ossia"] == pytest.approx([10, 10, 10])
    assert entry["llama.cpp"] == pytest.approx([5, 5, 5])
    assert entry["ratio"] == pytest.approx([2, 2, 2])


def test_other_people_s_work_is_told():
    samples = [
        decode("ossia", 0, 1.0, other_cores=0.4),
        decode("ossia", 0, 1.0, other_cores=0.05),
        decode("ossia", 0, 1.0, other_cores=0.0),
    ]
    (line,) = agreement(samples)
    assert line.startswith("disturbed: in 1 of 3 samples")
