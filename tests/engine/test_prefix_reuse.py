"""What a request computes when others began alike, counted by the tokens that run; the scripted
model finds any key or value that was computed behind other tokens or under another salt.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from engine.fakes import (
    VOCAB,
    Recorder,
    ScriptedRunner,
    drain,
    expected_answer,
    request,
    salted,
    tiny_model,
    tiny_plan,
)
from ossia.engine.config import EngineConfig, plan
from ossia.engine.engine import Engine
from ossia.engine.model_runner import forward_input
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.engine.scheduler import SchedulerOutput
from ossia.errors import RequestError
from ossia.kernels.interface import SampledTokens


class Server:
    """An engine that is asked one thing after another."""

    def __init__(self, **config: object) -> None:
        self.plan = tiny_plan(**config)
        self.runner = ScriptedRunner(self.plan)
        self.engine = Engine(self.runner, self.plan)
        self.sink = Recorder()

    def submit(self, *requests: Request) -> None:
        for each in requests:
            self.engine.submit(each, self.sink)

    def run(self, *requests: Request) -> list[int]:
        """The tokens that each took from the cache; all tokens are those of the definition."""
        self.submit(*requests)
        drain(self.engine)
        for each in requests:
            answer = expected_answer(each, self.plan.context)
            assert self.sink.tokens(each.request_id) == answer
            outputs = self.sink.outputs[each.request_id]
            assert len({output.cached_tokens for output in outputs}) == 1
        return [self.sink.end(each.request_id).cached_tokens for each in requests]


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(length)]


def test_the_same_prompt_again_runs_its_last_block_only():
    server = Server()
    assert server.run(request("a", prompt(50), max_tokens=3)) == [0]
    ran = server.runner.num_tokens
    assert server.run(request("b", prompt(50), max_tokens=3)) == [48]
    assert server.runner.num_tokens - ran == 2 + 2  # 2 of the prompt, 2 of 3 tokens drawn
    stats = server.engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.prefill_tokens) == (100, 48, 52)


def test_a_prompt_of_whole_blocks_still_has_a_token_to_draw_from():
    server = Server()
    server.run(request("a", prompt(48), max_tokens=1))
    assert server.run(request("b", prompt(48), max_tokens=1)) == [44]


def test_an_answer_that_comes_back_need_not_run_again():
    server = Server()
    first = request("a", prompt(30), max_tokens=23)
    server.run(first)
    whole = [*first.prompt_ids, *expected_answer(first, 200), 5, 6, 7]
    assert server.run(request("b", whole, max_tokens=2)) == [52]  # of 30 + 22 that ran


def test_a_new_question_goes_on_from_the_message_boundary():
    server = Server()
    system = prompt(41)
    first = replace(request("a", system + prompt(60, 1), max_tokens=2), checkpoints=(41,))
    server.run(first)
    assert server.run(request("b", system + prompt(60, 2), max_tokens=2)) == [40]


def test_a_long_history_leaves_few_checkpoints():
    server = Server()
    ends = tuple(range(8, 150, 8))
    server.run(replace(request("a", prompt(160), max_tokens=2), checkpoints=ends))
    assert server.engine.stats().checkpoints == 8 + 2  # and the ends of prompt and answer
    assert server.run(request("b", [*prompt(11), 5], max_tokens=2)) == [8]
    assert server.run(request("c", [*prompt(150), 5], max_tokens=2)) == [144]


def test_a_prefix_that_comes_twice_becomes_a_checkpoint_of_itself():
    server = Server()
    system = prompt(41)
    hits = [server.run(request(str(n), system + prompt(60, n), max_tokens=2)) for n in range(1, 4)]
    assert hits == [[0], [0], [40]]


def test_those_that_arrive_together_wait_for_the_first_and_share_its_work():
    server = Server(max_num_batched_tokens=16)
    system = prompt(81)
    requests = [request(str(n), system + prompt(9, n + 1), max_tokens=4) for n in range(4)]
    other = request("other", prompt(30, 99), max_tokens=4)
    server.submit(*requests, other)
    server.engine.step()
    # The three others are passed by one that has nothing to wait for.
    assert [c.sequence.request_id for c in server.runner.steps[0].chunks] == ["0", "other"]
    server.run()
    assert [server.sink.end(str(n)).cached_tokens for n in range(4)] == [0, 80, 80, 80]
    assert server.runner.num_tokens == 90 + 3 * 10 + 4 * 3 + 33
    for each in requests:
        assert server.sink.tokens(each.request_id) == expected_answer(each, 200)


def test_who_waits_for_one_that_is_cancelled_runs_on_its_own():
    server = Server(max_num_batched_tokens=8)
    requests = [request(name, prompt(60), max_tokens=3) for name in "abc"]
    server.submit(*requests)
    for _ in range(3):
        server.engine.step()
    assert server.engine.stats().running == 1
    server.engine.cancel("a")
    server.run()
    # What "a" had computed is not lost.
    assert [server.sink.end(name).cached_tokens for name in "bc"] == [24, 56]
    for each in requests[1:]:
        assert server.sink.tokens(each.request_id) == expected_answer(each, 200)


def test_the_canary_no_salt_sees_what_another_has_asked():
    server = Server()
    secret = prompt(60)
    assert server.run(salted("a", secret, "key 1", max_tokens=9)) == [0]
    for n, salt in enumerate(("key 2", "", "key 1\0", "KEY 1")):
        before = server.runner.num_tokens
        assert server.run(salted(f"{n}", secret, salt, max_tokens=9)) == [0]
        assert server.runner.num_tokens - before == 60 + 8  # nor by the time that it takes
    assert server.run(salted("again", secret, "key 1", max_tokens=9)) == [56]


def test_the_canary_nor_when_they_run_together():
    server = Server(max_num_batched_tokens=40)
    each = [salted(salt, prompt(60), salt, max_tokens=9) for salt in ("x", "y", "z")]
    server.submit(*each)
    server.engine.step()
    assert server.engine.stats().running == 3  # none waits for another
    assert server.run() == []
    assert [server.sink.end(salt).cached_tokens for salt in ("x", "y", "z")] == [0, 0, 0]


def test_a_request_that_failed_leaves_nothing_behind():
    server = Server()
    server.runner.nan_requests = {"bad"}
    server.submit(request("bad", prompt(60), max_tokens=9))
    drain(server.engine)
    assert server.sink.end("bad").diagnostics
    assert server.run(request("a", prompt(60), max_tokens=9)) == [0]


def test_a_preempted_request_is_told_what_it_took_from_the_cache_at_first():
    server = Server(cache_tokens=60, max_num_batched_tokens=60)
    server.run(request("a", prompt(20), max_tokens=2))
    b = request("b", [*prompt(20, 1), 1], max_tokens=25)
    c = request("c", [*prompt(20), 1], max_tokens=25)
    assert server.run(b, c) == [0, 20]
    assert server.engine.stats().preemptions > 0


def test_checkpoints_outside_the_prompt_are_refused():
    server = Server()
    for position in (-1, 11):
        bad = replace(request("a", prompt(10)), checkpoints=(3, position))
        with pytest.raises(RequestError, match=f"10 tokens of the prompt; got {position}"):
            server.submit(bad)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_deadlines_that_cannot_be_meant_are_refused(deadline: float):
    with pytest.raises(RequestError, match="deadline_s must be a positive number"):
        Server().submit(replace(request("a", [1]), deadline_s=deadline))


def test_a_deadline_is_kept_by_the_engine():
    now = [100.0]
    resolved = tiny_plan()
    engine, sink = Engine(ScriptedRunner(resolved), resolved, clock=lambda: now[0]), Recorder()
    engine.submit(replace(request("a", prompt(10)), deadline_s=2.5), sink)
    engine.step()
    now[0] = 102.5
    engine.step()
    assert sink.end("a").finish_reason is FinishReason.DEADLINE
    assert sink.end("a").diagnostics == (
        "The deadline of 2.5 s has passed: 1 tokens of the answer had been drawn.",
    )
    assert engine.stats().deadline_ends == 1
    drain(engine)


# -- A long chat -------------------------------------------------------------------------------


class Chat:
    """A conversation as Harmony keeps it: each answer's reasoning is dropped once the next question
    comes. The model says what the script has it say.
    """

    def __init__(self, seed: int, **config: object) -> None:
        model = tiny_model(
            sliding_window=128, max_position_embeddings=131072, vocab_size=1000, head_dim=64
        )
        values = {"max_num_seqs": 4, "max_model_len": 60_000, "cache_tokens": 60_000}
        self.plan = plan(EngineConfig(**{**values, **config}), model, cache_itemsize=2)  # type: ignore[arg-type]
        self.engine = Engine(self, self.plan)
        self.num_tokens = 0
        self.answer: list[int] = []
        self.rng = random.Random(seed)
        self.history = self.text(700)  # system and developer messages
        self.boundaries = [len(self.history)]
        self.num_turns = 0

    def text(self, length: int) -> list[int]:
        return [self.rng.randrange(1, 1000) for _ in range(length)]

    def run(self, step: SchedulerOutput) -> SampledTokens:
        self.num_tokens += forward_input(step, self.plan.block_size).num_tokens
        ids = [
            self.answer[len(chunk.sequence.output_ids)]
            for chunk in step.chunks
            if chunk.num_samples
        ]
        return SampledTokens(ids, [None] * len(ids))

    def turn(self, question: int, reasoning: int, answer: int, *, keep: bool = False) -> int:
        """One turn by numbers of tokens; how many tokens of the prompt ran."""
        self.num_turns += 1
        self.history += self.text(question)
        self.boundaries.append(len(self.history))
        thought, said = self.text(reasoning), self.text(answer)
        self.answer = thought + said
        before = self.num_tokens
        sink = Recorder()
        sampling = SamplingParams(max_tokens=len(self.answer))
        ends = tuple(self.boundaries)
        name = f"turn {self.num_turns}"
        prompt_ids = tuple(self.history)
        self.engine.submit(Request(name, prompt_ids, sampling, checkpoints=ends), sink)
        while self.engine.has_work:
            self.engine.step()
        assert sink.tokens(name) == tuple(self.answer)
        ran = self.num_tokens - before - (len(self.answer) - 1)
        assert ran == len(prompt_ids) - sink.end(name).cached_tokens
        self.history += self.answer if keep else said
        self.boundaries.append(len(self.history))
        return ran


def test_after_30_000_tokens_whose_reasoning_is_dropped_only_what_is_new_runs():
    chat = Chat(1)
    said = None
    while len(chat.history) < 30_000:
        question, reasoning, answer = chat.rng.randint(20, 900), 150, chat.rng.randint(20, 900)
        ran = chat.turn(question, reasoning, answer)
        if said is not None:
            assert said + question <= ran <= said + question + 128
        said = answer
    ran = chat.turn(200, 50, 100)
    assert said is not None and said + 200 <= ran <= said + 200 + 32  # one block
    chat.engine.check_integrity()


def test_a_tool_loop_keeps_its_reasoning_and_runs_what_is_new():
    chat = Chat(2)
    chat.turn(100, 30, 20, keep=True)
    for _ in range(20):
        ran = chat.turn(57, 40, 13, keep=True)  # the result of a tool, and what follows
        assert 57 + 1 <= ran <= 57 + 1 + 32  # and the token that was drawn last and never ran


def test_a_long_tool_loop_does_not_cost_the_conversation_before_it():
    chat = Chat(4, max_num_seqs=1, max_checkpoints=16)
    for _ in range(12):
        chat.turn(400, 50, 200)
    chat.turn(100, 30, 20, keep=True)
    question_end = chat.boundaries[-2]
    for _ in range(40):
        chat.turn(57, 40, 13, keep=True)
    # The answer has come: all calls and results of the loop go with their reasoning.
    assert chat.engine.stats().evicted_checkpoints > 40
    chat.history = chat.history[:question_end] + chat.text(100)
    chat.boundaries = [end for end in chat.boundaries if end <= question_end]
    assert question_end == 8000
    assert chat.turn(200, 10, 10) < 100 + 200 + 700  # at worst from the message before


def test_many_chats_with_one_beginning_each_go_on_where_they_were():
    chats = [Chat(3) for _ in range(3)]
    shared = chats[0]
    for chat in chats[1:]:
        chat.engine = shared.engine
    hits = []
    for round_ in range(3):
        for chat in chats:
            chat.rng = random.Random(f"{round_} {chats.index(chat)}")
            shared.answer, before = [], shared.num_tokens
            chat.history += chat.text(100)
            sink = Recorder()
            shared.answer = chat.text(40)
            each = Request(
                "r",
                tuple(chat.history),
                SamplingParams(max_tokens=40),
                checkpoints=(700,),
            )
            shared.engine.submit(each, sink)
            while shared.engine.has_work:
                shared.engine.step()
            chat.history += shared.answer[20:]
            hits.append(shared.num_tokens - before - 39)
    # The first reads all; the others begin behind the system message; then only what is new.
    assert hits[0] == 800
    assert all(100 <= ran <= 100 + 32 for ran in hits[1:3])
    assert all(120 <= ran <= 120 + 32 for ran in hits[3:])
