"""Lessons with tools, read back from what they declare, say and render: the arguments against the
declared schema and the user's words, the sums against Python's own, and what may not be in them."""

from __future__ import annotations

import itertools
import json
import random
import re
from importlib.resources import files
from pathlib import Path

import pytest

from ossia.evals.held_out import held_out_name, held_out_pair
from ossia.harmony.messages import Conversation, DeveloperContent, Effort, Message, SystemContent
from ossia.harmony.render import render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum import python_tool, results, tools
from ossia.train.curriculum.arithmetic import Problem, working
from ossia.train.curriculum.lesson import Lesson, Setting, Skill, draw_setting
from ossia.train.curriculum.python_tool import Expression
from ossia.train.curriculum.values import Field, Kind, state, words_of

DRAW = tools.DRAW | results.DRAW | python_tool.DRAW
COUNT = 3000


def lessons(skill: Skill, seed: int, count: int) -> list[tuple[Setting, Lesson]]:
    rng = random.Random(seed)
    settings = (draw_setting(rng, skill=skill, full_system=0.3) for _ in range(count))
    return [(setting, DRAW[skill](rng, setting)) for setting in settings]


LESSONS = {skill: lessons(skill, 11, COUNT) for skill in DRAW}
TOKENIZER = Tokenizer.load(Path(str(files("ossia.nano"))))


def only(conversation: Conversation, role: str) -> Message:
    (message,) = [message for message in conversation.messages if message.role == role]
    return message


def spoken(conversation: Conversation) -> list[Message]:
    return [message for message in conversation.messages if message.role == "assistant"]


def calls(conversation: Conversation) -> list[Message]:
    return [message for message in spoken(conversation) if message.recipient is not None]


def requests(conversation: Conversation) -> list[tuple[str, list[str], Message]]:
    """Each call with what the user said before it and what was thought about that."""
    found, said, thoughts = [], "", list[str]()
    for message in conversation.messages:
        if message.role == "user":
            said, thoughts = message.text, []
        elif message.role == "assistant" and message.recipient is not None:
            found.append((said, thoughts.copy(), message))
        elif message.channel == "analysis":
            thoughts.append(message.text)
    return found


def declared(conversation: Conversation) -> dict[str, dict]:
    """The parameters' schemas of the declared functions."""
    (content,) = only(conversation, "developer").content
    assert isinstance(content, DeveloperContent)
    (namespace,) = content.tools
    assert namespace.name == "functions"
    return {tool.name: dict(tool.parameters or {}) for tool in namespace.tools}


def rendered(lesson: Lesson) -> str:
    return TOKENIZER.decode(render_for_training(TOKENIZER, lesson.conversation).token_ids)


def is_valid(value: object, schema: dict) -> bool:
    """JSON schema, as much of it as the declarations use."""
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    right = isinstance(value, kinds[schema["type"]])
    right &= isinstance(value, bool) == (schema["type"] == "boolean")
    return right and value in schema.get("enum", [value])


def is_said(value: object, text: str) -> bool:
    if isinstance(value, bool):
        words = ("yes", "true", "on") if value else ("no", "false", "off")
        return any(re.search(rf"\b{word}\b", text) for word in words)
    if isinstance(value, str):
        return value in text
    return re.search(rf"(?<![\d.-]){re.escape(str(value))}(?!\d)", text) is not None


def expected_analysis(effort: Effort, name: str, arguments: dict) -> list[str]:
    spelled = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
    return {
        Effort.LOW: [],
        Effort.MEDIUM: [f"Call functions.{name}"],
        Effort.HIGH: [
            "\n".join(
                [f"Call functions.{name}", *(f"{key} = {value}" for key, value in spelled.items())]
            )
        ],
    }[effort]


# ---- calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [Skill.CALL, Skill.RESULT])
def test_calls_fit_their_declaration_and_the_users_words(skill):
    """The arguments in the order in which they are declared, whatever the user's."""
    seen, as_said = 0, []
    for setting, lesson in LESSONS[skill]:
        for said, thoughts, call in requests(lesson.conversation):
            seen += 1
            assert (call.channel, call.content_type) == ("commentary", "<|constrain|>json")
            assert call.recipient is not None
            namespace, _, name = call.recipient.partition(".")
            schema = declared(lesson.conversation)[name]
            arguments = json.loads(call.text)
            assert namespace == "functions"
            assert call.text == json.dumps(arguments, separators=(",", ":"))
            assert list(arguments) == [key for key in schema["properties"] if key in arguments]
            found = [re.search(rf"(?<!\w){key}(?!\w)", said) for key in arguments]
            places = [match.start() for match in found if match]
            if len(places) == len(found) > 1:
                as_said.append(places == sorted(places))
            assert set(schema["required"]) <= arguments.keys() <= schema["properties"].keys()
            for key, value in arguments.items():
                assert is_valid(value, schema["properties"][key])
                assert is_said(value, said), (said, value)
            assert thoughts == expected_analysis(setting.effort, name, arguments)
    assert seen > 0.9 * COUNT
    assert len(as_said) > 0.1 * COUNT
    if skill is Skill.CALL:
        assert 0.7 < share(as_said) < 0.95


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def test_the_shares_of_calls():
    drawn = LESSONS[Skill.CALL]
    offered = [declared(lesson.conversation) for _, lesson in drawn]
    assert share([len(functions) == 2 for functions in offered]) == pytest.approx(0.4, abs=0.03)
    answered = [" = " in lesson.conversation.messages[-1].text for _, lesson in drawn]
    assert share(answered) == pytest.approx(0.08, abs=0.02)
    with_python = [
        isinstance(part, SystemContent) and part.tools != ()
        for _, lesson in drawn
        for part in only(lesson.conversation, "system").content
    ]
    assert share(with_python) == pytest.approx(0.03, abs=0.012)

    efforts = {
        effort: [len(calls(x.conversation)) for setting, x in drawn if setting.effort is effort]
        for effort in Effort
    }
    assert max(efforts[Effort.MEDIUM] + efforts[Effort.HIGH]) == 1
    assert 1.65 < sum(efforts[Effort.LOW]) / len(efforts[Effort.LOW]) < 2.05
    carried_on = [len(spoken(x.conversation)) > 1 for s, x in drawn if s.effort is Effort.LOW]
    assert share(carried_on) > 0.2

    called = [
        (lesson.conversation, *request)
        for _, lesson in drawn
        for request in requests(lesson.conversation)
    ]
    named, left_out, kinds = [], [], []
    for conversation, said, _, call in called:
        name = (call.recipient or "").removeprefix("functions.")
        schema = declared(conversation)[name]
        named.append(re.search(rf"\b{name}\b", said) is not None)
        left_out.append(json.loads(call.text).keys() != schema["properties"].keys())
        kinds += [
            "enum" if "enum" in parameter else parameter["type"]
            for parameter in schema["properties"].values()
        ]
    assert 0.5 < share(named) < 0.8
    assert 0.05 < share(left_out) < 0.3
    for kind in ("string", "integer", "number", "boolean", "enum"):
        assert share([one == kind for one in kinds]) > 0.08
    asked = {re.sub(r"[\w.\"'`-]*[\d_\"'`][\w.\"'`-]*", "x", said) for _, said, _, _ in called}
    assert len(asked) > 0.9 * len(called)


def test_a_request_that_no_function_fits_is_answered():
    for setting, lesson in LESSONS[Skill.CALL]:
        if calls(lesson.conversation):
            continue
        *thoughts, answer = spoken(lesson.conversation)
        assert answer.channel == "final"
        match = re.fullmatch(r"(\d) ([+−×]) (\d) = (\d+)\.", answer.text)
        assert match is not None, answer.text
        a, sign, b, value = match.groups()
        asked = Problem(int(a), sign, int(b))
        assert asked.value == int(value)
        assert sorted(re.findall(r"\d", only(lesson.conversation, "user").text)) == sorted([a, b])
        assert [thought.text for thought in thoughts] == [working(asked, setting.effort)]


def test_values_are_said_beside_their_names_and_positions_keep_the_order():
    fields = [Field(f"p{i}x", Kind.STRING, f"v{i}x", f"v{i}x") for i in range(3)]
    rng = random.Random(5)
    orders = set()
    for _ in range(500):
        said = state(rng, fields)
        for text in (said.phrases, said.clauses, said.lines, said.call):
            found = re.findall(r"[pv](\d)x", text)
            assert sorted(found) == list("001122")
            assert found[0::2] == found[1::2], text
            orders.add("".join(found[0::2]))
        assert re.findall(r"[pv]\dx", said.values) == ["v0x", "v1x", "v2x"]
    assert len(orders) == 6
    exact = state(rng, fields, exact=True)
    assert re.findall(r"p(\d)x", exact.phrases) == list("012")


def test_names_in_words():
    assert [words_of(name) for name in ("tide_level", "openGate", "velora")] == [
        "tide level",
        "open gate",
        "velora",
    ]


# ---- results -----------------------------------------------------------------------------------


def test_answers_hold_what_the_tool_gave():
    forms = dict.fromkeys(("one key", "several keys", "error", "no object"), 0)
    for setting, lesson in LESSONS[Skill.RESULT]:
        *_, result, _ = [m for m in lesson.conversation.messages if m.channel != "analysis"]
        (call,) = calls(lesson.conversation)
        answer = lesson.conversation.messages[-1]
        assert (result.role, result.name) == ("tool", call.recipient)
        assert answer.channel == "final"
        try:
            output = json.loads(result.text)
        except ValueError:
            output = result.text
        if isinstance(output, dict) and "error" in output:
            forms["error"] += 1
            assert answer.text == f"The tool failed: {output['error']}."
            continue
        value = answer.text.removeprefix("It is ").removesuffix(".")
        asked = only(lesson.conversation, "user").text.lower()
        if isinstance(output, dict):
            forms["one key" if len(output) == 1 else "several keys"] += 1
            wanted = [k for k in output if words_of(k) in asked or k.lower() in asked]
            assert wanted or len(output) == 1
            wanted = wanted or list(output)
            shown = [v if isinstance(v, str) else json.dumps(v) for v in map(output.get, wanted)]
            assert value in shown
        else:
            forms["no object"] += 1
            assert value in result.text
        if setting.effort is Effort.HIGH:
            thing, _, found = lesson.conversation.messages[-2].text.partition(" = ")
            assert thing.lower() in asked and found == value
    assert forms["error"] / COUNT == pytest.approx(0.1, abs=0.02)
    assert forms["several keys"] / COUNT == pytest.approx(0.36, abs=0.03)
    assert forms["one key"] > 0.2 * COUNT and forms["no object"] > 0.15 * COUNT


# ---- Python ------------------------------------------------------------------------------------


def value_of(text: str) -> float:
    python = text.replace("−", "-").replace("×", "*").replace("÷", "/").replace("^", "**")
    assert re.fullmatch(r"[\d+\-*/() ]+", python), text
    return eval(python)


def test_python_computes_what_was_asked():
    ends_in_call, beside_function, negative = [], [], 0
    for setting, lesson in LESSONS[Skill.PYTHON]:
        (call,) = calls(lesson.conversation)
        assert (call.recipient, call.channel, call.content_type) == ("python", "analysis", "code")
        code = call.text.removeprefix("print(").removesuffix(")")
        assert call.text == f"print({code})"
        asked = only(lesson.conversation, "user").text
        assert sorted(re.findall(r"\d+", asked)) == sorted(re.findall(r"\d+", code))
        thoughts = {
            Effort.LOW: [],
            Effort.MEDIUM: ["Use python."],
            Effort.HIGH: [code.replace("*", "×").replace("-", "−")],
        }[setting.effort]
        before = spoken(lesson.conversation)[: len(thoughts)]
        assert [message.text for message in before] == thoughts
        assert spoken(lesson.conversation)[len(thoughts)] is call
        *_, result, answer = lesson.conversation.messages
        ends_in_call.append(answer is call)
        beside_function.append(any(m.role == "developer" for m in lesson.conversation.messages))
        if answer is call:
            continue
        assert result.role == "tool" and result.text.rstrip("\n") == str(value_of(code))
        value = answer.text.removeprefix("It is ").removesuffix(".")
        assert value == result.text.rstrip("\n")
        negative += value.startswith("-")
    assert share(ends_in_call) == pytest.approx(0.5, abs=0.03)
    assert share(beside_function) == pytest.approx(0.25, abs=0.03)
    assert negative > 20


def test_expressions_bind_as_in_python():
    for signs in itertools.product("+−×", repeat=2):
        expression = Expression((7, 2, 3), signs)
        assert expression.values[-1] == value_of(str(expression)) == eval(expression.code)
    assert Expression((48, 37, 12), ("×", "+")).values == (1776, 1788)
    assert Expression((2, 3, 4), ("+", "×")).values == (12, 14)
    assert str(Expression((2, 3, 4), ("+", "×"))) == "2 + 3 × 4"


def test_no_held_out_intermediate_value():
    rng = random.Random(8)
    for _ in range(3000):
        expression = python_tool.draw_expression(rng)
        if len(expression.values) == 2:
            numbers = [*expression.numbers, abs(int(expression.values[0]))]
            pairs = itertools.combinations(numbers, 2)
            assert not any(held_out_pair(a, b) for a, b in pairs)


# ---- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", DRAW)
def test_rendered_lessons_hold_nothing_that_is_held_out(skill):
    """Numbers, declared names, enum values and what stands in calls, read from the text."""
    names = 0
    for _, lesson in LESSONS[skill]:
        system, _, text = rendered(lesson).partition("<|end|>")
        assert system.startswith("<|start|>system")
        numbers = {int(digits) for digits in re.findall(r"\d+", text)}
        assert not any(held_out_pair(a, b) for a, b in itertools.combinations(numbers, 2)), text
        found = re.findall(r"^type (\S+) = ", text, re.M)
        found += re.findall(r"^([^\s:?/]+)\??: (?:string|number|boolean|\")", text, re.M)
        for options in re.findall(r'^\S+: ("[^,\n]*),$', text, re.M):
            found += re.findall(r'"([^"]*)"', options)
        for arguments in re.findall(r"json<\|message\|>(.*?)<\|call\|>", text):
            values = [value for value in json.loads(arguments).values() if isinstance(value, str)]
            found += [*json.loads(arguments), *values, *" ".join(values).split()]
        for output in re.findall(r"commentary<\|message\|>(\{.*?\})<\|end\|>", text, re.S):
            found += [key for key in json.loads(output) if key != "error"]
        found += re.findall(r"final<\|message\|>The ([a-z ]+) is ", text)
        assert not [name for name in found if held_out_name(name)]
        names += len(found)
    assert names > (COUNT // 4 if skill is Skill.PYTHON else 4 * COUNT)


@pytest.mark.parametrize("skill", DRAW)
def test_lessons_are_a_function_of_the_seed(skill):
    assert lessons(skill, 11, 100) == LESSONS[skill][:100]
    assert lessons(skill, 12, 100) != LESSONS[skill][:100]


@pytest.mark.parametrize("skill", DRAW)
def test_lengths_and_what_is_learnt(skill):
    """The Python tool's own text is 190 to 240 tokens, by vocabulary."""
    lengths = []
    for setting, lesson in LESSONS[skill][:600]:
        assert lesson.skill is skill
        example = render_for_training(TOKENIZER, lesson.conversation)
        assert example.loss_weights[-1] == 1
        last = TOKENIZER.decode(example.token_ids[-1:])
        assert last == ("<|call|>" if lesson.conversation.messages[-1].recipient else "<|return|>")
        assert f"Reasoning: {setting.effort}" in rendered(lesson)
        # Everything that the assistant writes is learnt, and nothing else.
        ids = zip(example.token_ids, example.loss_weights, strict=True)
        learnt = TOKENIZER.decode([token for token, weight in ids if weight])
        for message in lesson.conversation.messages:
            assert message.text in learnt or message.role != "assistant"
        assert "user<|message|>" not in learnt and "developer<|message|>" not in learnt
        lengths.append(len(example.token_ids))
    assert sum(lengths) / len(lengths) < (450 if skill is Skill.PYTHON else 310)
    assert max(lengths) < (1100 if skill is Skill.CALL else 700)  # calls may follow one another
