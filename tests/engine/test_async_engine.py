"""`AsyncEngine.generate` under concurrency, slow and vanishing consumers, and several loops."""

import asyncio
import random
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from engine.fakes import VOCAB, ScriptedRunner, expected_answer, request, tiny_plan
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request, TokenOutput, join_outputs
from ossia.errors import EngineError, RequestError


def make(**config: object) -> tuple[AsyncEngine, ScriptedRunner]:
    plan = tiny_plan(**config)
    runner = ScriptedRunner(plan)
    return AsyncEngine(Engine(runner, plan)), runner


def run(main: Coroutine[Any, Any, None]) -> None:
    """A limit of its own: a lost wake-up must fail in seconds."""
    asyncio.run(asyncio.wait_for(main, 30))


async def read(engine: AsyncEngine, each: Request) -> TokenOutput:
    outputs = [output async for output in engine.generate(each)]
    assert all(output.finish_reason is None for output in outputs[:-1])
    assert outputs[-1].finish_reason is not None
    return join_outputs(outputs)


async def until_idle(engine: AsyncEngine) -> None:
    for _ in range(10_000):
        if not engine.engine.has_work:
            break
        await asyncio.sleep(0.001)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.free_full_blocks == engine.engine.plan.num_full_blocks
    engine.engine.check_integrity()


def test_many_consumers_at_once():
    async def main() -> None:
        rng = random.Random(3)
        requests = [
            request(
                f"r{n}",
                [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))],
                max_tokens=rng.randint(1, 20),
                logprobs=True,
            )
            for n in range(100)
        ]
        engine, _ = make()
        async with engine:
            whole = await asyncio.gather(*(read(engine, each) for each in requests))
            for each, output in zip(requests, whole, strict=True):
                assert output.token_ids == expected_answer(each, engine.engine.plan.context)
                assert output.logprobs == tuple(-float(i) for i in output.token_ids)
            await until_idle(engine)

    run(main())


def test_refusals_come_at_the_first_output():
    async def main() -> None:
        engine, _ = make()
        async with engine:
            with pytest.raises(RequestError, match="345 tokens"):
                await anext(engine.generate(request("a", [1] * 345)))
            stream = engine.generate(request("a", [1]))
            await anext(stream)
            with pytest.raises(RequestError, match="in flight"):
                await anext(engine.generate(request("a", [1])))
            await stream.aclose()
        with pytest.raises(EngineError, match="closed"):
            await anext(engine.generate(request("b", [1])))

    run(main())


def test_a_generator_never_read_submits_nothing():
    async def main() -> None:
        engine, runner = make()
        async with engine:
            await engine.generate(request("a", [1])).aclose()
            await asyncio.sleep(0.01)
            assert runner.steps == []

    run(main())


@pytest.mark.parametrize("how", ["close", "break", "cancel"])
def test_leaving_early_cancels_and_frees(how: str):
    async def main() -> None:
        engine, runner = make()
        # Slow enough that the answer of 190 tokens is far from over when its reader leaves.
        runner.before = lambda step: time.sleep(0.005)
        async with engine:
            stream = engine.generate(request("a", [1] * 10))
            match how:
                case "close":
                    await anext(stream)
                    await stream.aclose()
                case "break":
                    async for _ in stream:
                        break
                    await stream.aclose()
                case _:
                    task = asyncio.create_task(read(engine, request("b", [1] * 10)))
                    await anext(stream)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    await stream.aclose()
            steps = engine.stats().steps
            await until_idle(engine)
            assert engine.stats().steps <= steps + 2  # the one in progress, perhaps one more
            assert len(runner.steps) < 100

    run(main())


@pytest.mark.parametrize("seed", range(5))
def test_readers_that_leave_at_random_moments(seed: int):
    async def main() -> None:
        rng = random.Random(seed)
        engine, _ = make()

        async def visit(n: int) -> None:
            each = request(f"r{n}", [n % VOCAB] * rng.randint(1, 30), max_tokens=20)
            if rng.random() < 0.3:
                task = asyncio.create_task(read(engine, each))
                await asyncio.sleep(rng.random() * 0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return
            patience = rng.randint(0, 25)
            tokens: tuple[int, ...] = ()
            stream = engine.generate(each)
            async for output in stream:
                tokens += output.token_ids
                if len(tokens) > patience:
                    break
            await stream.aclose()
            answer = expected_answer(each, engine.engine.plan.context)
            assert tokens == answer[: len(tokens)]

        async with engine:
            await asyncio.gather(*(visit(n) for n in range(60)))
            await until_idle(engine)
            assert engine._inboxes[asyncio.get_running_loop()]._streams == {}

    run(main())


def test_an_id_can_be_used_again_once_its_request_has_ended():
    async def main() -> None:
        engine, runner = make()
        runner.before = lambda step: time.sleep(0.002)
        each = request("a", [1, 2, 3], max_tokens=6)
        async with engine:
            for _ in range(20):
                stream = engine.generate(each)
                first = await anext(stream)
                assert first.token_ids == expected_answer(each, 200)[: len(first.token_ids)]
                await stream.aclose()
                while True:  # refused while the cancelled one is still on its way out
                    try:
                        whole = await read(engine, each)
                        break
                    except RequestError:
                        await asyncio.sleep(0)
                # Never a leftover of the cancelled one.
                assert whole.token_ids == expected_answer(each, 200)
                assert whole.finish_reason is FinishReason.LENGTH

    run(main())


def test_a_slow_consumer_holds_nobody_up_and_loses_nothing():
    async def main() -> None:
        engine, _ = make()
        slow, fast = request("slow", [1], max_tokens=60, logprobs=True), request("fast", [2] * 5)
        async with engine:
            stream = engine.generate(slow)
            outputs = [await anext(stream)]
            await read(engine, fast)  # 195 tokens, while nobody reads "slow"
            outputs += [output async for output in stream]
            assert len(outputs) <= 3  # joined, not queued one by one
            whole = join_outputs(outputs)
            assert whole.token_ids == expected_answer(slow, 200)
            assert whole.logprobs == tuple(-float(i) for i in whole.token_ids)
            assert whole.finish_reason is FinishReason.LENGTH

    run(main())


def test_a_loop_is_woken_once_per_step(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        engine, runner = make()
        loop = asyncio.get_running_loop()
        started, wakes = threading.Event(), []
        runner.before = lambda step: (started.wait(10), None)[1]  # until all four are submitted

        original = loop.call_soon_threadsafe

        def counted(callback: Any, *args: Any, **options: Any) -> Any:
            wakes.append(len(args[0]))
            return original(callback, *args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        tasks = [
            asyncio.create_task(read(engine, request(str(n), [1], max_tokens=5))) for n in range(4)
        ]
        await asyncio.sleep(0.01)
        started.set()
        await asyncio.gather(*tasks)
        monkeypatch.undo()
        await engine.aclose()
        steps = [step for step in runner.steps if step.chunks]
        assert len(wakes) <= len(steps) <= 6  # the first step may hold only the first request
        assert sum(wakes) == 20

    run(main())


def test_several_loops_share_one_engine():
    engine, _ = make(max_num_seqs=8)
    failures: list[BaseException] = []

    async def main(index: int) -> None:
        for n in range(10):
            pair = [request(f"{index}-{n}-{k}", [index, n, k], max_tokens=8) for k in range(3)]
            whole = await asyncio.gather(*(read(engine, each) for each in pair))
            for each, output in zip(pair, whole, strict=True):
                assert output.token_ids == expected_answer(each, 200)

    def work(index: int) -> None:
        try:
            run(main(index))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    engine.close()


def test_a_loop_that_goes_away_takes_only_its_own_requests():
    engine, runner = make()
    runner.before = lambda step: time.sleep(0.002)

    async def abandon() -> None:
        loop = asyncio.get_running_loop()
        inbox = engine._submit(request("lost", [1]))  # a stream that nobody closes
        assert inbox is not None
        assert loop in engine._inboxes

    asyncio.run(abandon())

    async def stay() -> None:
        each = request("good", [1], max_tokens=9)
        assert (await read(engine, each)).token_ids == expected_answer(each, 200)
        await until_idle(engine)
        assert list(engine._inboxes) == [asyncio.get_running_loop()]
        await engine.aclose()

    run(stay())


def test_closing_tells_every_reader():
    async def main() -> None:
        engine, runner = make(max_num_seqs=2)
        runner.before = lambda step: time.sleep(0.002)
        tasks = [asyncio.create_task(read(engine, request(str(n), [1]))) for n in range(5)]
        await asyncio.sleep(0.02)
        await engine.aclose()
        await engine.aclose()
        for output in await asyncio.gather(*tasks):
            assert output.finish_reason is FinishReason.CANCELLED
            assert any("closed" in text for text in output.diagnostics)

    run(main())


def test_closing_from_the_loop_itself_does_not_hang():
    async def main() -> None:
        engine, _ = make()
        task = asyncio.create_task(read(engine, request("a", [1])))
        await asyncio.sleep(0.005)
        engine.close()
        assert (await task).finish_reason is not None

    run(main())


def test_a_failed_step_is_an_output_not_an_exception():
    async def main() -> None:
        engine, runner = make()

        def fail(step: object) -> None:
            raise ValueError("shapes differ")

        runner.before = fail
        async with engine:
            output = await read(engine, request("a", [1]))
            assert output.finish_reason is FinishReason.ERROR
            assert output.diagnostics == ("The step failed: ValueError: shapes differ",)
            runner.before = lambda step: None
            assert (await read(engine, request("a", [1], max_tokens=3))).finish_reason == "length"

    run(main())


def test_joining_outputs():
    first = TokenOutput("a", (1,), (-1.0,), (((1, -1.0),),), diagnostics=("x",))
    second = TokenOutput("a", (2, 3), (-2.0, -3.0), (((2, -2.0),), ((3, -3.0),)), cached_tokens=4)
    last = TokenOutput("a", diagnostics=("y",), finish_reason=FinishReason.STOP)
    assert join_outputs([first]) is first
    assert join_outputs([first, second, last]) == TokenOutput(
        "a",
        (1, 2, 3),
        (-1.0, -2.0, -3.0),
        (((1, -1.0),), ((2, -2.0),), ((3, -3.0),)),
        cached_tokens=4,
        diagnostics=("x", "y"),
        finish_reason=FinishReason.STOP,
    )
