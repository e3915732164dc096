"""Random submissions, cancellations, deadlines, failures and steps, with every table checked after
each; the scripted model reads its cache back and finds any block that is not what it should be.

Once as a Hypothesis state machine, which shrinks what it finds, and once as a seeded driver, which
is faster.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.fakes import VOCAB, ScriptedRunner, expected_answer, request, tiny_model, tiny_plan
from ossia.engine.config import EnginePlan
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request, TokenOutput
from ossia.engine.scheduler import SchedulerOutput
from ossia.errors import RequestError


class Work:
    """An engine under work: what it was asked, and whether each answer is what it should be."""

    def __init__(self, plan: EnginePlan) -> None:
        self.plan = plan
        self.now = 0.0
        self.runner = ScriptedRunner(plan)
        self.engine = Engine(self.runner, plan, clock=lambda: self.now)
        self.num_submitted = 0
        self.in_flight: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
        self.cancelled: set[str] = set()
        self.failed: set[str] = set()
        self.deadlines: dict[str, float] = {}
        self.past: list[tuple[int, ...]] = [()]
        """Prompts and answers that were, which others may go on from."""
        self.ends: dict[str, int] = {}

    def prompt(self, past: int, cut: int, seed: int, length: int) -> tuple[int, ...]:
        """The first `cut` tokens of something that was, and `length` new ones."""
        old = self.past[past % len(self.past)][:cut]
        return old + tuple((seed + 31 * i * i + length) % VOCAB for i in range(length))

    def submit(self, prompt: tuple[int, ...], changes: dict[str, object], **sampling: object):
        name = f"r{self.num_submitted}"
        each = replace(request(name, prompt, **sampling), **changes)  # type: ignore[arg-type]
        full = len(self.in_flight) == self.plan.max_num_seqs + self.plan.max_queue
        refused = not 0 < len(prompt) < self.plan.context
        try:
            self.engine.submit(each, self.take)
        except RequestError:
            assert full or refused
            return
        assert not full and not refused
        self.num_submitted += 1
        self.in_flight[name] = each
        self.tokens[name] = []
        if each.deadline_s is not None:
            self.deadlines[name] = self.now + each.deadline_s

    def take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            self.tokens[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                self.end(output)

    def end(self, output: TokenOutput) -> None:
        name = output.request_id
        each, tokens = self.in_flight.pop(name), tuple(self.tokens.pop(name))
        answer = expected_answer(each, self.plan.context)
        assert answer[: len(tokens)] == tokens
        assert 0 <= output.cached_tokens < len(each.prompt_ids)
        match output.finish_reason:
            case FinishReason.CANCELLED:
                assert name in self.cancelled
            case FinishReason.DEADLINE:
                assert self.deadlines[name] <= self.now
            case FinishReason.STOP | FinishReason.LENGTH:
                assert tokens == answer
            case _:
                assert name in self.failed
        self.past = [*self.past[-30:], each.prompt_ids + tokens]
        self.ends[str(output.finish_reason)] = self.ends.get(str(output.finish_reason), 0) + 1

    def cancel(self, number: int) -> None:
        if self.in_flight:
            name = list(self.in_flight)[number % len(self.in_flight)]
            self.cancelled.add(name)
            self.engine.cancel(name)

    def give_nan(self, number: int) -> None:
        if self.in_flight:
            name = list(self.in_flight)[number % len(self.in_flight)]
            self.failed.add(name)
            self.runner.nan_requests.add(name)

    def step(self) -> None:
        self.now += 1
        self.engine.step()
        self.engine.check_integrity()
        self.runner.steps.clear()

    def failing_step(self) -> None:
        def fail(step: SchedulerOutput) -> None:
            self.failed |= {chunk.sequence.request_id for chunk in step.chunks}
            raise RuntimeError("injected")

        self.runner.before = fail
        self.step()
        self.runner.before = lambda step: None

    def interrupted_step(self) -> None:
        def interrupt(step: SchedulerOutput) -> None:
            raise KeyboardInterrupt

        self.runner.before = interrupt
        with suppress(KeyboardInterrupt):
            self.step()
        self.engine.check_integrity()
        self.runner.before = lambda step: None

    def finish(self) -> None:
        for _ in range(100_000):
            if not self.engine.has_work:
                break
            self.engine.step()
        self.engine.check_integrity()
        assert not self.in_flight
        assert self.engine.stats().free_full_blocks == self.plan.num_full_blocks

    def close(self) -> None:
        self.cancelled |= set(self.in_flight)
        self.engine.close()
        assert not self.in_flight
        self.engine.check_integrity()
        self.engine.clear_cache()
        stats = self.engine.stats()
        assert stats.free_full_blocks == self.plan.num_full_blocks
        assert stats.free_sliding_blocks == self.plan.num_sliding_blocks


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        max_num_seqs=st.integers(1, 6),
        spare=st.integers(0, 40),
        block_size=st.sampled_from([1, 2, 4, 8]),
        cache_tokens=st.integers(2, 300),
        max_queue=st.integers(0, 8),
        window=st.integers(1, 30),
        max_checkpoints=st.integers(0, 6),
        prefix_cache=st.sampled_from([True, True, False]),
    )
    def make(self, window: int, spare: int, **config: int) -> None:
        budget = config["max_num_seqs"] + spare
        model = tiny_model(sliding_window=window)
        self.work = Work(tiny_plan(model, max_num_batched_tokens=budget, **config))

    @rule(
        prompts=st.lists(
            st.tuples(
                st.integers(0, 30), st.integers(0, 80), st.integers(0, 9), st.integers(0, 40)
            ),
            min_size=1,
            max_size=6,
        ),
        priority=st.integers(-1, 1),
        deadline=st.none() | st.integers(1, 60),
        salt=st.sampled_from(["", "", "x"]),
        ends=st.lists(st.integers(0, 60), max_size=3),
        max_tokens=st.none() | st.integers(1, 60),
        stop=st.none() | st.integers(0, VOCAB - 1),
    )
    def submit(
        self,
        prompts: list[tuple[int, int, int, int]],
        priority: int,
        deadline: int | None,
        salt: str,
        ends: list[int],
        max_tokens: int | None,
        stop: int | None,
    ) -> None:
        for numbers in prompts:
            prompt = self.work.prompt(*numbers)
            changes: dict[str, object] = {
                "priority": priority,
                "deadline_s": deadline,
                "cache_salt": salt,
                "checkpoints": tuple(end for end in ends if end <= len(prompt)),
            }
            stops = () if stop is None else (stop,)
            self.work.submit(prompt, changes, max_tokens=max_tokens, stop_token_ids=stops)

    @rule(number=st.integers(0, 20))
    def cancel(self, number: int) -> None:
        self.work.cancel(number)

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.work.step()

    @rule()
    def failing_step(self) -> None:
        self.work.failing_step()

    @rule()
    def interrupted_step(self) -> None:
        self.work.interrupted_step()

    @rule(number=st.integers(0, 20))
    def nan(self, number: int) -> None:
        self.work.give_nan(number)

    @rule()
    def clear_cache(self) -> None:
        self.work.engine.clear_cache()

    @rule()
    def finish(self) -> None:
        self.work.finish()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "work"):
            self.work.engine.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "work"):
            self.work.close()


class TestEngineMachine(EngineMachine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.slow
class TestEngineMachineLong(EngineMachine.TestCase):
    settings = settings(max_examples=300, stateful_step_count=50, deadline=None)


def drive(seed: int, num_steps: int) -> dict[str, int]:
    """So many steps of random work, each followed by a check; how the requests ended, and what else
    happened to them.
    """
    rng = random.Random(seed)
    counts: dict[str, int] = {}
    while num_steps > 0:
        max_num_seqs = rng.randint(1, 6)
        work = Work(
            tiny_plan(
                tiny_model(sliding_window=rng.randint(1, 20)),
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_seqs + rng.randint(0, 30),
                block_size=rng.choice([1, 2, 4, 8]),
                cache_tokens=rng.choice([30, 80, 200, 400]),
                max_queue=rng.randint(0, 8),
                max_checkpoints=rng.randint(0, 3),
                prefix_cache=rng.random() < 0.9,
            )
        )
        part = min(num_steps, 500)
        num_steps -= part
        for _ in range(part):
            while rng.random() < 0.2:
                submit_random(work, rng)
            chance = rng.random()
            if chance < 0.02:
                work.cancel(rng.randrange(100))
            elif chance < 0.023:
                work.give_nan(rng.randrange(100))
            if chance > 0.998:
                work.failing_step()
            elif chance > 0.996:
                work.interrupted_step()
            else:
                work.step()
        stats = work.engine.stats()
        work.close()
        for name in ("preemptions", "evicted_blocks", "evicted_checkpoints", "cached_tokens"):
            counts[name] = counts.get(name, 0) + getattr(stats, name)
        for name, count in work.ends.items():
            counts[name] = counts.get(name, 0) + count
    return counts


def submit_random(work: Work, rng: random.Random) -> None:
    cut, new = rng.choice([5, 20, 60, 100]), rng.choice([0, 1, 7, 30])
    prompt = work.prompt(rng.randrange(31), cut, rng.randrange(4), new)
    ends = [rng.randrange(100) for _ in range(rng.randrange(3))]
    changes: dict[str, object] = {
        "priority": rng.choice([0, 0, 0, 1, -1]),
        "deadline_s": rng.choice([None, None, None, 10, 50]),
        "cache_salt": rng.choice(["", "", "x"]),
        "checkpoints": tuple(end for end in ends if end <= len(prompt)),
    }
    stops = (rng.randrange(VOCAB),)
    work.submit(prompt, changes, max_tokens=rng.choice([1, 2, 5, 20, 50]), stop_token_ids=stops)


def test_driven_at_random() -> None:
    counts = drive(seed=0, num_steps=2500)
    ends = {"stop", "length", "cancelled", "deadline", "error"}
    happened = {"preemptions", "evicted_blocks", "evicted_checkpoints", "cached_tokens"}
    assert all(counts[name] > 0 for name in ends | happened), counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_driven_at_random_for_a_million_steps_in_all(seed: int) -> None:
    drive(seed, num_steps=100_000)
