"""Lessons in JSON of a requested shape, read back: the object against who asked for which keys, the
values against the user's words."""

from __future__ import annotations

import itertools
import json
import random
import re
from importlib.resources import files
from pathlib import Path

import pytest

from ossia.evals.held_out import held_out_name, held_out_pair
from ossia.harmony.messages import DeveloperContent, Effort, Message
from ossia.harmony.render import render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum.lesson import Lesson, Setting, Skill, draw_setting
from ossia.train.curriculum.shapes import DRAW, draw_keys

COUNT = 3000


def lessons(seed: int, count: int) -> list[tuple[Setting, Lesson]]:
    rng = random.Random(seed)
    settings = (draw_setting(rng, skill=Skill.SHAPE, full_system=0.3) for _ in range(count))
    return [(setting, DRAW[Skill.SHAPE](rng, setting)) for setting in settings]


LESSONS = lessons(21, COUNT)
TOKENIZER = Tokenizer.load(Path(str(files("ossia.nano"))))


TEMPLATE_WORDS = set(
    re.findall(
        r"\w+", "text number key to from user data list order answer shape object string form"
    )
)
"""What is a key in some lessons and stands in the templates, too."""


def parts(lesson: Lesson) -> tuple[DeveloperContent | None, str, list[str], Message]:
    """The developer's content, the user's words, the analyses, the answer."""
    system, *others = lesson.conversation.messages
    assert system.role == "system"
    developer = None
    if others[0].role == "developer":
        (developer,) = others.pop(0).content
        assert isinstance(developer, DeveloperContent)
    user, *thoughts, answer = others
    assert user.role == "user"
    assert all(thought.channel == "analysis" for thought in thoughts)
    assert (answer.role, answer.channel) == ("assistant", "final")
    return developer, user.text, [thought.text for thought in thoughts], answer


def leaves(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


def names(value: object) -> list[str]:
    """All keys, those of inner objects included."""
    if not isinstance(value, dict):
        return []
    return [*value, *(name for inner in value.values() for name in names(inner))]


def is_valid(value: object, schema: dict) -> bool:
    """JSON schema, as much of it as the lessons use."""
    match schema["type"]:
        case "object":
            assert isinstance(value, dict)
            return list(value) == list(schema["properties"]) == schema["required"] and all(
                is_valid(value[key], inner) for key, inner in schema["properties"].items()
            )
        case "array":
            return isinstance(value, list) and all(is_valid(v, schema["items"]) for v in value)
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case other:
            assert other == "number"
            return isinstance(value, int | float) and not isinstance(value, bool)


def test_the_answer_is_the_object_in_one_spelling_with_the_users_values():
    for setting, lesson in LESSONS:
        _, said, thoughts, answer = parts(lesson)
        document = json.loads(answer.text)
        assert answer.text == json.dumps(document)
        assert 1 <= len(document) <= 4
        for leaf in leaves(document):
            spelled = leaf if isinstance(leaf, str) else json.dumps(leaf)
            assert re.search(rf"(?<![\d.]){re.escape(spelled)}(?!\d)", said), (said, leaf)
        shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in document.items()}
        assert (
            thoughts
            == {
                Effort.LOW: [],
                Effort.MEDIUM: ["Write JSON."],
                Effort.HIGH: ["\n".join(f"{key} = {value}" for key, value in shown.items())],
            }[setting.effort]
        )


def test_the_keys_stand_in_the_order_in_which_they_were_asked_for():
    compared = 0
    for _, lesson in LESSONS:
        developer, said, _, answer = parts(lesson)
        document = json.loads(answer.text)
        if developer is not None and developer.response_formats:
            schema = developer.response_formats[0].schema
            assert is_valid(document, dict(schema))
            continue
        request = said if developer is None else developer.instructions
        assert request is not None
        places = {key: [m.start() for m in re.finditer(rf"\b{key}\b", request)] for key in document}
        words = " ".join(map(str, leaves(document))).split()
        if set(names(document)) & (TEMPLATE_WORDS | set(words)):
            continue  # found where it is no key
        compared += 1
        firsts = [found[0] for found in places.values()]
        lasts = [found[-1] for found in places.values()]
        # The request precedes the values or follows them.
        assert firsts == sorted(firsts) or (developer is None and lasts == sorted(lasts)), request
    assert compared > 0.7 * 0.8 * COUNT


def test_keys_hold_values_of_their_type():
    rng = random.Random(2)
    nested = 0
    for _ in range(2000):
        keys = draw_keys(rng)
        assert len({key.name for key in keys}) == len(keys)
        for key in keys:
            assert is_valid(key.value, key.schema)
            nested += not isinstance(key.value, str | int | float)
    assert nested / 2000 == pytest.approx(0.025, abs=0.01)


def test_the_shares_and_how_many_ways_there_are_to_ask():
    told = schema = 0
    asked = set()
    for _, lesson in LESSONS:
        developer, said, _, answer = parts(lesson)
        if developer is None:
            document = json.loads(answer.text)
            words = [*map(str, leaves(document)), *names(document)]
            for word in sorted(words, key=len, reverse=True):
                said = said.replace(word, "x")
            asked.add(said)
        elif developer.response_formats:
            schema += 1
        else:
            told += 1
    assert told / COUNT == pytest.approx(0.25, abs=0.025)
    assert schema / COUNT == pytest.approx(0.33, abs=0.025)
    assert len(asked) > 0.7 * 0.42 * COUNT


def test_nothing_that_is_held_out_and_every_lesson_renders():
    lengths = []
    for _, lesson in LESSONS:
        example = render_for_training(TOKENIZER, lesson.conversation)
        system, _, text = TOKENIZER.decode(example.token_ids).partition("<|end|>")
        assert system.startswith("<|start|>system")
        numbers = {int(digits) for digits in re.findall(r"\d+", text)}
        assert not any(held_out_pair(a, b) for a, b in itertools.combinations(numbers, 2)), text
        document = json.loads(
            text.rpartition("<|channel|>final<|message|>")[2].removesuffix("<|return|>")
        )
        values = [leaf for leaf in leaves(document) if isinstance(leaf, str)]
        found = [*names(document), *values, *" ".join(values).split()]
        found += re.findall(r"^## (\S+)$", text, re.M)
        assert not [name for name in found if held_out_name(name)]
        lengths.append(len(example.token_ids))
    assert sum(lengths) / COUNT < 230
    assert max(lengths) < 600


def test_lessons_are_a_function_of_the_seed():
    assert lessons(21, 100) == LESSONS[:100]
    assert lessons(22, 100) != LESSONS[:100]
    assert all(lesson.skill is Skill.SHAPE for _, lesson in LESSONS)
