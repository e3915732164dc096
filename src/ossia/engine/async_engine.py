"""The engine for asyncio: `generate(request)` yields `TokenOutput`s until the terminal one.

Outputs cross from the engine's thread once per step and event loop, with the whole batch. A slow
consumer holds nothing up: what it has not read is joined into one output. Several loops may use one
engine at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

from ossia.engine.engine import Engine, EngineStats
from ossia.engine.request import Request, TokenOutput, join_outputs
from ossia.errors import RequestError


class AsyncEngine:
    """Starts the engine's thread and owns it: `aclose()` or `close()` ends both."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine.start()
        self._inboxes: dict[asyncio.AbstractEventLoop, _Inbox] = {}
        self._lock = threading.Lock()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        """New tokens as they come; the last output, and no other, has a `finish_reason`.

        Closing the iterator, or cancelling the task that reads it, cancels the request. Raises what
        `Engine.submit` raises, at the first output asked for.
        """
        stream = self._submit(request)
        try:
            while True:
                output = await stream.next_output()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            if not stream.ended:
                self.engine.cancel(request.request_id)

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def close(self, timeout: float | None = None) -> None:
        """End all requests in flight, in whatever loop they are read; blocks for up to a step, at
        most `timeout` seconds.
        """
        self.engine.close(timeout)

    async def aclose(self) -> None:
        """`close` without blocking the loop."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _submit(self, request: Request) -> _Stream:
        loop = asyncio.get_running_loop()
        with self._lock:
            for other in [loop for loop in self._inboxes if loop.is_closed()]:
                del self._inboxes[other]
            inbox = self._inboxes.setdefault(loop, _Inbox(loop))
        return inbox.submit(self.engine, request)


class _Stream:
    """The outputs of one request that its consumer has not read; used in its loop's thread only."""

    def __init__(self) -> None:
        self.ended = False
        self._unread: list[TokenOutput] = []
        self._arrived = asyncio.Event()

    def put(self, output: TokenOutput) -> None:
        self._unread.append(output)
        self.ended = output.finish_reason is not None
        self._arrived.set()

    async def next_output(self) -> TokenOutput:
        await self._arrived.wait()
        self._arrived.clear()
        unread, self._unread = self._unread, []
        return join_outputs(unread)


class _Inbox:
    """The streams of one event loop; as the sink of their requests it is called in the engine's
    thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # A stream stays until its terminal output has arrived, also when nobody reads it any more:
        # otherwise the outputs of a cancelled request could reach a later one of the same id.
        self._streams: dict[str, _Stream] = {}

    def submit(self, engine: Engine, request: Request) -> _Stream:
        if request.request_id in self._streams:
            raise RequestError(
                f"A request with the id {request.request_id!r} is in flight; give each its own."
            )
        engine.submit(request, self)
        stream = self._streams[request.request_id] = _Stream()
        return stream

    def __call__(self, outputs: list[TokenOutput]) -> None:
        self._loop.call_soon_threadsafe(self._put, outputs)

    def _put(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            stream = self._streams[output.request_id]
            stream.put(output)
            if stream.ended:
                del self._streams[output.request_id]
