"""The engine by hand and in its thread: outcomes, cancellation, failures, closing."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from engine.fakes import (
    VOCAB,
    Recorder,
    ScriptedRunner,
    drain,
    expected_answer,
    request,
    tiny_plan,
)
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request, TokenOutput
from ossia.engine.scheduler import SchedulerOutput
from ossia.errors import EngineError, RequestError
from ossia.kernels.interface import SampledTokens


def make(**config: object) -> tuple[Engine, ScriptedRunner, Recorder]:
    plan = tiny_plan(**config)
    runner = ScriptedRunner(plan)
    return Engine(runner, plan), runner, Recorder()


def assert_all_free(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.waiting, stats.running) == (0, 0)
    assert stats.free_full_blocks == engine.plan.num_full_blocks
    engine.check_integrity()
    engine.clear_cache()
    stats = engine.stats()
    assert (stats.cached_full_blocks, stats.checkpoints) == (0, 0)
    assert stats.free_full_blocks == engine.plan.num_full_blocks
    assert stats.free_sliding_blocks == engine.plan.num_sliding_blocks
    engine.check_integrity()


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


# -- Outcomes ----------------------------------------------------------------------------------


def test_answers_are_those_of_the_model_whatever_runs_beside():
    engine, _, sink = make()
    rng = random.Random(1)
    requests = [
        request(
            f"r{n}",
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 60))],
            max_tokens=rng.randint(1, 40),
            stop_token_ids=(rng.randrange(VOCAB),),
        )
        for n in range(20)
    ]
    for each in requests:
        engine.submit(each, sink)
    drain(engine)
    for each in requests:
        answer = expected_answer(each, engine.plan.context)
        assert sink.tokens(each.request_id) == answer
        stopped = answer[-1] in each.sampling.stop_token_ids
        assert sink.end(each.request_id).finish_reason == ("stop" if stopped else "length")
    assert {r.sampling.stop_token_ids[0] in sink.tokens(r.request_id) for r in requests} == {
        True,
        False,
    }
    assert_all_free(engine)


@pytest.mark.parametrize("budget", [4, 5, 16, 64, 200])
@pytest.mark.parametrize("alone", [True, False])
def test_tokens_do_not_depend_on_chunking_or_neighbours(budget: int, alone: bool):
    engine, _, sink = make(max_num_batched_tokens=budget)
    each = request("a", [3, 1, 4, 1, 5, 9, 2, 6] * 9, max_tokens=30)
    if not alone:
        for n in range(6):
            engine.submit(request(f"n{n}", [n] * (5 * n + 1), max_tokens=10 + n), sink)
    engine.submit(each, sink)
    drain(engine)
    assert sink.tokens("a") == expected_answer(each, engine.plan.context)


def test_no_block_is_lost_over_a_thousand_random_requests():
    engine, runner, sink = make(max_queue=1000)
    rng = random.Random(2)
    names = [f"r{n}" for n in range(1000)]
    runner.nan_requests = set(rng.sample(names, 50))
    for name in names:
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
        engine.submit(request(name, prompt, max_tokens=rng.randint(1, 8)), sink)
        if rng.random() < 0.1:
            engine.cancel(rng.choice(names))
        for _ in range(rng.randint(0, 2)):
            engine.step()
    drain(engine)
    assert sink.ended() == set(names)
    ends = {str(sink.end(name).finish_reason) for name in names}
    assert ends == {"length", "cancelled", "nan"}
    assert_all_free(engine)


def test_statistics_count_tokens():
    engine, _, sink = make()
    engine.submit(request("a", [1] * 40, max_tokens=5), sink)
    engine.submit(request("b", [2] * 7, max_tokens=3), sink)
    assert engine.stats().waiting == 2
    engine.step()
    assert engine.stats().running == 2
    drain(engine)
    stats = engine.stats()
    assert stats.prefill_tokens == 47
    assert stats.decode_tokens == len(sink.tokens("a")) + len(sink.tokens("b")) == 8
    assert stats.steps > 4


def test_logprobs_are_aligned_with_tokens():
    engine, _, sink = make()
    engine.submit(request("a", [1] * 20, max_tokens=6, logprobs=True, top_logprobs=3), sink)
    engine.submit(request("b", [1] * 5, max_tokens=6, logprobs=True), sink)
    engine.submit(request("c", [1] * 5, max_tokens=6), sink)
    drain(engine)
    for output in sink.outputs["a"]:
        assert output.logprobs == tuple(-float(token) for token in output.token_ids)
        assert [[i for i, _ in top] for top in output.top_logprobs] == [
            [token, token + 1, token + 2] for token in output.token_ids
        ]
    assert all(len(o.logprobs) == 1 and not o.top_logprobs for o in sink.outputs["b"])
    assert all(not o.logprobs and not o.top_logprobs for o in sink.outputs["c"])


# -- Refusals ----------------------------------------------------------------------------------


def test_a_refused_request_leaves_no_trace():
    engine, _, sink = make()
    for bad in (request("a", []), request("a", [VOCAB]), request("a", [1] * 200)):
        with pytest.raises(RequestError):
            engine.submit(bad, sink)
    assert not engine.has_work
    engine.submit(request("a", [1], max_tokens=1), sink)
    drain(engine)
    assert sink.ended() == {"a"}


def test_an_id_in_flight_is_refused_and_free_again_afterwards():
    engine, _, sink = make()
    engine.submit(request("a", [1], max_tokens=2), sink)
    with pytest.raises(RequestError, match="id 'a' is in flight"):
        engine.submit(request("a", [2]), sink)
    engine.step()
    with pytest.raises(RequestError):
        engine.submit(request("a", [2]), sink)
    drain(engine)
    again = Recorder()
    engine.submit(request("a", [1], max_tokens=1), again)
    drain(engine)
    assert again.ended() == {"a"}


def test_a_full_queue_refuses():
    engine, _, sink = make(max_num_seqs=2, max_queue=3)
    for n in range(5):
        engine.submit(request(str(n), [1], max_tokens=2), sink)
    with pytest.raises(RequestError, match=r"queue is full: 5 requests"):
        engine.submit(request("5", [1]), sink)
    drain(engine)
    engine.submit(request("5", [1], max_tokens=1), sink)
    drain(engine)
    assert len(sink.ended()) == 6


# -- Cancellation ------------------------------------------------------------------------------


# Queued; in the middle of the prompt; at each token; after the end.
@pytest.mark.parametrize("moment", range(12))
def test_cancelled_at_any_step(moment: int):
    engine, _, sink = make()
    other = request("other", [7] * 9, max_tokens=25)
    engine.submit(request("a", [1] * 40, max_tokens=5), sink)
    engine.submit(other, sink)
    for _ in range(moment):
        engine.step()
    ended = "a" in sink.ended()
    before = sink.tokens("a")
    engine.cancel("a")
    engine.cancel("a")
    held = engine.stats().running
    engine.step()
    engine.check_integrity()
    assert "a" in sink.ended()
    assert sink.tokens("a") == before
    if not ended:
        assert sink.end("a").finish_reason is FinishReason.CANCELLED
        assert "a" not in engine._scheduler.blocks.full.tables
        assert engine.stats().running <= max(held, 1)
    drain(engine)
    assert sink.tokens("other") == expected_answer(other, engine.plan.context)
    assert_all_free(engine)


def test_cancelled_in_the_queue_and_by_an_unknown_id():
    engine, runner, sink = make(max_num_seqs=1)
    engine.submit(request("a", [1], max_tokens=3), sink)
    engine.submit(request("b", [1], max_tokens=3), sink)
    engine.step()
    engine.cancel("b")
    engine.cancel("nobody")
    engine.step()
    assert sink.end("b").finish_reason is FinishReason.CANCELLED
    drain(engine)
    assert sink.end("a").finish_reason is FinishReason.LENGTH
    assert {c.sequence.request_id for step in runner.steps for c in step.chunks} == {"a"}


def test_cancelled_while_its_last_step_runs_it_still_ends_once():
    engine, runner, sink = make()
    runner.before = lambda step: engine.cancel("a")
    engine.submit(request("a", [1], max_tokens=1), sink)
    drain(engine)
    assert sink.end("a").finish_reason is FinishReason.LENGTH  # the token was there first
    assert_all_free(engine)


# -- Failures ----------------------------------------------------------------------------------


def test_a_step_that_raises_ends_its_requests_and_no_others():
    engine, runner, sink = make(max_num_seqs=2)
    calls = 0

    def fail_second(step: SchedulerOutput) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError("no room")

    runner.before = fail_second
    third = request("c", [1] * 5, max_tokens=4)
    for each in (request("a", [1], max_tokens=9), request("b", [2], max_tokens=9), third):
        engine.submit(each, sink)
    drain(engine)
    for name in ("a", "b"):
        assert sink.end(name).finish_reason is FinishReason.ERROR
        assert sink.end(name).diagnostics == ("The step failed: MemoryError: no room",)
        assert len(sink.tokens(name)) == 1  # what was drawn before is not lost
    assert sink.tokens("c") == expected_answer(third, engine.plan.context)
    assert_all_free(engine)


def test_an_interrupt_of_a_step_by_hand_loses_nothing():
    engine, runner, sink = make()
    each = request("a", [1, 2, 3] * 10, max_tokens=5)
    engine.submit(each, sink)
    engine.submit(request("gone", [1]), sink)
    engine.step()

    def interrupt(step: SchedulerOutput) -> None:
        runner.before = lambda step: None
        raise KeyboardInterrupt

    runner.before = interrupt
    engine.cancel("gone")
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert sink.end("gone").finish_reason is FinishReason.CANCELLED
    engine.check_integrity()
    drain(engine)  # the step that was interrupted is simply taken again
    assert sink.tokens("a") == expected_answer(each, engine.plan.context)
    assert_all_free(engine)


def test_nan_ends_one_request():
    engine, runner, sink = make()
    runner.nan_requests = {"bad"}
    good = request("good", [1] * 5, max_tokens=4)
    engine.submit(request("bad", [1] * 5), sink)
    engine.submit(good, sink)
    drain(engine)
    assert sink.end("bad").finish_reason is FinishReason.NAN
    assert "NaN" in sink.end("bad").diagnostics[0]
    assert sink.tokens("good") == expected_answer(good, engine.plan.context)
    assert_all_free(engine)


def test_kernels_that_return_too_few_rows_fail_the_step():
    class Short:
        def run(self, step: SchedulerOutput) -> SampledTokens:
            return SampledTokens([], [])

    engine, sink = Engine(Short(), tiny_plan()), Recorder()
    engine.submit(request("a", [1]), sink)
    drain(engine)
    assert sink.end("a").finish_reason is FinishReason.ERROR
    assert "1 rows were to be drawn, 0 were" in sink.end("a").diagnostics[0]


def test_a_sink_that_raises_loses_its_own_requests_only():
    engine, _, sink = make()

    def gone(outputs: object) -> None:
        raise RuntimeError("the loop is closed")

    good = request("good", [1] * 5, max_tokens=4)
    engine.submit(request("lost", [1]), gone)
    engine.submit(good, sink)
    engine.step()
    engine.step()
    assert engine.stats().running == 1
    drain(engine)
    assert sink.tokens("good") == expected_answer(good, engine.plan.context)
    assert_all_free(engine)


def test_a_defect_of_the_scheduler_ends_every_request(monkeypatch: pytest.MonkeyPatch):
    engine, _, sink = make()
    engine.submit(request("a", [1]), sink)
    engine.submit(request("b", [1]), sink)

    def broken() -> SchedulerOutput:
        raise AssertionError("tables differ")

    monkeypatch.setattr(engine._scheduler, "schedule", broken)
    with engine.start():
        wait_for(lambda: sink.ended() == {"a", "b"})
        for name in ("a", "b"):
            assert sink.end(name).finish_reason is FinishReason.ERROR
            assert "tables differ" in sink.end(name).diagnostics[0]
        with pytest.raises(EngineError, match="tables differ"):
            engine.submit(request("c", [1]), sink)


# -- The thread --------------------------------------------------------------------------------


def test_each_sink_gets_one_call_per_step():
    engine, _, first = make()
    second = Recorder()
    for n in range(4):
        engine.submit(request(str(n), [1], max_tokens=3), (first, second)[n % 2])
    for _ in range(3):
        engine.step()
    assert [len(call) for call in first.calls] == [2, 2, 2]
    assert [len(call) for call in second.calls] == [2, 2, 2]


def test_many_threads_submit_and_cancel():
    engine, _, _ = make(max_queue=1000)
    sinks = [Recorder() for _ in range(4)]
    expected: list[dict[str, Request]] = [{} for _ in sinks]

    def work(index: int) -> None:
        rng = random.Random(index)
        for n in range(60):
            each = request(
                f"{index}-{n}",
                [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))],
                max_tokens=rng.randint(1, 10),
            )
            expected[index][each.request_id] = each
            engine.submit(each, sinks[index])
            if rng.random() < 0.3:
                engine.cancel(f"{index}-{rng.randint(0, n)}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(sinks))]
    with engine.start():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: all(len(sink.ended()) == 60 for sink in sinks))
        wait_for(lambda: not engine.has_work)
        assert_all_free(engine)
    for sink, requests in zip(sinks, expected, strict=True):
        for name, each in requests.items():
            answer = expected_answer(each, engine.plan.context)
            if sink.end(name).finish_reason is FinishReason.CANCELLED:
                assert answer[: len(sink.tokens(name))] == sink.tokens(name)
            else:
                assert sink.tokens(name) == answer


def test_an_idle_engine_sleeps_and_wakes():
    engine, _, sink = make()
    with engine.start() as running:
        assert running.start() is engine  # once is enough
        for n in range(3):
            engine.submit(request(str(n), [1], max_tokens=2), sink)
            wait_for(lambda n=n: str(n) in sink.ended())
            steps, used = engine.stats().steps, time.thread_time()
            cpu = time.process_time()
            time.sleep(0.05)
            assert time.process_time() - cpu < 0.04 + (time.thread_time() - used)
            assert engine.stats().steps == steps


def test_the_integrity_of_an_idle_engine_is_checked():
    engine, _, sink = make()
    with engine.start():
        engine.submit(request("a", [1], max_tokens=2), sink)
        wait_for(lambda: "a" in sink.ended())
        with engine._scheduling():
            engine._scheduler.blocks.full.pool._free.pop()  # lose a block
        engine.submit(request("b", [1], max_tokens=2), sink)
        wait_for(lambda: engine._failure is not None)
        with pytest.raises(EngineError, match="a block is lost"):
            engine.submit(request("c", [1]), sink)


# -- Closing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False])
def test_closing_ends_what_runs_and_what_waits(threaded: bool):
    engine, runner, sink = make(max_num_seqs=2)
    runner.before = lambda step: time.sleep(0.002)  # five hundred steps take a second
    names = [str(n) for n in range(6)]
    if threaded:
        engine.start()
    for name in names:
        engine.submit(request(name, [1] * 30), sink)
    if threaded:
        wait_for(lambda: engine.stats().steps > 3)
    else:
        engine.step()
    engine.close()
    engine.close()
    assert sink.ended() == set(names)
    for name in names:
        if sink.end(name).finish_reason is FinishReason.CANCELLED:
            assert "closed" in sink.end(name).diagnostics[0]
        else:
            assert sink.end(name).finish_reason is FinishReason.LENGTH
    assert FinishReason.CANCELLED in {sink.end(name).finish_reason for name in names}
    assert_all_free(engine)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(request("late", [1]), sink)
    with pytest.raises(EngineError, match="closed"):
        engine.start()


@pytest.mark.parametrize("threaded", [True, False])
def test_a_sink_may_close_the_engine(threaded: bool):
    engine, _, sink = make()

    def close(outputs: object) -> None:
        engine.close()

    engine.submit(request("a", [1]), close)
    engine.submit(request("b", [1]), sink)
    if threaded:
        engine.start()
        wait_for(lambda: "b" in sink.ended())
        engine.close()
    else:
        engine.step()
    assert sink.end("b").finish_reason is FinishReason.CANCELLED
    assert_all_free(engine)


@pytest.mark.parametrize("threaded", [True, False])
def test_a_sink_may_close_an_engine_that_is_closing(threaded: bool):
    engine, _, sink = make()
    calls: list[str] = []

    def close(outputs: list[TokenOutput]) -> None:
        if outputs[-1].finish_reason:
            engine.close()
            calls.append("returned")

    engine.submit(request("a", [1]), close)
    engine.submit(request("b", [1]), sink)
    if threaded:
        engine.start()
    engine.close()
    assert calls == ["returned"]
    assert sink.ended() == {"b"}


def test_closing_from_many_threads_at_once():
    engine, _, sink = make()
    engine.start()
    for n in range(8):
        engine.submit(request(str(n), [1] * 20), sink)
    threads = [threading.Thread(target=engine.close) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert len(sink.ended()) == 8


def test_the_context_manager_closes():
    engine, _, sink = make()
    with engine:
        engine.submit(request("a", [1]), sink)
    assert sink.end("a").finish_reason is FinishReason.CANCELLED


def test_a_program_that_forgets_to_close_exits():
    program = """
import time
from engine.fakes import ScriptedRunner, request, tiny_plan
from ossia.engine.engine import Engine
plan = tiny_plan()
runner = ScriptedRunner(plan)
runner.before = lambda step: time.sleep(0.01)
engine = Engine(runner, plan).start()
engine.submit(request("a", [1]), lambda outputs: print(outputs[-1].finish_reason, flush=True))
time.sleep(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "cancelled"  # told, not just dropped
