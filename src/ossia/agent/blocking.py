"""Asynchronous streams for callers that are not asynchronous.

An event loop of its own runs in a daemon thread, so that blocking calls also work where a loop is
running already (a notebook). An interrupt (Ctrl-C) reaches the caller at once and closes the
stream, which cancels the request behind it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class BlockingRunner:
    """Runs coroutines and asynchronous iterators to their end for blocking callers."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. An interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, stream: AsyncIterator[T]) -> Iterator[T]:
        """The stream's items; leaving the loop early closes the stream."""

        # An interrupted `advance` is still being cancelled when `close` arrives, and a stream that
        # is running cannot be closed: the lock lets the one leave before the other enters.
        alone = asyncio.Lock()

        async def advance() -> tuple[T] | None:
            async with alone:
                try:
                    return (await anext(stream),)
                except StopAsyncIteration:
                    return None

        async def close() -> None:
            async with alone:
                aclose = getattr(stream, "aclose", None)
                if aclose is not None:
                    await aclose()

        try:
            while (item := self.run(advance())) is not None:
                yield item[0]
        finally:
            self.run(close())

    def close(self) -> None:
        """Ends the loop's thread. Idempotent."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()

                def serve() -> None:
                    loop.run_forever()
                    loop.close()

                threading.Thread(target=serve, name="ossia-blocking", daemon=True).start()
            return self._loop
