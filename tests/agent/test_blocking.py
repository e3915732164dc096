"""Blocking access to asynchronous streams: early leaving, errors, running loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ossia.agent.blocking import BlockingRunner


class Numbers:
    """Counts up slowly and remembers that it was closed."""

    def __init__(self) -> None:
        self.closed = False

    async def stream(self) -> AsyncIterator[int]:
        try:
            for number in range(1000):
                await asyncio.sleep(0)
                yield number
        finally:
            self.closed = True


@pytest.fixture
def runner() -> BlockingRunner:
    return BlockingRunner()


def test_items_arrive_in_order(runner: BlockingRunner) -> None:
    assert list(runner.iterate(Numbers().stream())) == list(range(1000))
    runner.close()


def test_leaving_early_closes_the_stream(runner: BlockingRunner) -> None:
    numbers = Numbers()
    stream = runner.iterate(numbers.stream())
    assert next(stream) == 0
    stream.close()
    assert numbers.closed
    runner.close()


def test_an_interrupt_while_waiting_closes_the_stream(
    runner: BlockingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def never() -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.sleep(3600)
            yield 1
        finally:
            closed.append(True)

    stream = runner.iterate(never())
    next(stream)
    # The interrupt strikes where it does in life: while the caller waits for the next item.
    original = BlockingRunner.run
    struck = []

    def interrupted(self: BlockingRunner, coroutine):
        if struck:
            return original(self, coroutine)
        struck.append(True)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        future.cancel()
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockingRunner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert closed == [True]
    runner.close()


def test_errors_reach_the_caller(runner: BlockingRunner) -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    stream = runner.iterate(failing())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    runner.close()


def test_works_inside_a_running_loop(runner: BlockingRunner) -> None:
    async def notebook() -> list[int]:
        return list(runner.iterate(Numbers().stream()))

    assert asyncio.run(notebook()) == list(range(1000))
    runner.close()


def test_close_twice_and_use_again(runner: BlockingRunner) -> None:
    async def one() -> int:
        return 1

    assert runner.run(one()) == 1
    runner.close()
    runner.close()
    assert runner.run(one()) == 1
    runner.close()
