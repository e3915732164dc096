"""Functions with names that no lesson has: called with the user's values, and their results told.

Every name of a function, a parameter, a result or a choice is held out; the words of descriptions
are ordinary ones.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ossia.agent.events import Turn
from ossia.evals.held_out import draw_identifier, draw_word
from ossia.evals.task import RIGHT, Example, Grade, Task, wrong
from ossia.evals.tasks.grading import grade_call, has_word, no_answer, numbers
from ossia.evals.words import ADJECTIVES, NOUNS
from ossia.harmony.messages import (
    Channel,
    DeveloperContent,
    Message,
    Role,
    Tool,
    ToolNamespace,
)

_DOES = (
    "Measures the {noun} inside the {thing}",
    "Drops an old {noun} from the {thing}",
    "Compares the {noun} with the one in the {thing}",
    "Collects every {adjective} {noun} in the {thing}",
    "Checks whether the {noun} is {adjective} enough for the {thing}",
    "Copies the {noun} over to the {thing}",
    "Estimates when the {noun} will reach the {thing}",
    "Renames the {noun} that belongs to the {thing}",
)

_PARAMETER = (
    "The {noun} in question.",
    "Needed for every {noun}.",
    "Decides how {adjective} the outcome is.",
    "Belongs to the {noun}.",
    "",
)


@dataclass(frozen=True)
class Parameter:
    name: str
    schema: Mapping[str, Any]
    value: Any

    def shown(self, quoted: bool) -> str:
        """The value as a user writes it; several words are always in quotes."""
        if isinstance(self.value, str):
            return f'"{self.value}"' if quoted or " " in self.value else self.value
        return json.dumps(self.value)


@dataclass(frozen=True)
class Function:
    name: str
    description: str
    parameters: tuple[Parameter, ...]

    @property
    def tool(self) -> Tool:
        properties = {parameter.name: dict(parameter.schema) for parameter in self.parameters}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return Tool(self.name, f"{self.description}.", schema)

    @property
    def arguments(self) -> dict[str, Any]:
        return {parameter.name: parameter.value for parameter in self.parameters}


def draw_function(rng: random.Random, taken: Sequence[str] = ()) -> Function:
    """One to three parameters; no name twice, and none that is `taken`."""
    names = list(taken)

    def name() -> str:
        while (drawn := draw_identifier(rng, held_out=True)) in names:
            pass
        names.append(drawn)
        return drawn

    description = rng.choice(_DOES).format(
        noun=rng.choice(NOUNS), thing=rng.choice(NOUNS), adjective=rng.choice(ADJECTIVES)
    )
    own = name()
    parameters = tuple(_parameter(rng, name()) for _ in range(rng.choice((1, 2, 2, 3))))
    return Function(own, description, parameters)


def draw_value(rng: random.Random, kind: str) -> Any:
    """A value of the JSON type `kind`; strings are one or two held-out words, now and then
    capitalised."""
    match kind:
        case "integer":
            return rng.randrange(0, 10 ** rng.randint(1, 4))
        case "number":
            return round(rng.uniform(0, 100), rng.choice((1, 1, 2)))
        case "boolean":
            return rng.random() < 0.5
        case _:
            words = [draw_word(rng, held_out=True) for _ in range(rng.choice((1, 1, 1, 2)))]
            text = " ".join(words)
            return text.capitalize() if rng.random() < 0.2 else text


def _parameter(rng: random.Random, name: str) -> Parameter:
    kind = rng.choice(("string", "string", "integer", "number", "boolean", "enum"))
    schema: dict[str, Any] = {"type": "string" if kind == "enum" else kind}
    said = rng.choice(_PARAMETER).format(noun=rng.choice(NOUNS), adjective=rng.choice(ADJECTIVES))
    if said:
        schema["description"] = said
    if kind != "enum":
        return Parameter(name, schema, draw_value(rng, kind))
    choices: dict[str, None] = {}
    size = rng.randint(2, 4)
    while len(choices) < size:
        choices.setdefault(draw_word(rng, held_out=True))
    schema["enum"] = list(choices)
    return Parameter(name, schema, rng.choice(schema["enum"]))


# ---- asking ------------------------------------------------------------------------------------

# {equal}: `a = 1 and b = 2`; {of}: `a of 1, b of 2`; {is_}: `a is 1, b is 2`; {bare}: `a 1, b 2`;
# {code}: `a=1, b=2`; {does}: what the function's description says it does, in lower case.
_BY_NAME = (
    "Fire off {name} with {equal}.",
    "Kick off {name}; as for the input, {is_}.",
    "Go ahead with {name}({code}).",
    "Put `{name}` to work for me: {is_}.",
    "Could {name} be called for me? The arguments: {bare}.",
    "Hand this over to {name} and launch it: {equal}.",
    "Get it done through {name}, with {of}.",
    "My workflow needs {name} at this point. Its parameters: {bare}.",
    "Is {name} available? Apply it to {equal}.",
    "{equal} - those are meant for {name}, please send them off.",
)
_BY_DESCRIPTION = (
    "One of your tools {does}. I want that done now: {is_}.",
    "Whichever function {does}, call it for me with {equal}.",
    "I'm after the thing that {does}. Its inputs would be {bare}.",
)


def request(rng: random.Random, function: Function) -> str:
    """What a user says who wants the function called with its values."""
    form = rng.choice(_BY_NAME if rng.random() < 0.75 else _BY_DESCRIPTION)
    quoted = rng.random() < 0.5
    pairs = [(p.name, p.shown(quoted)) for p in function.parameters]
    if rng.random() < 0.3:
        rng.shuffle(pairs)
    return form.format(
        name=function.name,
        does=function.description[0].lower() + function.description[1:],
        equal=" and ".join(f"{name} = {value}" for name, value in pairs),
        of=", ".join(f"{name} of {value}" for name, value in pairs),
        is_=", ".join(f"{name} is {value}" for name, value in pairs),
        bare=", ".join(f"{name} {value}" for name, value in pairs),
        code=", ".join(f"{name}={value}" for name, value in pairs),
    )


def _offer(rng: random.Random, functions: Sequence[Function]) -> Message:
    shuffled = rng.sample(functions, len(functions))
    namespace = ToolNamespace("functions", tools=tuple(function.tool for function in shuffled))
    return Message(Role.DEVELOPER, (DeveloperContent(tools=(namespace,)),))


def draw_call(rng: random.Random, offered: int) -> Example:
    functions = [draw_function(rng)]
    while len(functions) < offered:
        functions.append(draw_function(rng, _names(functions)))
    function = functions[0]
    kinds = {_kind_of(parameter.schema) for parameter in function.parameters}
    return Example(
        messages=(
            _offer(rng, functions),
            Message.of_text(Role.USER, request(rng, function)),
        ),
        grade=lambda turn: grade_call(turn, function.name, function.arguments),
        expected=f"{function.name}({json.dumps(function.arguments)})",
        variant=kinds.pop() if len(kinds) == 1 else "several types",
    )


def _names(functions: Sequence[Function]) -> list[str]:
    return [name for f in functions for name in (f.name, *(p.name for p in f.parameters))]


def _kind_of(schema: Mapping[str, Any]) -> str:
    return "enum" if "enum" in schema else schema["type"]


# ---- results -----------------------------------------------------------------------------------

_WANTED = (
    "{request} Afterwards I need to hear the {key} it reported.",
    "{request} From what it sends back, pick out the {key} for me.",
    "What I'm asking for is the {key} in the output. {request}",
    "{request} All that interests me in the result is the {key}.",
)


def draw_result(rng: random.Random) -> Example:
    """The function's result comes back; the user wants one value of it."""
    function = draw_function(rng)
    values: dict[str, Any] = {}
    size = rng.choice((1, 1, 2, 3))
    while len(values) < size:
        key = draw_identifier(rng, held_out=True)
        value = draw_value(rng, rng.choice(("string", "integer", "number")))
        if key not in _names([function]) and not _overlap(value, values):
            values[key] = value
    wanted = rng.choice(list(values))
    variant = "JSON" if size > 1 else rng.choice(("JSON", "bare value", "words"))
    result = {
        "JSON": json.dumps(values),
        "bare value": str(values[wanted]),
        "words": f"{wanted}: {values[wanted]}",
    }[variant]
    asked = rng.choice(_WANTED).format(request=_sentence(request(rng, function)), key=wanted)
    others = [value for key, value in values.items() if key != wanted]
    return Example(
        messages=(_offer(rng, [function]), Message.of_text(Role.USER, asked)),
        grade=lambda turn: grade_value(turn, values[wanted], others),
        expected=str(values[wanted]),
        variant=f"{variant}, one of {size}" if size > 1 else variant,
        proceed=lambda turn: _with_result(turn, function, result),
    )


def _overlap(value: Any, values: Mapping[str, Any]) -> bool:
    """Whether one of the values could be taken for part of this one."""
    words = set(str(value).lower().split())
    return any(
        value == other or words & set(str(other).lower().split()) for other in values.values()
    )


def _sentence(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def _with_result(turn: Turn, function: Function, result: str) -> tuple[Message, ...]:
    """The model's own call where it is right, else the call that it should have made."""
    if grade_call(turn, function.name, function.arguments).right:
        return *turn.messages, turn.tool_calls[0].result(result)
    name = f"functions.{function.name}"
    call = Message.of_text(
        Role.ASSISTANT,
        json.dumps(function.arguments, ensure_ascii=False),
        channel=Channel.COMMENTARY,
        recipient=name,
        content_type="<|constrain|>json",
    )
    output = Message.of_text(
        Role.TOOL, result, name=name, recipient=Role.ASSISTANT, channel=Channel.COMMENTARY
    )
    return call, output


def grade_value(turn: Turn, value: Any, others: Sequence[Any]) -> Grade:
    """Right when the answer holds the value, and none of the values that were not asked for."""
    if not turn.content:
        return no_answer(turn)
    if not _holds(turn.content, value):
        return wrong(f"{value} is not in the answer")
    told = [other for other in others if _holds(turn.content, other)]
    return wrong(f"{told[0]} was not asked for") if told else RIGHT


def _holds(text: str, value: Any) -> bool:
    return has_word(text, value) if isinstance(value, str) else value in numbers(text)


# ---- tasks -------------------------------------------------------------------------------------


def _call_one(rng: random.Random, count: int) -> list[Example]:
    return [draw_call(rng, 1) for _ in range(count)]


def _call_two(rng: random.Random, count: int) -> list[Example]:
    return [draw_call(rng, 2) for _ in range(count)]


def _result(rng: random.Random, count: int) -> list[Example]:
    return [draw_result(rng) for _ in range(count)]


TASKS = (
    Task(
        "call",
        "tools",
        "function called, one offered",
        "One function with unseen names is offered and asked for; the turn must be one call of it "
        "with exactly the user's arguments.",
        _call_one,
    ),
    Task(
        "call_two",
        "tools",
        "function called, two offered",
        "The same with a second function beside it.",
        _call_two,
    ),
    Task(
        "result",
        "tools",
        "answer from a function's result",
        "After the call (the model's own where it is right) its result comes back; the answer must "
        "hold the value asked for and no other value of the result.",
        _result,
    ),
)
