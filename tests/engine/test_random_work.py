"""Random submissions, cancellations, failures and steps, with every table checked after each; the
scripted model reads its cache back and finds any block that two sequences share.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.fakes import (
    VOCAB,
    Recorder,
    ScriptedRunner,
    expected_answer,
    request,
    tiny_model,
    tiny_plan,
)
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request
from ossia.engine.scheduler import SchedulerOutput
from ossia.errors import RequestError


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        max_num_seqs=st.integers(1, 6),
        spare=st.integers(0, 40),
        block_size=st.sampled_from([1, 2, 4, 8]),
        cache_tokens=st.integers(2, 300),
        max_queue=st.integers(0, 8),
        window=st.integers(1, 30),
    )
    def make(
        self,
        max_num_seqs: int,
        spare: int,
        block_size: int,
        cache_tokens: int,
        max_queue: int,
        window: int,
    ) -> None:
        self.plan = tiny_plan(
            tiny_model(sliding_window=window),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare,
            block_size=block_size,
            cache_tokens=cache_tokens,
            max_queue=max_queue,
        )
        self.runner = ScriptedRunner(self.plan)
        self.engine = Engine(self.runner, self.plan)
        self.sink = Recorder()
        self.accepted: dict[str, Request] = {}
        self.cancelled: set[str] = set()
        self.failed: set[str] = set()

    @rule(
        lengths=st.lists(st.integers(1, 80), min_size=1, max_size=6),
        seed=st.integers(0, 10**6),
        max_tokens=st.none() | st.integers(1, 60),
        stop=st.none() | st.integers(0, VOCAB - 1),
    )
    def submit(
        self, lengths: list[int], seed: int, max_tokens: int | None, stop: int | None
    ) -> None:
        for length in lengths:
            name = f"r{len(self.accepted)}"
            prompt = [(seed + 31 * i * i + length) % VOCAB for i in range(length)]
            stops = () if stop is None else (stop,)
            each = request(name, prompt, max_tokens=max_tokens, stop_token_ids=stops)
            in_flight = len(self.accepted) - len(self.sink.ended())
            full = in_flight == self.plan.max_num_seqs + self.plan.max_queue
            too_long = length >= self.plan.context
            try:
                self.engine.submit(each, self.sink)
            except RequestError:
                assert full or too_long
            else:
                assert not full and not too_long
                self.accepted[name] = each

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.accepted:
            name = data.draw(st.sampled_from(sorted(self.accepted)))
            self.cancelled.add(name)
            self.engine.cancel(name)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.engine.step()
            self.engine.check_integrity()

    @rule()
    def failing_step(self) -> None:
        def fail(step: SchedulerOutput) -> None:
            self.failed |= {chunk.sequence.request_id for chunk in step.chunks}
            raise RuntimeError("injected")

        self.runner.before = fail
        self.engine.step()
        self.runner.before = lambda step: None

    @rule(data=st.data())
    def nan(self, data: st.DataObject) -> None:
        if self.accepted:
            name = data.draw(st.sampled_from(sorted(self.accepted)))
            self.runner.nan_requests.add(name)
            self.failed.add(name)

    @rule()
    def finish(self) -> None:
        for _ in range(100_000):
            if not self.engine.has_work:
                break
            self.engine.step()
        assert self.sink.ended() == set(self.accepted)
        assert self.engine.stats().free_full_blocks == self.plan.num_full_blocks
        assert self.engine.stats().free_sliding_blocks == self.plan.num_sliding_blocks

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.check_integrity()
        for name in self.sink.ended():
            answer = expected_answer(self.accepted[name], self.plan.context)
            tokens, reason = self.sink.tokens(name), self.sink.end(name).finish_reason
            assert answer[: len(tokens)] == tokens
            if reason is FinishReason.CANCELLED:
                assert name in self.cancelled
            elif reason.failed:
                assert name in self.failed
            else:
                assert tokens == answer

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            assert self.sink.ended() == set(self.accepted)
            self.engine.check_integrity()


class TestEngineMachine(EngineMachine.TestCase):
    settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestEngineMachineLong(EngineMachine.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=50, deadline=None)
