"""Which tokens run in which step, read off the scheduler's decisions."""

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
        self.scheduler = Scheduler(plan)
        self.outputs: list[TokenOutput] = []

    def add(self, name: str, prompt: int, **sampling: object) -> Sequence:
        sequence = Sequence.of(request(name, [1] * prompt, **sampling), self.plan)
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


def test_an_empty_scheduler_schedules_nothing():
    driver = Driver(tiny_plan())
    assert driver.scheduler.schedule() == SchedulerOutput(())
    assert driver.scheduler.end(["unknown"], FinishReason.CANCELLED) == []
