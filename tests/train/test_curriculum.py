"""The generated curriculum: its arithmetic checked by Python's own, and the pairs and names that
must not be in it."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

import ossia.nano
from ossia.evals.held_out import draw_identifier, draw_word, held_out_name, held_out_pair
from ossia.harmony.messages import Effort, Role, SystemContent
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum.arithmetic import (
    SKILLS,
    Problem,
    check,
    draw_problem,
    draw_training_problem,
    may_train,
    steps,
    working,
)
from ossia.train.curriculum.documents import Document, Topic, draw_document
from ossia.train.curriculum.drills import (
    draw_call_drill,
    draw_question_drill,
    draw_rank_drill,
    draw_result_drill,
    draw_shape_drill,
    draw_talk_drill,
)
from ossia.train.curriculum.lesson import IDENTITY, Lesson, Setting, Skill, draw_setting
from ossia.train.curriculum.lessons import DRAW_LESSON, SOURCES, draw, stream
from ossia.train.curriculum.sums import answer, draw_sum, question
from ossia.train.data import encode
from ossia.train.recipe import Stage, load_recipe
from ossia.train.source import text_of

RECIPE = load_recipe("nano")


@pytest.fixture(scope="module")
def drawn() -> list[Document | Lesson]:
    """Texts of all stages."""
    found = []
    for stage in Stage:
        part = RECIPE.stage(stage)
        texts = stream(random.Random(f"test {stage}"), part.mix, full_system=part.full_system)
        found += itertools.islice(texts, 2500)
    return found


def pairs_of(spans):
    """Question and answer, in turns."""
    return list(zip(spans[::2], spans[1::2], strict=True))


# ---- arithmetic --------------------------------------------------------------------------------


def value_of(text: str) -> int:
    """What Python makes of `48 × 37 + 12`. Leading zeros are the padding of a column."""
    assert re.fullmatch(r"[\d+−×\- ]+", text), text
    python = re.sub(r"\b0+(?=\d)", "", text.replace("−", "-").replace("×", "*"))
    return eval(python)


def checked_line(line: str) -> int:
    """Every equation and every arrow of a line of working holds; its result."""
    line = line.removeprefix("check ")
    head, columns = line.split(": ")
    columns, result = columns.split(" → ")
    assert value_of(head) == int(result)
    equations = columns.split(" ")
    if "×" not in head and all(re.fullmatch(r"\d[+−]\d=\d", each) for each in equations):
        assert "".join(each[-1] for each in reversed(equations)) == result  # carries unsaid
        for sign in "+−":
            if f" {sign} " in head:
                rows = head.split(f" {sign} ")
                digits = [f"{x}{sign}{y}" for x, y in zip(*rows, strict=True)]
                assert [each[:3] for each in reversed(equations)] == digits
        return int(result)
    for equation in equations:
        if "=" not in equation:  # the units of a times the digit of b, unsaid
            a, b = head.split(" × ")
            equation = f"{a[-1]}×{b.strip('0') or 0}={equation}"
        left, _, right = equation.partition("=")
        assert value_of(left) == value_of(right)
    return int(result)


@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("skill", SKILLS)
def test_every_line_of_working_is_true(skill, effort):
    rng = random.Random(f"{skill}{effort}")
    for _ in range(800):
        problem = draw_problem(rng, skill)
        lines = working(problem, effort).split("\n")
        if lines[0] == str(problem):
            lines = lines[1:]
            assert value_of(str(problem)) == problem.value
        results = []
        for line in lines:
            if " < " in line:
                low, high = line.split(" < ")
                assert int(low) < int(high)
            else:
                results.append(checked_line(line))
        if results and not lines[-1].startswith("check"):
            assert results[-1] == abs(problem.value)
        stated = answer(problem).rstrip(".").split(" = ")
        assert value_of(stated[0]) == problem.value == value_of(stated[1])


def test_working_grows_with_the_effort():
    rng = random.Random(5)
    for skill in SKILLS:
        lengths = [
            sum(len(working(draw_problem(rng, skill), effort)) for _ in range(200))
            for effort in (Effort.LOW, Effort.MEDIUM, Effort.HIGH)
        ]
        assert lengths[0] * 1.2 < lengths[1] < lengths[2]


def test_the_working_of_examples():
    problem = Problem(48, "×", 37, "+", 12)
    assert working(problem, Effort.LOW) == "48 × 37 + 12"
    assert working(problem, Effort.MEDIUM).split("\n")[1:] == [
        "48 × 07: 56 28+5=33 → 0336",
        "48 × 30: 24 12+2=14 → 1440",
        "0336 + 1440: 6+0=6 3+4=7 3+4=7 0+1=1 → 1776",
        "1776 + 0012: 6+2=8 7+1=8 7+0=7 1+0=1 → 1788",
    ]
    assert working(problem, Effort.HIGH).split("\n")[1:] == [
        "48 × 07: 8×7=56 4×7=28 28+5=33 → 0336",
        "48 × 30: 8×3=24 4×3=12 12+2=14 → 1440",
        "0336 + 1440: 6+0=06 3+4+0=07 3+4+0=07 0+1+0=01 → 1776",
        "1776 + 0012: 6+2=08 7+1+0=08 7+0+0=07 1+0+0=01 → 1788",
    ]
    assert (
        working(Problem(342, "−", 57), Effort.LOW)
        == "342 − 57\n0342 − 0057: 2−7=5 4−5=8 3−0=2 0−0=0 → 0285"
    )
    assert working(Problem(342, "−", 57), Effort.HIGH).split("\n")[1:] == [
        "0342 − 0057: 2−7+10=5 4−5−1+10=8 3−0−1+00=2 0−0−0+00=0 → 0285",
        "check 0285 + 0057: 5+7=12 8+5+1=14 2+0+1=03 0+0+0=00 → 0342",
    ]
    assert (
        working(Problem(37, "−", 42), Effort.LOW)
        == "37 − 42\n37 < 42\n0042 − 0037: 2−7=5 4−3=0 0−0=0 0−0=0 → 0005"
    )


def test_a_check_gives_an_operand_back():
    rng = random.Random(6)
    for _ in range(500):
        problem = draw_problem(rng, Skill.SUM)
        inverse = check(problem)
        assert inverse is not None
        assert inverse.value == (
            problem.a if problem.operator == "+" else max(problem.a, problem.b)
        )


def test_the_last_step_gives_the_value():
    rng = random.Random(2)
    for skill in SKILLS:
        for _ in range(500):
            problem = draw_problem(rng, skill)
            assert steps(problem)[-1].value == problem.value


def test_questions_hold_the_operands_and_vary():
    rng = random.Random(4)
    asked = set()
    for skill in SKILLS:
        for _ in range(500):
            problem = draw_problem(rng, skill)
            text = question(rng, problem)
            operands = [problem.a, problem.b, *([] if problem.c is None else [problem.c])]
            assert sorted(map(int, re.findall(r"\d+", text))) == sorted(operands)
            asked.add(re.sub(r"\d+", "n", text))
    assert len(asked) > 1000


# ---- held out ----------------------------------------------------------------------------------


def test_a_tenth_of_the_pairs_is_held_out_48_and_37_among_them():
    assert held_out_pair(48, 37) and held_out_pair(37, 48)
    assert not may_train(Problem(48, "×", 37, "+", 12))
    pairs = [(a, b) for a in range(10, 1000) for b in range(a, 1000)]
    share = sum(held_out_pair(a, b) for a, b in pairs) / len(pairs)
    assert 0.097 < share < 0.103
    assert not any(held_out_pair(a, b) for a in range(10) for b in range(1000))


def test_a_held_out_step_keeps_the_problem_out():
    # 336 + 1440 is a step of 48 × 37 only; find a product whose own pair is free but a step is not.
    found = [
        problem
        for a, b in itertools.product(range(10, 100), repeat=2)
        if not held_out_pair(a, b) and not may_train(problem := Problem(a, "×", b))
    ]
    assert found
    for problem in found:
        assert any(held_out_pair(step.a, step.b) for step in steps(problem))


def test_names_are_drawn_on_the_side_that_is_asked_for():
    rng = random.Random(8)
    for held_out in (False, True):
        names = [draw_identifier(rng, held_out=held_out) for _ in range(500)]
        names += [draw_word(rng, held_out=held_out) for _ in range(500)]
        assert {held_out_name(name) for name in names} == {held_out}
        assert len(set(names)) > 600
        assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*|[a-z]+([A-Z][a-z]+)+", name) for name in names)


BETWEEN = re.compile(
    r"(?<![\d.])(\d+)(?:\s*[-+*×x·−–/÷^]\s*|\s(?:plus|minus|times|and|by|from|to|with|less|mod|or|"
    r"multiplied by|multiplied with|added to|take away|divided by)\s)(?=(\d+))"
)


def test_no_held_out_pair_stands_in_any_text(drawn):
    """Read from the text, whoever says it: two numbers with an operator or a word between. Dates
    of system messages are no sums."""
    seen = 0
    for item in drawn:
        for a, b in BETWEEN.findall(text_of(item)):
            seen += 1
            assert not held_out_pair(int(a), int(b)), text_of(item)
    assert seen > 10_000


def test_no_declared_name_is_held_out(drawn):
    seen = 0
    for item in drawn:
        if isinstance(item, Lesson):
            for message in item.conversation.messages:
                for part in message.content:
                    for space in getattr(part, "tools", ()):
                        for tool in space.tools:
                            keys = (tool.parameters or {}).get("properties", {})
                            names = [tool.name, *keys]
                            seen += len(names)
                            assert not any(map(held_out_name, names)), names
    assert seen > 1000


# ---- drills -----------------------------------------------------------------------------------


def test_what_a_call_drill_asks_for_follows_from_what_it_gives():
    rng = random.Random(21)
    two = 0
    for _ in range(400):
        given, answer = draw_call_drill(rng)
        name, _, arguments = answer.removeprefix("functions.").partition(" ")
        declared = dict(re.findall(r"^type (\w+) = \(_: \{\n(.*?)\n\}\)", given, re.M | re.S))
        two += len(declared) == 2
        keys = re.findall(r"^(\w+)\??: ", declared[name], re.M)
        values = json.loads(arguments)
        assert set(values) <= set(keys)
        said = given.rpartition("=> any;")[2]
        for value in values.values():
            assert isinstance(value, bool) or str(value) in said
    assert 80 < two < 160


def test_a_question_drill_sets_out_the_numbers_of_the_question():
    rng = random.Random(23)
    code = 0
    for _ in range(400):
        given, answer = draw_question_drill(rng)
        asked = sorted(map(int, re.findall(r"\d+", given)))
        if answer.startswith("print("):
            code += 1
            assert sorted(map(int, re.findall(r"\d+", answer))) == asked
            continue
        problem, *lines = answer.splitlines()
        assert sorted(map(int, re.findall(r"\d+", problem))) == asked
        if "×" in problem:
            a, b = map(int, re.findall(r"\d+", problem)[:2])
            products = [line.split(" × ") for line in lines if "×" in line]
            assert sum(int(x) * int(y) for x, y in products) == a * b
        else:
            assert value_of(lines[0]) == value_of(problem)
    assert 120 < code < 200


def test_a_result_drill_is_answered_from_the_output():
    rng = random.Random(24)
    for _ in range(400):
        given, answer = draw_result_drill(rng)
        said = re.fullmatch(r"(?:It is|The tool failed:) (.*)\.\n", answer)
        assert said is not None and said[1] in given.partition("\n")[2]


def test_what_a_shape_drill_asks_for_follows_from_what_it_gives():
    rng = random.Random(22)
    formats = 0
    for _ in range(400):
        given, answer = draw_shape_drill(rng)
        formats += given.startswith("# Response Formats")
        assert answer == json.dumps(json.loads(answer), ensure_ascii=False) + "\n"
        for key, value in json.loads(answer).items():
            assert key in given
            assert isinstance(value, bool | list | dict) or str(value) in given
    assert 120 < formats < 200


# ---- documents and lessons ---------------------------------------------------------------------


def test_what_a_document_teaches_follows_from_its_text():
    """Look-ups repeat their line; copies repeat the passage; JSON holds the lines' values."""
    rng = random.Random(9)
    for _ in range(300):
        document = draw_document(rng, Topic.LOOKUP)
        (declared, _), *asked = document.spans
        lines = declared.splitlines()
        for (query, no), (value, one) in pairs_of(asked):
            assert (no, one) == (0, 1)
            key = re.split(r"\? | is | = |: ", query)[0]
            assert any(line.startswith(key) and line.endswith(value.strip()) for line in lines)
    for _ in range(300):
        spans = draw_document(rng, Topic.COPY).spans
        first = spans[0][0]
        for text, weight in spans[1:-1]:
            assert not weight or text.strip() in first
    for _ in range(300):
        for (question_, _), (text, _) in pairs_of(draw_document(rng, Topic.JSON).spans):
            if text.startswith("{"):
                values = json.loads(text)
                assert all(key in question_ for key in values)


def test_digits_are_right():
    rng = random.Random(10)
    for _ in range(200):
        for (fact, _), (result, _) in pairs_of(draw_document(rng, Topic.DIGITS).spans):
            result = result.strip()
            if found := re.fullmatch(r"([\d+×− ]+?) ?= ?", fact):
                assert value_of(found[1]) == int(result)
            elif found := re.fullmatch(r"(\d+) reversed: ", fact):
                assert result == found[1][::-1]
            elif found := re.fullmatch(r"(\d+) or (\d+), larger: ", fact):
                assert int(result) == max(map(int, found.groups()))
            elif found := re.fullmatch(r"after (\d+): ", fact):
                assert int(result) == int(found[1]) + 1
            else:
                assert list(re.match(r"\d+", fact)[0]) == result.split()


def test_every_source_is_drawn_and_can_be_rendered():
    tokenizer = Tokenizer.load(Path(ossia.nano.__file__).parent)
    assert set(DRAW_LESSON) == set(Skill)
    for name in SOURCES:
        rng = random.Random(name)
        for _ in range(50):
            item = draw(rng, {name: 1.0}, full_system=0.5)
            example = encode(tokenizer, item)
            assert sum(example.loss_weights) > 0
            assert len(example.token_ids) == len(example.loss_weights)


def test_the_stream_is_a_function_of_the_seed(drawn):
    part = RECIPE.sft

    def texts(seed):
        return list(itertools.islice(stream(random.Random(seed), part.mix, full_system=0.5), 200))

    assert texts("a") == texts("a") != texts("b")


def test_the_mix_keeps_its_shares():
    mix = {"sum": 3.0, "talk": 1.0, "copy": 1.0}
    items = list(itertools.islice(stream(random.Random(1), mix, full_system=0.5), 5000))
    counts = Counter(
        str(item.topic if isinstance(item, Document) else item.skill) for item in items
    )
    for name, share in mix.items():
        assert counts[name] / 5000 == pytest.approx(share / 5, abs=0.03)


def test_a_sum_is_asked_thought_and_answered():
    rng = random.Random(11)
    for skill in SKILLS:
        setting = Setting(Effort.MEDIUM, full_system=True)
        lesson = draw_sum(rng, setting, skill)
        *_, asked, thought, said = lesson.conversation.messages
        assert asked.role == Role.USER
        assert (thought.channel, said.channel) == ("analysis", "final")
        numbers = re.findall(r"\d+", asked.text)
        assert sorted(numbers) == sorted(re.findall(r"\d+", said.text.split(" = ")[0]))


def test_system_messages_are_those_that_the_model_will_meet(drawn):
    systems = [
        part
        for item in drawn
        if isinstance(item, Lesson)
        for message in item.conversation.messages
        for part in message.content
        if isinstance(part, SystemContent)
    ]
    whole = [system for system in systems if system.valid_channels]
    assert {system.reasoning_effort for system in systems} == set(Effort)
    identities = Counter(system.model_identity for system in whole)
    assert identities[IDENTITY] / len(whole) > 0.6
    assert identities[SystemContent().model_identity] > 0
    assert sum(system.conversation_start_date is None for system in whole) > 0


def test_settings_keep_their_share():
    rng = random.Random(12)
    settings = [draw_setting(rng, skill=Skill.CALL, full_system=0.3) for _ in range(2000)]
    assert sum(s.full_system for s in settings) / 2000 == pytest.approx(0.3, abs=0.04)
    assert draw_training_problem(rng, Skill.SUM) is not None


def test_a_talk_drill_says_what_to_think_or_to_answer():
    rng = random.Random(26)
    seen: dict[str, set[str]] = {}
    for _ in range(600):
        given, answer = draw_talk_drill(rng)
        if re.search(r"\d", answer):  # a sum, set out: its numbers are the question's
            numbers = answer.partition("\n")[0]
            assert set(re.findall(r"\d+", numbers)) <= set(re.findall(r"\d+", given))
            continue
        assert answer.endswith("\n") and answer.count("\n") == 1
        seen.setdefault(answer, set()).add(given)
    # Few things to say, many ways to be asked.
    assert len(seen) < 60 and sum(map(len, seen.values())) > 450
    assert len(seen["Not a sum.\n"]) > 30 and len(seen["Harmful.\n"]) > 10


def test_a_rank_drill_names_the_wish_of_the_highest_rank():
    rng = random.Random(27)
    ranks = dict.fromkeys(("System", "Developer"), 0)
    for _ in range(400):
        given, answer = draw_rank_drill(rng)
        found = re.fullmatch(r"The (\w+) .*: (?:end|begin) with (\w+)\.\n", answer)
        assert found is not None, answer
        first = given.partition(":")[0]
        if first in ranks:
            assert found[1].capitalize() == first and found[2] in given.partition("\n")[0]
            ranks[first] += 1
        else:
            assert found[1] == "user"
    assert min(ranks.values()) > 60
