"""Ossia's side computes the model, through the real engine parts; and the whole script runs."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import peers
import pytest
import random_model
from peer_ossia import OssiaEngine
from peer_plan import Plan

from ossia.errors import UsageError
from ossia.model.selftest import plain_logits
from ossia.model.writer import write_checkpoint
from random_models import tiny_config

CONFIG = tiny_config(num_hidden_layers=2, sliding_window=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "20b-2-layers"
    return write_checkpoint(folder, CONFIG, random_model.RandomTensors(CONFIG).part)


def greedy(ids):
    """The next token after each of `ids`, by the formulas in float64."""
    return plain_logits(CONFIG, random_model.RandomTensors(CONFIG).part, ids).argmax(axis=-1)


def test_ossia_s_side_computes_the_given_tokens(checkpoint):
    """In chunks, one by one, after a reset, and side by side, far beyond the window."""
    tokens = np.random.default_rng(3).integers(0, 301, 400).tolist()
    plan = Plan(str(checkpoint), 1, tokens, context=200, chunk=48, options={"kernels": "reference"})
    engine = OssiaEngine(plan)
    ids = plan.tokens_of(0, 120)
    expected = greedy(ids)
    engine.open([ids])
    assert engine.advance(0, 100) == [expected[99]]
    assert [engine.advance(n, 1)[0] for n in range(100, 120)] == expected[100:].tolist()
    engine.reset()
    assert engine.advance(0, 50) == [expected[49]]

    together = [plan.tokens_of(s, 40) for s in range(3)]
    engine.open(together)
    found = [engine.advance(n, 1) for n in range(40)]
    assert np.array_equal(np.transpose(found), [greedy(ids) for ids in together])
    assert engine.read_gb_per_s() is None


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["peers.py", *map(str, words)])
    return peers.main()


def test_the_whole_script(checkpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(random_model.SHAPES, "20b", CONFIG)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    words = ("--only", "ossia", "--kernels", "reference", "--threads", 1, "--rounds", 2)
    sizes = ("--context", 64, "--prefill", 32, "--depths", 0, 48, "--sequences", 2)
    samples = ("--windows", 2, "--steps", 3)
    results = tmp_path / "results"
    where = ("--folder", checkpoint.parent, "--results", results)
    assert run(monkeypatch, *where, *words, *sizes, *samples) == 0
    printed = capsys.readouterr().out
    assert "decode at depth 48, tokens/s" in printed

    (path,) = results.glob("peers-*.json")
    text = path.read_text()
    assert str(checkpoint.parent) not in text
    saved = json.loads(text)
    assert saved["model"] == {"shape": "20b", "layers": 2}
    assert saved["machine"]["cores"] >= 1
    assert saved["rounds"] == {"finished": 2, "asked": 2}
    assert [path.name for path in results.iterdir()] == [path.name]
    kinds = [(s["round"], s["kind"]) for s in saved["samples"]]
    # Two windows at each of two depths in each round, and one prompt.
    assert [kinds.count((n, "decode")) for n in range(2)] == [4, 4]
    assert [kinds.count((n, "prefill")) for n in range(2)] == [1, 1]
    first = [s for s in saved["samples"] if s["kind"] == "first token"]
    assert all(0.05 < s["seconds"] < 60 for s in first)


SAMPLE = {"kind": "prefill", "tokens": 512, "seconds": 2.0}


def stop_in_round(monkeypatch, number, failure):
    """Rounds of two samples, of which round `number` fails after the first."""

    def samples(peer, plan, all_peers, label, patience):
        yield SAMPLE
        if label.startswith(f"round {number} "):
            raise failure
        yield SAMPLE

    monkeypatch.setattr(peers, "_run", samples)


@pytest.mark.parametrize(
    ("failure", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "\nstopped"),
        (UsageError("ossia: it broke."), 2, "error: ossia: it broke."),
    ],
    ids=["interrupt", "error"],
)
def test_a_run_that_stops_keeps_its_finished_rounds(
    checkpoint, monkeypatch, tmp_path, capsys, failure, status, told
):
    monkeypatch.setitem(random_model.SHAPES, "20b", CONFIG)
    results = tmp_path / "results"
    where = ("--folder", checkpoint.parent, "--results", results, "--only", "ossia")

    stop_in_round(monkeypatch, 1, failure)
    assert run(monkeypatch, *where) == status
    assert capsys.readouterr().out == ""
    assert not results.exists()

    stop_in_round(monkeypatch, 3, failure)
    assert run(monkeypatch, *where, "--rounds", 5) == status
    printed = capsys.readouterr()
    assert printed.err.startswith(told)
    (path,) = results.iterdir()
    assert f"saved: {path}, 2 of 5 rounds" in printed.out
    assert "| prefill 512, tokens/s | 256.0 |" in printed.out
    saved = json.loads(path.read_text())
    assert saved["rounds"] == {"finished": 2, "asked": 5}
    assert [sample["round"] for sample in saved["samples"]] == [0, 0, 1, 1]
    assert saved["summary"][0]["ossia"] == [256.0] * 3


def test_results_that_cannot_be_written_are_one_sentence(checkpoint, monkeypatch, tmp_path, capsys):
    """And what was measured is shown all the same; what was written before stays."""
    monkeypatch.setitem(random_model.SHAPES, "20b", CONFIG)
    stop_in_round(monkeypatch, 0, None)
    where = ("--folder", checkpoint.parent, "--only", "ossia", "--rounds", 2)
    results = tmp_path / "results"
    write, fails = Path.write_text, {2}

    def full(path, text, **how):
        if path.parent == results and json.loads(text)["rounds"]["finished"] in fails:
            write(path, text[:10], **how)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, text, **how)

    monkeypatch.setattr(Path, "write_text", full)
    assert run(monkeypatch, *where, "--results", results) == 2
    printed = capsys.readouterr()
    assert re.search(r"^error: .*: round 2 cannot be saved \(No space left on dev", printed.err)
    (path,) = results.iterdir()
    assert f"saved: {path}, 1 of 2 rounds" in printed.out
    assert json.loads(path.read_text())["rounds"]["finished"] == 1

    (tmp_path / "file").touch()
    assert run(monkeypatch, *where, "--results", tmp_path / "file") == 2
    printed = capsys.readouterr()
    assert "round 1 cannot be saved" in printed.err
    assert "saved" not in printed.out
    assert "| prefill 512" in printed.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--threads", 100_000), r"--threads takes 1 to \d+, this machine's; got 100000"),
        (("--rounds", 0), "--rounds must be at least 1; got 0"),
        (("--prefill", 512, 0), "--prefill takes numbers from 1; got 0"),
        (("--depths", -1), "--depths takes numbers from 0; got -1"),
        (("--layers", 99), "--layers takes 1 to 24 for 20b; got 99"),
        (("--shape", "7b"), "--shape takes one of 20b, 120b; got '7b'"),
        ((), "--llama-python must name an interpreter"),
    ],
)
def test_what_cannot_be_meant_is_refused(monkeypatch, tmp_path, capsys, words, sentence):
    given = ("--folder", tmp_path, *words)
    if words:
        given += ("--only", "ossia")
    assert run(monkeypatch, *given) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(sentence, line)


def test_unknown_kernels_are_one_sentence(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(random_model.SHAPES, "20b", CONFIG)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    words = ("--folder", checkpoint.parent, "--only", "ossia", "--kernels", "abacus")
    assert run(monkeypatch, *words) == 2
    assert "error: ossia: --kernels takes one of" in capsys.readouterr().err


def test_a_killed_process_is_one_sentence():
    assert "memory ran out" in peers._why_ended(-9)
