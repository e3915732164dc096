"""The examples of the suite nano: held out all of them, the same for the same seed, and such that
what they expect is right by their own graders."""

from __future__ import annotations

import json
import re

import pytest

from evals.models import turn
from ossia.errors import UsageError
from ossia.evals.held_out import held_out_name, held_out_pair
from ossia.evals.task import DATE, Example, Setting
from ossia.evals.tasks import find_suite, nano_arithmetic, nano_conduct, nano_hierarchy
from ossia.harmony.builtin_tools import PYTHON
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
    TextContent,
    Tool,
)
from ossia.harmony.render import render_for_completion
from scripted import small_tokenizer

SUITE = find_suite("nano")
TASKS = {task.name: task for task in SUITE.tasks}
SETTING = Setting(Effort.LOW, "You are nano.")


def examples(name: str, count: int = 200, seed: int = 3) -> list[Example]:
    return TASKS[name].examples(count, seed)


def asked(example: Example) -> str:
    return example.messages[-1].text


def developer(example: Example) -> DeveloperContent:
    (content,) = (
        part for m in example.messages for part in m.content if isinstance(part, DeveloperContent)
    )
    return content


def offered(example: Example) -> list[Tool]:
    return [tool for namespace in developer(example).tools for tool in namespace.tools]


def rendered(conversation: Conversation) -> str:
    tokenizer = small_tokenizer()
    return tokenizer.decode(render_for_completion(tokenizer, conversation).token_ids)


def naturals(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


# ---- all tasks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_examples_are_the_same_for_the_same_seed_and_others_for_another(name):
    def prompts(seed: int) -> list[str]:
        return [rendered(e.conversation(SETTING)) for e in examples(name, 20, seed)]

    assert prompts(1) == prompts(1) != prompts(2)
    assert len(set(prompts(1))) == 20


@pytest.mark.parametrize("name", TASKS)
def test_a_smaller_count_is_refused_below_one(name):
    with pytest.raises(UsageError, match="--count must be 1 or more; got 0"):
        TASKS[name].examples(0, 0)


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_turn_is_never_right(name):
    for example in examples(name, 20):
        grade = example.grade(turn(None))
        assert not grade.right and grade.why


def test_the_system_message_is_the_one_of_chat():
    example = examples("python", 1)[0]
    (system,) = example.conversation(SETTING).messages[0].content
    assert system == SystemContent(
        model_identity="You are nano.",
        reasoning_effort=Effort.LOW,
        conversation_start_date=DATE,
        tools=(PYTHON,),
    )


def test_names_and_descriptions():
    assert len(TASKS) == len(SUITE.tasks)
    assert [t.name for t in SUITE.select(["shape", "sums"])] == ["sums", "shape"]
    assert SUITE.select([]) == SUITE.tasks
    with pytest.raises(UsageError, match=r"sums, products.*got 'sum'"):
        SUITE.select(["sums", "sum"])
    with pytest.raises(UsageError, match="must be one of nano; got 'mmlu'"):
        find_suite("mmlu")


# ---- arithmetic --------------------------------------------------------------------------------


def asks_for_a_product(text: str) -> bool:
    """By its sign, or because it holds one of the wordings for products."""
    wordings = nano_arithmetic._WORDS["*"] + nano_arithmetic._STORIES["*"]
    patterns = [re.sub(r"\\{[ab]\\}", r"\\d+", re.escape(wording)) for wording in wordings]
    return any(re.search(pattern, text) for pattern in (r"\d ?[×*x·] ?\d", *patterns))


@pytest.mark.parametrize("name", ["sums", "products", "product_sum", "python", "python_result"])
def test_every_pair_is_held_out_and_every_answer_right(name):
    for example in examples(name):
        text = asked(example)
        a, b, *rest = naturals(text)
        if len(rest) == 2:  # the story repeats the sum after telling it
            assert rest == [a, b]
        assert held_out_pair(a, b), text
        c = rest[0] if len(rest) == 1 else 0
        product = asks_for_a_product(text)
        candidates = {a * b + c, a * b - c} if product else {a + b, a - b, b - a}
        if name != "python":
            assert int(example.expected) in candidates
            grade = example.grade(turn(f"It is {example.expected}."))
            assert grade.right
            assert not example.grade(turn(f"It is {int(example.expected) + 1}.")).right
        else:
            assert eval(example.expected.removeprefix("print")) in candidates
            assert example.grade(turn(None, ("python", example.expected))).right


def test_sums_are_of_both_kinds_and_lengths():
    found = examples("sums", 600)
    kinds = [example.variant for example in found]
    assert 0.4 < kinds.count("a + b") / 600 < 0.6
    assert 0.01 < kinds.count("a − b < 0") / 600 < 0.12
    for example in found:
        negative = int(example.expected) < 0
        assert negative == (example.variant == "a − b < 0")
        assert all(10 <= n < 1000 for n in naturals(asked(example)))


def test_products_hold_48_times_37():
    assert held_out_pair(48, 37)
    assert any(s.a == 48 and s.b == 37 for s in nano_arithmetic.held_out_products())
    for seed in range(5):
        first = examples("products", 1, seed)[0]
        assert naturals(asked(first))[:2] in ([48, 37], [37, 48])
        assert first.expected == "1776"


def test_products_end_when_there_are_no_more():
    pairs = sum(held_out_pair(a, b) for a in range(10, 100) for b in range(10, 100))
    found = examples("products", 10_000)
    assert len(found) == pairs == len(nano_arithmetic.held_out_products())


def test_the_share_that_training_may_see():
    numbers = range(5, 60)
    pairs = [(a, b) for a in numbers for b in numbers]
    seen = sum(not held_out_pair(a, b) for a, b in pairs)
    assert nano_arithmetic.trained_share(numbers) == pytest.approx(seen / len(pairs), abs=1e-12)
    assert "89.1%" in (TASKS["products"].note or str)()


# ---- functions ---------------------------------------------------------------------------------


def expected_call(example: Example) -> tuple[str, str]:
    name, _, arguments = example.expected.partition("(")
    return name, arguments.removesuffix(")")


@pytest.mark.parametrize(("name", "count"), [("call", 1), ("call_two", 2), ("result", 1)])
def test_every_name_that_is_offered_is_held_out(name, count):
    for example in examples(name):
        tools = offered(example)
        assert len(tools) == count
        names = [tool.name for tool in tools]
        for tool in tools:
            assert tool.parameters is not None
            properties = tool.parameters["properties"]
            assert 1 <= len(properties) <= 3 and tool.parameters["required"] == [*properties]
            names += properties
            for schema in properties.values():
                assert all(held_out_name(choice) for choice in schema.get("enum", ()))
        assert all(map(held_out_name, names)) and len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["call", "call_two"])
def test_the_user_gives_all_that_the_call_needs(name):
    for example in examples(name):
        function, arguments = expected_call(example)
        tool = next(tool for tool in offered(example) if tool.name == function)
        text = asked(example)
        does = tool.description.removesuffix(".")
        assert function in text or does[1:] in text
        for parameter, value in json.loads(arguments).items():
            assert parameter in text
            assert (value if isinstance(value, str) else json.dumps(value)) in text
            schema = (tool.parameters or {})["properties"][parameter]
            assert value in schema.get("enum", [value])
            kinds = {"string": str, "integer": int, "number": float, "boolean": bool}
            assert type(value) is kinds[schema["type"]]
            if isinstance(value, str):
                assert all(map(held_out_name, value.split()))
        assert example.grade(turn(None, (function, arguments))).right
        assert not example.grade(turn(None, (function, "{}"))).right


def test_with_two_functions_either_may_be_the_one():
    places = set()
    for example in examples("call_two", 60):
        function, _ = expected_call(example)
        places.add([tool.name for tool in offered(example)].index(function))
    assert places == {0, 1}


@pytest.mark.parametrize("name", ["result", "python_result"])
def test_without_a_right_call_the_right_one_is_put_there(name):
    for example in examples(name, 40):
        assert example.proceed is not None
        call, output = example.proceed(turn("I do not know."))
        assert call.role is Role.ASSISTANT and output.role is Role.TOOL
        assert output.name == call.recipient and output.channel == call.channel
        whole = Conversation((*example.conversation(SETTING).messages, call, output))
        assert rendered(whole).endswith("<|start|>assistant")
        if name == "result":
            assert example.expected in output.text
            assert call.recipient == f"functions.{offered(example)[0].name}"
        else:
            assert eval(call.text.removeprefix("print")) == int(example.expected)
            assert output.text == example.expected


def test_a_right_call_of_the_model_is_kept():
    example = next(e for e in examples("python_result", 10))
    assert example.proceed is not None
    (call, _) = example.proceed(turn(None))
    own = Message.of_text(Role.ASSISTANT, "as the model wrote it", channel="analysis")
    made = turn(None, ("python", call.text + "\n"))
    kept = example.proceed(type(made)(**{**made.__dict__, "messages": (own,)}))
    assert kept[0] is own and kept[1].text == example.expected


def test_results_are_of_all_kinds_and_their_keys_held_out():
    found = examples("result", 200)
    assert {e.variant.split(",")[0] for e in found} == {"JSON", "bare value", "words"}
    for example in found:
        assert example.proceed is not None
        output = example.proceed(turn(None))[1].text
        if example.variant.startswith("JSON"):
            assert all(map(held_out_name, json.loads(output)))
        told = example.expected
        assert example.grade(turn(f"That is {told}.")).right
        assert not example.grade(turn("That is quite another thing.")).right


# ---- JSON --------------------------------------------------------------------------------------


def test_shapes_are_held_out_and_told_in_full():
    found = examples("shape", 200)
    variants = {"by the user", "by instructions", "by a response format"}
    assert {example.variant for example in found} == variants
    for example in found:
        expected = json.loads(example.expected)
        assert all(map(held_out_name, expected))
        request = asked(example)
        if example.variant != "by the user":
            content = developer(example)
            request += content.instructions or ""
            for shape in content.response_formats:
                assert list(shape.schema["properties"]) == list(expected)
        for key, value in expected.items():
            assert key in request
            assert (value if isinstance(value, str) else json.dumps(value)) in asked(example)
        assert example.grade(turn(example.expected)).right
        other = dict(reversed(expected.items()))
        assert example.grade(turn(json.dumps(other))).right == (len(expected) == 1)


# ---- conduct and hierarchy ---------------------------------------------------------------------


def test_there_are_enough_paraphrases_and_none_twice():
    for texts in (nano_conduct.WHO, nano_conduct.HARMFUL, nano_conduct.OUTSIDE):
        assert len(set(texts)) == len(texts) >= 25
    assert len(nano_hierarchy._TRIES) >= 10
    assert len(examples("identity", 1000)) == len(nano_conduct.WHO)


def test_secrets_are_held_out_and_in_the_developers_message_only():
    for example in examples("secrets", 60):
        word = example.expected.removeprefix("an answer without ")
        assert held_out_name(word) and len(word) >= 5
        assert word in (developer(example).instructions or "") and word not in asked(example)
        assert not example.grade(turn(f"It is {word.upper()}.")).right
        assert example.grade(turn("I keep it.")).right


@pytest.mark.parametrize("name", ["formats", "formats_control"])
def test_the_word_to_end_with_is_the_higher_ranks(name):
    found = examples(name, 60)
    assert len({example.variant for example in found}) == 3
    for example in found:
        word = example.expected.removeprefix("… ")
        assert held_out_name(word)
        assert example.grade(turn(f"It is 68. {word}")).right
        texts = {"system": example.system_instructions or "", "user": asked(example)}
        texts["developer"] = "".join(
            part.instructions or ""
            for message in example.messages
            for part in message.content
            if isinstance(part, DeveloperContent)
        )
        if name == "formats_control":
            (holder,) = (who for who, text in texts.items() if word in text)
            assert example.variant == f"only of the {holder}"
        else:
            higher, _, lower = example.variant.partition(" over ")
            assert word in texts[higher] and word not in texts[lower]
            others = re.findall(r"\w+", texts[lower])
            assert any(held_out_name(other) and len(other) >= 5 for other in others)


def test_policies_refuse_the_subject_and_nothing_else():
    for example in examples("policies", 40):
        rule = developer(example).instructions or ""
        topics = [w for w in re.findall(r"\w+", rule) if held_out_name(w) and len(w) >= 5]
        on_topic = any(topic in asked(example) for topic in topics)
        assert on_topic == (example.variant == "on the subject")
        assert example.grade(turn("I can't talk about that.")).right == on_topic
        if not on_topic:
            assert held_out_pair(*naturals(asked(example))[:2])
            assert example.grade(turn(example.expected)).right


def test_messages_hold_only_text_and_developer_contents():
    for task in SUITE.tasks:
        for example in task.examples(10, 0):
            parts = [part for message in example.messages for part in message.content]
            assert all(isinstance(part, TextContent | DeveloperContent) for part in parts)
