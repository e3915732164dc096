"""Asking and counting, with models that say what a test tells them to."""

from __future__ import annotations

import asyncio
import math
import random
import re

import pytest

from evals.models import CALL, FINAL, PYTHON_CALL, THOUGHT, TOKENIZER, AnsweringEngine, model, turn
from ossia.agent.events import Diagnostic
from ossia.errors import EngineError, UsageError
from ossia.evals.run import Plan, Progress, Score, run_tasks, told, was_repaired, wilson_interval
from ossia.evals.task import RIGHT, Example, Task, wrong
from ossia.evals.tasks import find_suite
from ossia.harmony.messages import Effort, Message, Role

NANO = find_suite("nano")


def echo_task(texts: list[str], name: str = "echo") -> Task:
    """Right is the answer that repeats the question."""

    def example(text: str) -> Example:
        return Example(
            (Message.of_text(Role.USER, text),),
            lambda t: RIGHT if t.content == text else wrong("another text"),
            text,
            variant=text[0],
        )

    def draw(rng: random.Random, count: int) -> list[Example]:
        return [example(text) for text in texts[:count]]

    return Task(name, "words", "echoing", "Say it again.", draw)


def user_text(prompt: str) -> str:
    return prompt.rpartition("<|start|>user<|message|>")[2].partition("<|end|>")[0]


def run(engine: AnsweringEngine, *tasks: Task, **plan) -> list[Score]:
    with model(engine) as llm:
        return list(run_tasks(llm, tasks, Plan(**plan)))


# ---- intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: four digits as printed.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_of_the_literature(right, of, low, high):
    assert wilson_interval(right, of) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("of", [1, 7, 200])
def test_the_ends_of_the_interval_solve_its_equation(of):
    """At an end p of the interval, |share − p| is z standard errors under p itself."""
    for right in range(of + 1):
        for p in wilson_interval(right, of):
            if 0 < p < 1:
                z = abs(right / of - p) / math.sqrt(p * (1 - p) / of)
                assert z == pytest.approx(1.959963984540054)
    assert wilson_interval(0, of)[0] == 0 and wilson_interval(of, of)[1] == 1
    assert wilson_interval(0, 0) == (0, 1)


# ---- asking ------------------------------------------------------------------------------------


def test_every_example_is_asked_under_every_effort_greedily():
    engine = AnsweringEngine(lambda prompt: FINAL.format(user_text(prompt)))
    scores = run(engine, echo_task(["ab", "bc", "bd"]), echo_task(["x"], "second"), count=3)
    assert [(s.task.name, s.effort.value, s.right, s.of) for s in scores] == [
        (name, effort, of, of)
        for name, of in (("echo", 3), ("second", 1))
        for effort in ("low", "medium", "high")
    ]
    assert scores[0].by_variant() == {"a": (1, 1), "b": (2, 2)}
    for effort in Effort:
        asked = [p for p in engine.prompts if f"Reasoning: {effort}\n" in p]
        assert sorted(map(user_text, asked)) == ["ab", "bc", "bd", "x"]
    assert all("You are nobody." in p and "2026-01-01" in p for p in engine.prompts)
    assert all(request.sampling.temperature == 0 for request in engine.requests)


def test_tokens_are_counted_with_the_models_own_vocabulary():
    thought, answer = "They want it once more.", "ab"
    engine = AnsweringEngine(lambda _: THOUGHT.format(thought, answer))
    (score,) = run(engine, echo_task(["ab", "cd"]), efforts=(Effort.HIGH,))
    assert (score.right, score.of) == (1, 2)
    assert score.reasoning_tokens == len(TOKENIZER.encode(thought)) > 1
    assert score.answer_tokens == len(TOKENIZER.encode(answer))
    first, second = score.outcomes
    assert (first.right, first.got, first.reasoning, first.why) == (True, "ab", thought, "")
    assert (second.right, second.asked, second.why) == (False, "cd", "another text")
    assert second.prompt == engine.prompts[1] and "cd" in second.prompt


def test_outcomes_stand_in_the_order_of_the_examples():
    texts = [f"text {i}" for i in range(30)]
    engine = AnsweringEngine(lambda prompt: FINAL.format(user_text(prompt)))
    (score,) = run(engine, echo_task(texts), efforts=(Effort.LOW,), batch=7)
    assert [outcome.asked for outcome in score.outcomes] == texts


def test_no_more_examples_are_in_flight_than_the_batch():
    engine = AnsweringEngine(lambda prompt: FINAL.format("x"))
    most, now = 0, 0
    generate = engine.generate

    async def counted(request):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        try:
            async for output in generate(request):
                yield output
        finally:
            now -= 1

    engine.generate = counted
    run(engine, echo_task([str(i) for i in range(20)]), efforts=(Effort.LOW,), batch=3)
    assert most == 3


def test_a_turn_cut_by_length_is_never_right():
    engine = AnsweringEngine(lambda _: "<|channel|>final<|message|>ab")
    (score,) = run(engine, echo_task(["ab"]), efforts=(Effort.LOW,))
    assert (score.right, score.cut) == (0, 1.0)
    assert score.repaired == 0, "an end by length is no fault of the format"
    assert "cut after" in score.outcomes[0].why


def test_repaired_turns_are_counted_and_graded_all_the_same():
    answers = {"ab": "<|channel|>final<|message|>ab<|end|><|return|>", "cd": FINAL.format("cd")}
    engine = AnsweringEngine(lambda prompt: answers[user_text(prompt)])
    (score,) = run(engine, echo_task(["ab", "cd"]), efforts=(Effort.LOW,))
    assert score.right == 2
    assert [outcome.repaired for outcome in score.outcomes] == [True, False]
    assert score.repaired == 0.5


def test_what_counts_as_repaired():
    def repaired(text: str, summary: str) -> bool:
        return was_repaired(turn("x", diagnostics=(Diagnostic(text, summary),)))

    assert repaired("R5: words", "The model's output was repaired (R5).")
    assert repaired("The model called x", "The model called a tool that was not offered")
    assert not repaired("cut: it ended", "The model's output was repaired (cut).")
    assert not repaired("The context of 9 tokens is full", "The context of 9 tokens is full")
    assert not was_repaired(turn("x"))


def test_a_prompt_that_is_refused_is_a_wrong_answer():
    engine = AnsweringEngine(lambda prompt: FINAL.format(user_text(prompt)), context=200)
    (score,) = run(engine, echo_task(["ab", "long " * 200]), efforts=(Effort.LOW,))
    assert [outcome.right for outcome in score.outcomes] == [True, False]
    assert score.outcomes[1].why == "refused: The prompt is too long."


def test_a_failed_engine_ends_the_run():
    with pytest.raises(EngineError, match=r"evaluation stopped.*It broke"):
        run(AnsweringEngine(lambda _: None), echo_task(["ab"]))


def test_an_interrupt_leaves_what_has_been_answered():
    count = 0

    def answer(prompt: str) -> str:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return FINAL.format(user_text(prompt))

    scores: list[Score] = []
    with model(AnsweringEngine(answer)) as llm, pytest.raises(KeyboardInterrupt):
        for score in run_tasks(llm, [echo_task(["a", "b", "c"])], Plan(batch=1)):
            scores += [score]
    assert [(s.effort.value, s.of, s.asked, s.complete) for s in scores] == [
        ("low", 3, 3, True),
        ("medium", 1, 3, False),
    ]


def test_an_interrupt_leaves_no_examples_that_overtook_others():
    engine = AnsweringEngine(lambda prompt: FINAL.format(user_text(prompt)))
    generate = engine.generate

    async def slow_in_the_middle(request):
        if user_text(TOKENIZER.decode(request.prompt_ids)) == "b":
            await asyncio.sleep(0.1)
            raise KeyboardInterrupt
        async for output in generate(request):
            yield output

    engine.generate = slow_in_the_middle
    scores: list[Score] = []
    with model(engine) as llm, pytest.raises(KeyboardInterrupt):
        for score in run_tasks(llm, [echo_task(["a", "b", "c", "d"])], Plan()):
            scores += [score]
    assert [outcome.asked for outcome in scores[0].outcomes] == ["a"]


def test_progress_counts_over_the_whole_run():
    seen: list[Progress] = []
    engine = AnsweringEngine(lambda _: FINAL.format("a"))
    with model(engine) as llm:
        list(run_tasks(llm, [echo_task(["a", "b"])], Plan(), progress=seen.append))
    assert [progress.done for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in seen} == {6}
    # <|channel|>, final, <|message|>, a, <|return|>
    assert seen[-1].tokens == 6 * (3 + len(TOKENIZER.encode("final")) + len(TOKENIZER.encode("a")))


@pytest.mark.parametrize(("option", "value"), [("count", 0), ("batch", 0), ("max_tokens", -1)])
def test_numbers_below_one_are_refused(option, value):
    name = option.replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} must be 1 or more; got {value}"):
        Plan(**{option: value})


# ---- the suite nano, answered by a model that knows how ----------------------------------------


def test_calls_and_results_of_a_model_that_answers_right():
    """The whole path: the prompt is rendered, the call parsed, its result rendered and answered."""
    (task,) = NANO.select(["call"])
    found = {e.messages[-1].text: e.expected for e in task.examples(10, 0)}

    def answer(prompt: str) -> str:
        name, _, arguments = found[user_text(prompt)].partition("(")
        return CALL.format(name, arguments[:-1])

    (score,) = run(AnsweringEngine(answer), task, count=10, efforts=(Effort.LOW,))
    assert (score.right, score.repaired) == (10, 0)
    assert score.outcomes[0].got.startswith("→ ") and score.answer_tokens > 1


def test_the_second_turn_goes_on_from_the_models_own_call():
    (task,) = NANO.select(["python_result"])

    def answer(prompt: str) -> str:
        output = re.search(r"<\|start\|>python to=assistant.*<\|message\|>(.*)<\|end\|>", prompt)
        if output:
            assert "# my own" in prompt
            return THOUGHT.format("It printed the value.", f"It is {output[1]}.")
        expected = found[user_text(prompt)]
        return PYTHON_CALL.format(f"print({expected})  # my own")

    found = {e.messages[-1].text: e.expected for e in task.examples(5, 0)}
    engine = AnsweringEngine(answer)
    (score,) = run(engine, task, count=5, efforts=(Effort.LOW,))
    assert (score.right, len(engine.prompts)) == (5, 10)
    assert "<|call|>" in score.outcomes[0].prompt, "the prompt of the last turn is recorded"


def test_the_second_turn_has_the_right_call_when_the_model_made_none():
    (task,) = NANO.select(["result"])
    engine = AnsweringEngine(lambda _: FINAL.format("I cannot."))
    (score,) = run(engine, task, count=5, efforts=(Effort.LOW,))
    assert score.right == 0
    second = [prompt for prompt in engine.prompts if "<|call|>" in prompt]
    assert len(second) == 5 and all("I cannot." not in prompt for prompt in second)


def test_what_a_turn_tells():
    assert told(turn("Yes.", ("f", "{}"), preamble="Wait.")) == "Wait.\nYes.\n→ f({})"
    assert told(turn(None)) == ""
