"""Which tokens run in which step, read off the scheduler's decisions."""

from dataclasses import replace

import pytest

from engine.fakes import request, tiny_plan
from ossia.engine.config import EnginePlan
from ossia.engine.request import FinishReason, TokenOutput
from ossia.engine.scheduler import Scheduler, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import SampledTokens


class Driver:
    """A scheduler whose model always says 5."""

    def __init__(self, plan: EnginePlan) -> None:
        self.plan = plan
        self.now = 0.0
        self.scheduler = Scheduler(plan, clock=lambda: self.now)
        self.outputs: list[TokenOutput] = []
        self.num_added = 0

    def add(self, name: str, prompt: int, *, priority: int = 0, **sampling: object) -> Sequence:
        """No two begin alike, unless there are more than 90."""
        self.num_added += 1
        ids = [6 + self.num_added % 90] * prompt
        each = replace(request(name, ids, **sampling), priority=priority)
        sequence = Sequence.of(each, self.plan)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[tuple[str, int, int, int]]:
        """One step; what ran: (request, start, tokens, draws)."""
        step = self.scheduler.schedule()
        count = sum(chunk.num_samples for chunk in step.chunks)
        sampled = SampledTokens([5] * count, [None] * count, [[]] * count)
        self.outputs = self.scheduler.update(step, sampled)
        self.scheduler.check_integrity()
        return [
            (chunk.sequence.request_id, chunk.start, chunk.num_tokens, chunk.num_samples)
            for chunk in step.chunks
        ]


def test_a_long_prompt_runs_in_chunks_and_draws_after_the_last():
    driver = Driver(tiny_plan())  # 16 tokens a step
    driver.add("a", 35, max_tokens=2)
    assert driver.step() == [("a", 0, 16, 0)]
    assert driver.outputs == []
    assert driver.step() == [("a", 16, 16, 0)]
    assert driver.step() == [("a", 32, 3, 1)]
    assert driver.outputs == [TokenOutput("a", (5,))]
    assert driver.step() == [("a", 35, 1, 1)]
    assert driver.outputs == [TokenOutput("a", (5,), finish_reason=FinishReason.LENGTH)]
    assert not driver.scheduler.has_work
    assert driver.scheduler.num_prefill_tokens == 35
    assert driver.scheduler.num_decode_tokens == 2


def test_answers_go_on_while_a_long_prompt_is_read():
    driver = Driver(tiny_plan())
    driver.add("a", 3)
    driver.add("b", 2)
    driver.step()
    driver.add("long", 40)
    assert driver.step() == [("a", 3, 1, 1), ("b", 2, 1, 1), ("long", 0, 14, 0)]
    assert driver.step() == [("a", 4, 1, 1), ("b", 3, 1, 1), ("long", 14, 14, 0)]
    assert driver.step() == [("a", 5, 1, 1), ("b", 4, 1, 1), ("long", 28, 12, 1)]
    assert driver.step() == [("a", 6, 1, 1), ("b", 5, 1, 1), ("long", 40, 1, 1)]


def test_prompts_share_a_step_in_the_order_of_their_arrival():
    driver = Driver(tiny_plan())
    for name in ("a", "b", "c"):
        driver.add(name, 7)
    assert driver.step() == [("a", 0, 7, 1), ("b", 0, 7, 1), ("c", 0, 2, 0)]
    assert driver.step() == [("a", 7, 1, 1), ("b", 7, 1, 1), ("c", 2, 5, 1)]


def test_every_running_sequence_gets_its_token_when_the_budget_is_the_smallest_allowed():
    driver = Driver(tiny_plan(max_num_seqs=3, max_num_batched_tokens=3))
    for name in ("a", "b", "c"):
        driver.add(name, 1)
    for start in range(5):
        assert driver.step() == [(name, start, 1, 1) for name in ("a", "b", "c")]


def test_a_request_that_does_not_fit_yet_is_not_overtaken():
    driver = Driver(tiny_plan(cache_tokens=40))
    driver.add("a", 20, max_tokens=5)
    driver.add("large", 30, max_tokens=5)
    driver.add("small", 2, max_tokens=5)  # would fit beside "a"
    ran: list[str] = []
    while driver.scheduler.has_work:
        ran += [name for name, start, *_ in driver.step() if start == 0]
    assert ran == ["a", "large", "small"]


def test_what_is_still_running_limits_admission_and_not_what_was_asked_for_in_sum():
    driver = Driver(tiny_plan(cache_tokens=40))
    for number in range(30):
        driver.add(str(number), 10, max_tokens=3)
    steps = 0
    while driver.scheduler.has_work:
        assert len(driver.step()) <= 3  # 12 positions, 3 blocks each, 10 blocks in all
        steps += 1
    assert steps < 60


def test_a_context_that_ends_the_answer_is_named():
    driver = Driver(tiny_plan(max_model_len=12))
    driver.add("a", 10, max_tokens=50)
    driver.add("b", 10)
    driver.add("c", 10, max_tokens=2)
    ends = {}
    while driver.scheduler.has_work:
        driver.step()
        ends |= {output.request_id: output for output in driver.outputs if output.finish_reason}
    expected = ("The context of 12 tokens is full: 10 of prompt, 2 of answer.",)
    assert {name: end.finish_reason for name, end in ends.items()} == dict.fromkeys("abc", "length")
    assert ends["a"].diagnostics == ends["b"].diagnostics == expected
    assert ends["c"].diagnostics == ()


def test_logprobs_stay_with_their_tokens():
    driver = Driver(tiny_plan())
    driver.add("long", 20)  # no row in the first step
    driver.add("rich", 1, logprobs=True, top_logprobs=2)
    driver.add("plain", 1, max_tokens=2)
    driver.add("scored", 1, logprobs=True)
    step = driver.scheduler.schedule()
    assert [c.sequence.request_id for c in step.chunks] == ["rich", "plain", "scored", "long"]
    assert [c.num_samples for c in step.chunks] == [1, 1, 1, 0]
    top = [(3, -0.1), (7, -2.5)]
    sampled = SampledTokens([3, 4, 5], [-0.1, None, -0.5], [top, [], []])
    assert driver.scheduler.update(step, sampled) == [
        TokenOutput("rich", (3,), (-0.1,), (tuple(top),)),
        TokenOutput("plain", (4,)),
        TokenOutput("scored", (5,), (-0.5,)),
    ]


def test_a_row_without_a_token_ends_its_request_only():
    driver = Driver(tiny_plan())
    driver.add("a", 3)
    driver.add("b", 3)
    step = driver.scheduler.schedule()
    outputs = driver.scheduler.update(step, SampledTokens([-1, 5], [None, None]))
    assert [output.finish_reason for output in outputs] == [FinishReason.NAN, None]
    assert "position 3" in outputs[0].diagnostics[0]
    assert outputs[0].token_ids == ()
    assert driver.step() == [("b", 3, 1, 1)]


# -- Shares ------------------------------------------------------------------------------------


def test_a_short_prompt_is_not_held_up_by_long_ones():
    driver = Driver(tiny_plan())
    for name in ("a", "b", "c"):
        driver.add(name, 100)
    driver.add("short", 5, max_tokens=1)
    # The oldest has half of 16 tokens, the short one what it needs, the next in age the rest.
    assert driver.step() == [("a", 0, 8, 0), ("short", 0, 5, 1), ("b", 0, 3, 0)]
    assert driver.step() == [("a", 8, 8, 0), ("b", 3, 8, 0)]


def test_a_long_prompt_is_not_held_up_by_many_short_ones():
    driver = Driver(tiny_plan())
    driver.add("long", 80)
    for step in range(1, 20):
        for n in range(3):
            driver.add(f"{step}.{n}", 8, max_tokens=1)
        if ("long", 72, 8, 1) in driver.step():
            assert step == 10  # half of every step was its own
            return
    raise AssertionError("the long prompt is held up")


# -- Priorities --------------------------------------------------------------------------------


def test_the_higher_priority_reads_first_and_takes_all():
    driver = Driver(tiny_plan())
    driver.add("low", 40)
    driver.step()
    driver.add("high", 40, priority=1)
    assert driver.step() == [("high", 0, 16, 0)]
    assert driver.step() == [("high", 16, 16, 0)]
    assert driver.step() == [("high", 32, 8, 1), ("low", 16, 8, 0)]


def test_within_a_priority_first_come_first_served():
    driver = Driver(tiny_plan(max_num_seqs=1))
    for number, priority in enumerate((0, 1, 0, 2, 1, 2)):
        driver.add(f"{priority}.{number}", 2, priority=priority, max_tokens=1)
    ran = []
    while driver.scheduler.has_work:
        ran += [name for name, *_ in driver.step()]
    assert ran == ["2.3", "2.5", "1.1", "1.4", "0.0", "0.2"]


def test_a_higher_priority_takes_the_seat_of_a_lower_one():
    driver = Driver(tiny_plan(max_num_seqs=2))
    driver.add("a", 3)
    driver.add("b", 3)
    driver.step()
    driver.add("high", 3, priority=1, max_tokens=1)
    driver.add("same", 3)
    # "b" is the youngest of the lowest priority. It comes back before "same", which is younger.
    assert driver.step() == [("a", 3, 1, 1), ("high", 0, 3, 1)]
    assert driver.scheduler.num_preemptions == 1
    assert list(driver.scheduler.waiting) == ["b", "same"]
    assert driver.step() == [("a", 4, 1, 1), ("b", 0, 4, 1)]  # its prompt and the token drawn


def test_nobody_is_preempted_for_one_that_would_not_fit_all_the_same():
    driver = Driver(tiny_plan(cache_tokens=40, max_num_batched_tokens=40))
    driver.add("first", 24, priority=1, max_tokens=8)
    driver.add("low", 4, max_tokens=8)
    driver.step()
    driver.add("high", 30, priority=1, max_tokens=1)
    driver.step()
    assert driver.scheduler.num_preemptions == 0
    assert list(driver.scheduler.waiting) == ["high"]


# -- Preemption --------------------------------------------------------------------------------


def test_when_blocks_run_out_the_youngest_gives_up_its_own():
    driver = Driver(tiny_plan(cache_tokens=40))  # 10 blocks of 4
    for name in ("a", "b", "c"):
        driver.add(name, 4, max_tokens=20)
    drawn: dict[str, int] = dict.fromkeys("abc", 0)
    preempted: list[str] = []
    while driver.scheduler.has_work:
        before = driver.scheduler.num_preemptions
        for name, _, _, draws in driver.step():
            drawn[name] += draws
        if driver.scheduler.num_preemptions > before:
            preempted += driver.scheduler.waiting
    assert drawn == {"a": 20, "b": 20, "c": 20}
    # Each ends with 6 blocks: three cannot stay together to the end, nor can two.
    assert preempted[:1] == ["c"]
    assert "a" not in preempted
    assert driver.scheduler.num_recomputed_tokens < 3 * 24


def test_the_most_junior_waits_with_its_blocks_while_nobody_needs_them():
    driver = Driver(tiny_plan(cache_tokens=40, max_num_batched_tokens=40))
    driver.add("a", 23, max_tokens=2)  # 6 blocks to its end
    driver.add("b", 12, max_tokens=12)  # 3 at first, 6 in the end
    assert driver.step() == [("a", 0, 23, 1), ("b", 0, 12, 1)]
    assert driver.step() == [("a", 23, 1, 1), ("b", 12, 1, 1)]
    while driver.scheduler.has_work:
        driver.step()
    assert driver.scheduler.num_preemptions == 0


def test_a_preempted_sequence_goes_on_from_what_is_left_of_it():
    driver = Driver(tiny_plan(max_num_seqs=1, max_num_batched_tokens=64))
    driver.add("low", 30)
    for _ in range(4):
        driver.step()  # 33 tokens have run: 8 blocks of 4 and one token
    driver.add("high", 4, priority=1, max_tokens=1)
    assert driver.step() == [("high", 0, 4, 1)]
    assert driver.step() == [("low", 32, 2, 1)]
    assert driver.scheduler.num_recomputed_tokens == 1


# -- Deadlines ---------------------------------------------------------------------------------


def test_a_deadline_ends_what_runs_and_what_waits():
    driver = Driver(tiny_plan(max_num_seqs=1))
    running, waiting = driver.add("a", 4), driver.add("b", 4)
    del driver.scheduler.waiting["a"], driver.scheduler.waiting["b"]
    for sequence, deadline in ((running, 5.0), (waiting, 3.0)):
        sequence.request = replace(sequence.request, deadline_s=deadline)
        sequence.deadline = deadline
        driver.scheduler.add(sequence)
    driver.step()
    driver.now = 2.9
    assert driver.scheduler.end_late() == []
    driver.now = 3.0
    (late,) = driver.scheduler.end_late()
    assert (late.request_id, late.finish_reason) == ("b", FinishReason.DEADLINE)
    driver.step()
    driver.now = 6.0
    (late,) = driver.scheduler.end_late()
    assert late.diagnostics == (
        "The deadline of 5 s has passed: 2 tokens of the answer had been drawn.",
    )
    assert not driver.scheduler.has_work
    assert driver.scheduler.num_deadline_ends == 2
    driver.scheduler.check_integrity()


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.ERROR])
def test_what_ends_otherwise_has_no_deadline_left(reason: FinishReason):
    driver = Driver(tiny_plan())
    sequence = driver.add("a", 4)
    del driver.scheduler.waiting["a"]
    sequence.deadline = 1.0
    driver.scheduler.add(sequence)
    driver.step()
    driver.scheduler.end(["a"], reason)
    driver.now = 2.0
    assert driver.scheduler.end_late() == []


def test_an_empty_scheduler_schedules_nothing():
    driver = Driver(tiny_plan())
    assert driver.scheduler.schedule() == SchedulerOutput(())
    assert driver.scheduler.end(["unknown"], FinishReason.CANCELLED) == []
