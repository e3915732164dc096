"""The lessons: their arithmetic checked by Python's own, and the pairs that must not be in them."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from ossia.harmony.messages import DeveloperContent, Effort, Role, SystemContent
from ossia.train.curriculum.arithmetic import (
    Problem,
    Skill,
    draw_problem,
    held_out,
    may_train,
    steps,
    working,
)
from ossia.train.curriculum.lessons import Mix, answer, chat_system, lessons, question
from ossia.train.recipe import NanoRecipe

PROBLEM_SKILLS = [skill for skill in Skill if skill is not Skill.TALK]
LESSONS = list(itertools.islice(lessons(3, NanoRecipe().late), 4000))


def value_of(text: str) -> int:
    """What Python makes of `48 × 37 + 12`. Leading zeros are the padding of a column."""
    assert re.fullmatch(r"[\d+−×\- ]+", text), text
    python = re.sub(r"\b0+(?=\d)", "", text.replace("−", "-").replace("×", "*"))
    return eval(python)


def checked_line(line: str) -> None:
    """Every equation and every arrow of a line of working holds."""
    if "<" in line:
        low, high = line.split(" < ")
        assert int(low) < int(high)
        return
    head, _, columns = line.partition(": ")
    if columns:
        columns, result = columns.split(" → ")
        assert value_of(head) == int(result)
        equations = columns.split(", ")
    else:
        equations = [head]
    for equation in equations:
        left, _, right = equation.partition("=")
        if right:
            assert value_of(left.strip()) == value_of(right.strip())


@pytest.mark.parametrize("skill", PROBLEM_SKILLS)
def test_every_line_of_working_is_true(skill):
    rng = random.Random(1)
    for _ in range(2000):
        problem = draw_problem(rng, skill)
        first, *lines = working(problem).split("\n")
        assert first == str(problem)
        assert value_of(first) == problem.value
        for line in lines:
            checked_line(line)
        stated = answer(problem).rstrip(".").split(" = ")
        assert value_of(stated[0]) == problem.value == value_of(stated[1])


def test_the_working_of_examples():
    assert working(Problem(48, "×", 37, "+", 12)).split("\n") == [
        "48 × 37 + 12",
        "48 × 07: 8×7=56, 4×7=28, 28+5=33 → 0336",
        "48 × 30: 8×3=24, 4×3=12, 12+2=14 → 1440",
        "0336 + 1440: 6+0=06, 3+4+0=07, 3+4+0=07, 0+1+0=01 → 1776",
        "1776 + 0012: 6+2=08, 7+1+0=08, 7+0+0=07, 1+0+0=01 → 1788",
    ]
    assert working(Problem(342, "−", 57)).split("\n")[1] == (
        "0342 − 0057: 2−7+10=5, 4−5−1+10=8, 3−0−1+00=2, 0−0−0+00=0 → 0285"
    )
    assert working(Problem(37, "−", 42)).split("\n")[1:] == [
        "37 < 42",
        "0042 − 0037: 2−7+10=5, 4−3−1+00=0, 0−0−0+00=0, 0−0−0+00=0 → 0005",
    ]
    assert working(Problem(7, "×", 48)).split("\n")[1:] == [
        "48 × 07: 8×7=56, 4×7=28, 28+5=33 → 0336"
    ]


def test_the_last_step_gives_the_value():
    rng = random.Random(2)
    for skill in PROBLEM_SKILLS:
        for _ in range(500):
            problem = draw_problem(rng, skill)
            assert steps(problem)[-1].value == problem.value


def test_a_tenth_of_the_pairs_is_held_out_48_and_37_among_them():
    assert held_out(48, 37) and held_out(37, 48)
    assert not may_train(Problem(48, "×", 37, "+", 12))
    pairs = [(a, b) for a in range(10, 1000) for b in range(a, 1000)]
    share = sum(held_out(a, b) for a, b in pairs) / len(pairs)
    assert 0.097 < share < 0.103
    assert not any(held_out(a, b) for a in range(10) for b in range(1000))


def test_a_held_out_step_keeps_the_problem_out():
    # 336 + 1440 is a step of 48 × 37 only; find a product whose own pair is free but a step is not.
    found = [
        problem
        for a, b in itertools.product(range(10, 100), repeat=2)
        if not held_out(a, b) and not may_train(problem := Problem(a, "×", b))
    ]
    assert found
    for problem in found:
        assert any(held_out(step.a, step.b) for step in steps(problem))


def test_no_held_out_pair_stands_in_any_lesson():
    """Read from the text, whoever says it: two numbers with an operator or a word between."""
    between = re.compile(
        r"(?<![\d.])(\d+)(?:\s*[-+*×x·−–/÷^]\s*|\s(?:plus|minus|times|and|by|from|to|with|less|mod|"
        r"multiplied by|multiplied with|take away|divided by)\s)(?=(\d+))"
    )
    seen = 0
    for lesson in LESSONS:
        for message in lesson.conversation.messages:
            for a, b in between.findall(message.text):
                seen += 1
                assert not held_out(int(a), int(b)), message.text
    assert seen > 10_000


def test_questions_hold_the_operands_and_vary():
    rng = random.Random(4)
    asked = set()
    for skill in PROBLEM_SKILLS:
        for _ in range(500):
            problem = draw_problem(rng, skill)
            text = question(rng, problem)
            operands = [problem.a, problem.b, *([] if problem.c is None else [problem.c])]
            assert sorted(map(int, re.findall(r"\d+", text))) == sorted(operands)
            asked.add(re.sub(r"\d+", "n", text))
    assert len(asked) > 200


def test_lessons_are_a_function_of_the_seed():
    again = list(itertools.islice(lessons(3, NanoRecipe().late), 100))
    assert again == LESSONS[:100]
    assert list(itertools.islice(lessons(4, NanoRecipe().late), 100)) != again


def test_lessons_end_in_analysis_and_final_and_keep_the_shares():
    mix = NanoRecipe().late
    counts = dict.fromkeys(Skill, 0)
    full = short = developer = 0
    for lesson in LESSONS:
        *earlier, asked, thought, final = lesson.conversation.messages
        assert asked.role == Role.USER
        assert (thought.channel, final.channel) == ("analysis", "final")
        assert all(message.channel != "analysis" for message in earlier)
        counts[lesson.skill] += 1
        contents = [part for message in earlier for part in message.content]
        systems = [part for part in contents if isinstance(part, SystemContent)]
        full += any(system.conversation_start_date is not None for system in systems)
        short += any(system.conversation_start_date is None for system in systems)
        developer += any(isinstance(part, DeveloperContent) for part in contents)
    for skill, share in mix.skills.items():
        assert counts[skill] / len(LESSONS) == pytest.approx(share, abs=0.03)
    assert full / len(LESSONS) == pytest.approx(mix.full_system, abs=0.03)
    assert short / len(LESSONS) == pytest.approx(mix.short_system, abs=0.02)
    assert developer / len(LESSONS) == pytest.approx(mix.developer, abs=0.02)


def test_the_system_message_is_that_of_chat():
    import datetime

    content = chat_system(Effort.HIGH, datetime.date(2026, 11, 20))
    assert content.model_identity == "You are nano, the tiny model built into Ossia."
    assert content.knowledge_cutoff == "2024-06"
    assert content.conversation_start_date == "2026-11-20"
    assert content.valid_channels == ("analysis", "commentary", "final")


def test_the_shares_of_a_mix_sum_to_one():
    assert sum(Mix().skills.values()) == pytest.approx(1)
