"""The engine: requests in from any thread, one step after another, outputs out to sinks.

A step is schedule → run → update → deliver. It runs in the engine's own thread after `start()`, or
by hand through `step()`. Whatever happens — a stop token, a cancellation that crosses it, a step
that raises, `close()` — every accepted request gets exactly one output with a `finish_reason`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ossia.engine.config import EngineConfig, EnginePlan, plan
from ossia.engine.model_runner import ModelRunner
from ossia.engine.request import FinishReason, Request, TokenOutput
from ossia.engine.scheduler import Scheduler, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.errors import EngineError, RequestError
from ossia.kernels.interface import Kernels, SampledTokens
from ossia.model.config import ModelConfig
from ossia.model.transformer import Architecture, Weights

logger = logging.getLogger(__name__)
# The trace of a failed step is for those who configure logging; users get a diagnostic.
logger.addHandler(logging.NullHandler())

Sink = Callable[[list[TokenOutput]], object]
"""Takes the new outputs of all requests submitted with it, in the engine's thread: the tokens once
per step, cancellations before it. It must not block. One that raises is taken for gone: its
requests are cancelled."""

EXIT_TIMEOUT_S = 5.0
"""How long the interpreter's exit waits for the step in progress."""


class Runner(Protocol):
    """What the engine needs of a model: `ModelRunner`, or a scripted one in tests."""

    def run(self, step: SchedulerOutput) -> SampledTokens: ...


@dataclass(frozen=True)
class EngineStats:
    """Counters at one moment; the totals are those since the engine was made."""

    waiting: int
    running: int
    free_full_blocks: int
    """That no request holds: also those that only the prefix cache keeps."""
    cached_full_blocks: int
    """Of these, what the prefix cache keeps for requests to come."""
    free_sliding_blocks: int
    checkpoints: int
    """Places at which a request that begins alike can go on."""
    prompt_tokens: int
    """Of all requests that began to run."""
    cached_tokens: int
    """Of these, the tokens whose keys and values came from the prefix cache."""
    prefill_tokens: int
    """Prompt tokens that ran through the model, each time that they did."""
    decode_tokens: int
    """Tokens drawn."""
    recomputed_tokens: int
    """Tokens that ran again because their request was preempted."""
    preemptions: int
    evicted_blocks: int
    """Blocks of the full group that the prefix cache had to give up."""
    evicted_checkpoints: int
    deadline_ends: int
    steps: int


class Engine:
    """Serves many requests with one model. All methods may be called from any thread."""

    def __init__(
        self, runner: Runner, plan: EnginePlan, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock`: seconds, for the deadlines of requests."""
        self.plan = plan
        self._runner = runner
        self._clock = clock
        self._scheduler = Scheduler(plan, clock=clock)  # only touched inside _scheduling()
        self._num_steps = 0
        self._thread: threading.Thread | None = None
        self._stepping = threading.Lock()
        self._stepping_thread: int | None = None

        # The mailbox, shared by all threads under this lock.
        self._mailbox = threading.Condition()
        self._submitted: list[Sequence] = []
        self._cancelled: list[str] = []
        self._sinks: dict[str, Sink] = {}
        """By request id, from `submit` to the terminal output."""
        self._closing = False
        self._failure: str | None = None

    @classmethod
    def for_model(
        cls,
        model: ModelConfig,
        kernels: Kernels,
        weights: Weights,
        config: EngineConfig | None = None,
    ) -> Engine:
        """An engine for prepared weights; allocates the cache. Raises UsageError when `config` does
        not fit the model.
        """
        resolved = plan(config or EngineConfig(), model, cache_itemsize=kernels.cache_itemsize)
        return cls(ModelRunner(Architecture.of(model), kernels, weights, resolved), resolved)

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; its outputs go to `sink`.

        Raises RequestError, and accepts nothing, for a request that cannot be served (empty or too
        long prompt, ids outside the vocabulary, an id that is in flight, a full queue); EngineError
        after `close()`.
        """
        sequence = Sequence.of(request, self.plan)
        if request.deadline_s is not None:
            sequence.deadline = self._clock() + request.deadline_s
        with self._mailbox:
            if self._failure is not None:
                raise EngineError(f"The engine has stopped: {self._failure}")
            if self._closing:
                raise EngineError("The engine is closed; make a new one.")
            if request.request_id in self._sinks:
                raise RequestError(
                    f"A request with the id {request.request_id!r} is in flight; give each its own."
                )
            if len(self._sinks) >= self.plan.max_num_seqs + self.plan.max_queue:
                raise RequestError(
                    f"The queue is full: {len(self._sinks)} requests are in flight, of which "
                    f"{self.plan.max_num_seqs} can run at once. Try again later."
                )
            self._sinks[request.request_id] = sink
            self._submitted.append(sequence)
            self._mailbox.notify()

    def cancel(self, request_id: str) -> None:
        """End a request before its next step; its sink gets CANCELLED. One that has already ended
        is left as it is.
        """
        with self._mailbox:
            if request_id in self._sinks:
                self._cancelled.append(request_id)
                self._mailbox.notify()

    def step(self) -> list[TokenOutput]:
        """One step: take the mail, schedule, run, update, deliver. Returns what was delivered."""
        with self._scheduling():
            outputs = self._take_mail() + self._scheduler.end_late()
            self._deliver(outputs)  # who cancels need not wait for the model
            step = self._scheduler.schedule()
            if step.chunks:
                drawn = self._run(step)
                self._deliver(drawn)
                outputs += drawn
            if self._closing:  # close() was called by a sink
                outputs += self._end_all()
            return outputs

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._submitted or self._cancelled or self._scheduler.has_work)

    def start(self) -> Engine:
        """Run steps in a thread of the engine's own, which sleeps while there is nothing to do."""
        with self._mailbox:
            if self._closing:
                raise EngineError("The engine is closed; make a new one.")
            if self._thread is None:
                # Daemon: a program that forgets close() must still be able to exit.
                self._thread = threading.Thread(
                    target=self._serve, name="ossia-engine", daemon=True
                )
                self._thread.start()
                atexit.register(self.close, EXIT_TIMEOUT_S)
        return self

    def close(self, timeout: float | None = None) -> None:
        """Stop after the step in progress and end all requests as CANCELLED; waits for it, at most
        `timeout` seconds, unless a sink calls it. Closing twice does nothing more.
        """
        atexit.unregister(self.close)
        with self._mailbox:
            self._closing = True
            self._mailbox.notify()
        if self._stepping_thread == threading.get_ident():
            return  # called by a sink: who called the sink ends everything
        if self._thread is not None:
            self._thread.join(timeout)
        else:
            with self._scheduling():
                self._end_all()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> EngineStats:
        scheduler, cache = self._scheduler, self._scheduler.blocks.cache
        with self._mailbox:
            submitted = len(self._submitted)
        return EngineStats(
            waiting=submitted + len(scheduler.waiting),
            running=len(scheduler.running),
            free_full_blocks=scheduler.blocks.num_available,
            cached_full_blocks=len(cache.idle),
            free_sliding_blocks=scheduler.blocks.sliding.pool.num_free,
            checkpoints=len(cache.checkpoints),
            prompt_tokens=scheduler.num_prompt_tokens,
            cached_tokens=scheduler.num_cached_tokens,
            prefill_tokens=scheduler.num_prefill_tokens,
            decode_tokens=scheduler.num_decode_tokens,
            recomputed_tokens=scheduler.num_recomputed_tokens,
            preemptions=scheduler.num_preemptions,
            evicted_blocks=cache.num_evicted_blocks,
            evicted_checkpoints=cache.num_evicted_checkpoints,
            deadline_ends=scheduler.num_deadline_ends,
            steps=self._num_steps,
        )

    def clear_cache(self) -> None:
        """Forget what ended requests left behind; waits for the step in progress."""
        with self._scheduling():
            self._scheduler.blocks.cache.clear()

    def check_integrity(self) -> None:
        """Assert that blocks, tables and sequences agree; waits for the step in progress."""
        with self._scheduling():
            self._scheduler.check_integrity()

    @contextmanager
    def _scheduling(self) -> Generator[None]:
        """Have the scheduler to oneself."""
        with self._stepping:
            self._stepping_thread = threading.get_ident()
            try:
                yield
            finally:
                self._stepping_thread = None

    def _take_mail(self) -> list[TokenOutput]:
        """Queue what was submitted, then end what was cancelled."""
        with self._mailbox:
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        for sequence in submitted:
            self._scheduler.add(sequence)
        return self._scheduler.end(cancelled, FinishReason.CANCELLED)

    def _run(self, step: SchedulerOutput) -> list[TokenOutput]:
        """A step that raises ends the requests that took part in it; the others go on."""
        self._num_steps += 1
        try:
            sampled = self._runner.run(step)
            num_samples = sum(chunk.num_samples for chunk in step.chunks)
            if len(sampled.ids) != num_samples:
                raise EngineError(f"{num_samples} rows were to be drawn, {len(sampled.ids)} were.")
        except Exception as error:
            logger.exception("A step with %d tokens failed.", step.num_tokens)
            request_ids = [chunk.sequence.request_id for chunk in step.chunks]
            diagnostic = f"The step failed: {_describe(error)}"
            return self._scheduler.end(request_ids, FinishReason.ERROR, diagnostic)
        except BaseException:  # an interrupt of a step by hand
            self._scheduler.retract(step)
            raise
        return self._scheduler.update(step, sampled)

    def _deliver(self, outputs: Iterable[TokenOutput]) -> None:
        """Each sink gets what there is for its requests in one call."""
        by_sink: dict[Sink, list[TokenOutput]] = {}
        with self._mailbox:
            for output in outputs:
                sink = self._sinks[output.request_id]
                if output.finish_reason is not None:
                    del self._sinks[output.request_id]
                by_sink.setdefault(sink, []).append(output)
        for sink, batch in by_sink.items():
            try:
                sink(batch)
            except Exception:
                logger.exception("A sink failed; its requests are cancelled.")
                with self._mailbox:
                    self._cancelled += [
                        request_id for request_id, other in self._sinks.items() if other == sink
                    ]

    def _end_all(self) -> list[TokenOutput]:
        """The end of every request that is left when the engine closes."""
        outputs = self._take_mail()
        left = [*self._scheduler.running, *self._scheduler.waiting]
        closed = "The engine was closed before the request had ended."
        outputs += self._scheduler.end(left, FinishReason.CANCELLED, closed)
        self._deliver(outputs)
        return outputs

    def _serve(self) -> None:
        """The engine's thread."""
        try:
            while self._await_work():
                self.step()
            with self._scheduling():
                self._end_all()
        except BaseException as error:  # a defect of the engine itself: tell everyone, then stop
            logger.exception("The engine stopped.")
            self._fail(_describe(error))

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False when the engine is to close. Before that all
        tables are checked: a defect must come to light before it gives anyone wrong tokens.
        """
        if not self.has_work:
            self.check_integrity()
        with self._mailbox:
            self._mailbox.wait_for(lambda: self._closing or self.has_work)
            return not self._closing

    def _fail(self, failure: str) -> None:
        """End what is in flight without relying on the scheduler, whose state is in doubt."""
        with self._mailbox:
            self._failure, self._closing = failure, True
            in_flight = list(self._sinks)
        self._deliver(
            TokenOutput(
                request_id,
                diagnostics=(f"The engine has stopped: {failure}",),
                finish_reason=FinishReason.ERROR,
            )
            for request_id in in_flight
        )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
