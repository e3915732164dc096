"""`ossia bench`: it computes what the engine computes, counts what it should, and prints what it
has when it is interrupted. Figures of speed are not tested.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoints import TINY, random_checkpoint
from ossia.bench.measure import WINDOWS, Bench, Plan, Result, Sample, engine_needed
from ossia.bench.stepper import Stepper
from ossia.cli.main import run
from ossia.errors import UsageError
from ossia.loading import KernelSettings, OpenedModel, open_model
from ossia.model.cost import step_cost
from ossia.model.inputs import packed_input
from ossia.model.transformer import forward


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    folder = random_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return open_model(folder, KernelSettings("native", threads=1), needs_tokenizer=False)


def test_a_stepper_draws_what_the_model_says(opened: OpenedModel) -> None:
    """In chunks and side by side, after more tokens than a step takes, and again from the start."""
    weights, rng = opened.prepare(), np.random.default_rng(0)
    sequences = [rng.integers(0, TINY.vocab_size, 700).tolist() for _ in range(2)]
    stepper = Stepper(opened.checkpoint.config, opened.kernels, weights, sequences)

    def greedy(length: int) -> list[int]:
        documents = [ids[:length] for ids in sequences]
        inputs = packed_input(documents, logit_rows=[length - 1, 2 * length - 1])
        handle = forward(opened.architecture, opened.kernels, weights, inputs)
        return opened.kernels.to_host(handle).argmax(axis=1).tolist()

    for count, end in ((1, 1), (600, 601), (1, 602), (98, 700)):
        assert stepper.advance(count) == greedy(end)
        assert stepper.position == end
    stepper.restart()
    assert stepper.advance(5) == greedy(5)


def test_a_result_by_hand() -> None:
    """Ten bytes in two seconds where four a second are possible: more than the machine can; and
    twice as long; and twice as long on a machine half as fast.
    """
    samples = (Sample(2.0, 10, 4.0), Sample(4.0, 10, 4.0), Sample(4.0, 10, 2.0))
    found = Result("batch", tokens=8, depth=0, sequences=2, samples=samples)
    assert found.tokens_per_second == 2.0
    assert found.shares == [0.625, 1.25, 1.25] and found.share == 1.25
    assert found.limit == 4.0 and found.bytes_per_token == 1.25
    unprobed = Result("decode", 1, 0, 1, (Sample(1.0, 10, None),))
    assert (unprobed.shares, unprobed.share, unprobed.limit) == ([], None, None)


def test_what_is_measured_and_what_does_not_fit(opened: OpenedModel) -> None:
    plan = Plan(prompt_tokens=(600, 9, 9, 4096), depths=(20, 4090), batches=(2,), repeat=2)
    bench = Bench(opened, opened.prepare())
    bench.first_token()
    found = list(bench.run(plan))
    named = [text for text in found if isinstance(text, str)]
    results = [result for result in found if not isinstance(result, str)]
    assert named == [
        "prefill of 9 tokens",
        "prefill of 600 tokens",
        "decode at depth 20",
        "decode of 2 sequences",
    ]
    assert [(r.kind, r.sequences, len(r.samples)) for r in results] == [
        ("prefill", 1, 2),
        ("prefill", 1, 2),
        ("decode", 1, WINDOWS),
        ("batch", 2, WINDOWS),
    ]
    assert not bench.probes_memory and results[2].share is None  # far too small a model
    assert results[0].share is not None and results[0].share > 0


def test_the_work_of_a_prompt_is_that_of_its_chunks(opened: OpenedModel) -> None:
    (result,) = [Bench(opened, opened.prepare()).prefill(600, 1)]
    first = step_cost(TINY, [(0, 512)], logit_rows=0).int8_multiply_adds
    second = step_cost(TINY, [(512, 88)], logit_rows=1).int8_multiply_adds
    assert result.samples[0].work == first + second


def test_the_bytes_of_a_token_are_those_of_its_experts(opened: OpenedModel) -> None:
    """One token alone always reads as many experts as it is routed to."""
    result = Bench(opened, opened.prepare()).decode(1, 0, "decode")
    assert result.experts_per_layer == pytest.approx(TINY.num_experts_per_tok)
    steps = result.tokens
    assert result.bytes_per_token is not None
    shallow = step_cost(TINY, [(0, 1)], logit_rows=1).read_bytes
    deep = step_cost(TINY, [(2 + WINDOWS * steps, 1)], logit_rows=1).read_bytes
    assert shallow < result.bytes_per_token < deep
    two = Bench(opened, opened.prepare()).decode(2, 0, "batch")
    assert two.experts_per_layer is not None
    assert TINY.num_experts_per_tok <= two.experts_per_layer <= TINY.num_local_experts


def test_the_engine_that_is_planned_for(opened: OpenedModel) -> None:
    engine = engine_needed(Plan(prompt_tokens=(64,), depths=(0, 100), batches=(3,)), TINY)
    assert engine.max_num_seqs == 3
    assert engine.max_model_len is not None and 100 < engine.max_model_len < 1000
    assert engine_needed(Plan(depths=(10**6,)), TINY).max_model_len == 4096


@pytest.mark.parametrize(
    "values", [{"prompt_tokens": (0,)}, {"depths": (-1,)}, {"batches": (0,)}, {"repeat": 0}]
)
def test_impossible_plans(values: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError, match=r"or more|at least 1"):
        Plan(**values)


# -- The command ------------------------------------------------------------------------------

SHORT = ["bench", "--prompt-tokens", "32", "--depth", "0", "--batch", "2", "--repeat", "1"]


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SHORT) == 0
    out = capsys.readouterr().out
    for words in ("prefill 32", "decode at depth 0", "decode, 2 sequences", "at the peak", "KL"):
        assert words in out


def test_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, "--json", "--threads", "1", "--no-numerics"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [result["kind"] for result in report["results"]] == ["prefill", "decode", "batch"]
    for result in report["results"]:
        assert result["tokens_per_second"] > 0 and result["samples"]
    assert 0 < report["load_seconds"] < report["first_token_seconds"] < 600
    assert report["peak_bytes"] > 0 and report["planned_bytes"] > 0
    assert "1 thread" in report["kernels"] and not report["interrupted"]
    assert "numerics" not in report


def test_interrupted_it_prints_what_it_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "decode", interrupted)
    assert run(SHORT) == 130
    shown = capsys.readouterr()
    assert "prefill 32" in shown.out and "Interrupted" in shown.err
    assert run([*SHORT, "--json"]) == 130
    report = json.loads(capsys.readouterr().out)
    assert report["interrupted"] and len(report["results"]) == 1


def test_numerics_without_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = random_checkpoint(tmp_path / "tiny")
    assert run([*SHORT, "--model", str(folder)]) == 0
    assert "no vocabulary" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--kernels", "reference"], ["--exact"]])
def test_where_nothing_is_quantised(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, *options]) == 0
    assert "nothing is quantised" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--prompt-tokens", "many"], 2, "such as 512,2048; got 'many'"),
        (["--batch", "0"], 2, "batches must be 1 or more"),
        (["--threads", "999"], 2, "got 999"),
        (["--prompt-tokens", "64,99999999999"], 2, "whose context is 2048; got 99999999999."),
        (["--depth", "2020"], 2, "--depth must be at most 2005 for this model"),
        (["--model", "no/such-model"], 1, "ossia pull"),
    ],
)
def test_wrong_use(
    options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *options]) == code
    assert words in capsys.readouterr().err


def test_the_memory_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, "--memory"]) == 0
    assert "keys and values" in capsys.readouterr().out
