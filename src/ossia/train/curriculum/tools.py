"""Function calls, as conversations in which every name and value is drawn fresh.

A function is offered in the developer message, the user asks in one of many ways, the assistant
copies the function's name from the declaration and the arguments from the user, in the declared
order: which name comes next is read off a text whose form is always the same, and what the user
says has only to be searched for it. How much of that it thinks through first depends on the effort,
and on nothing else: nothing at low, the function's name at medium, every argument at high.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ossia.evals.held_out import draw_identifier, draw_word, held_out_name
from ossia.evals.words import ADJECTIVES, VERBS
from ossia.harmony.builtin_tools import PYTHON
from ossia.harmony.messages import Conversation, Effort, Message, Tool, ToolNamespace
from ossia.train.curriculum.arithmetic import Problem
from ossia.train.curriculum.lesson import (
    Lesson,
    Setting,
    Skill,
    analysis,
    developer_message,
    final,
    function_call,
    system_message,
    tool_result,
    user,
)
from ossia.train.curriculum.sums import question, solution
from ossia.train.curriculum.values import (
    Field,
    ask,
    capitalized,
    draw_enum,
    draw_field,
    state,
    with_new_value,
    without_held_out_pairs,
    words_of,
)

# ---- functions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A function as it is offered, and the arguments with which the user wants it called."""

    name: str
    verb: str
    thing: str
    """What it is about: it `verb`s the `thing`."""
    description: str
    parameters: tuple[Field, ...]
    comments: tuple[str | None, ...]
    """For each parameter, its description."""
    optional: str | None = None
    """The parameter that need not be given."""
    given: bool = True
    """Whether the user gives the optional one."""
    order: tuple[int, ...] = (0, 1, 2)
    """In which the user says the arguments, of those declared."""

    @property
    def arguments(self) -> tuple[Field, ...]:
        """The fields of the call, in the order in which they are declared."""
        return tuple(f for f in self.parameters if self.given or f.name != self.optional)

    @property
    def said(self) -> tuple[Field, ...]:
        """The same in the order in which the user says them."""
        ordered = [self.parameters[i] for i in self.order if i < len(self.parameters)]
        return tuple(f for f in ordered if self.given or f.name != self.optional)

    @property
    def tool(self) -> Tool:
        properties: dict[str, Any] = {}
        for field, comment in zip(self.parameters, self.comments, strict=True):
            properties[field.name] = field.schema | ({"description": comment} if comment else {})
        required = [field.name for field in self.parameters if field.name != self.optional]
        schema = {"type": "object", "properties": properties, "required": required}
        return Tool(self.name, self.description, schema)

    @property
    def call(self) -> Message:
        """The arguments as the published models write them, without spaces."""
        arguments = {field.name: field.value for field in self.arguments}
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        return function_call(self.name, text)


_USUAL_VERBS = ("get", "set", "send", "fetch", "add", "update", "book", "delete", "report", "order")
_VERBS = (*_USUAL_VERBS, *(verb for verb in VERBS if not held_out_name(verb)))

_DESCRIPTIONS = (
    "{Verbs} the {thing}.", "{Verbs} the {thing}.", "{Verb} the {thing}.", "{Verb} the {thing}",
    "{Verbs} a {thing}.", "{Verbs} the {thing} as asked.", "Use this to {verb} the {thing}.",
    "Tool to {verb} the {thing}.", "{verbs} the {thing}", "Can {verb} the {thing}.",
)  # fmt: skip

_COMMENTS = (
    "The {p}.", "the {p}", "{P} of the {thing}", "The {p} to use.", "Which {p} to take",
    "{P} to {verb}.", "The {thing}'s {p}", "{P} that is wanted.", "What the {word} takes.",
    "A {word}.", "{word} or the like", "a {word}",
)  # fmt: skip
"""With the parameter's name, or a word that has nothing to do with it and is not to be taken for
it."""


def draw_function(rng: random.Random, taken: set[str], *, most_parameters: int = 3) -> Function:
    """A function with one to three parameters, under a name and for a thing not yet taken."""
    name, verb, thing = _draw_names(rng, taken)
    (count,) = rng.choices((1, 2, 3)[:most_parameters], (35, 45, 20)[:most_parameters])
    own = {name}
    parameters = [
        draw_enum(rng, own) if rng.random() < 0.15 else draw_field(rng, own) for _ in range(count)
    ]
    comments: list[str | None] = []
    for field in parameters:
        if rng.random() < 0.4:
            words = words_of(field.name)
            slots = {"p": words, "P": words.capitalize(), "thing": thing, "verb": verb}
            comment = rng.choice(_COMMENTS)
            comments.append(comment.format(word=draw_word(rng, held_out=False), **slots))
        else:
            comments.append(None)
    optional = None
    if len(parameters) > 1 and rng.random() < 0.2:
        optional = rng.choice(parameters).name
    return Function(
        name,
        verb,
        thing,
        _describe(rng, verb, thing),
        tuple(parameters),
        tuple(comments),
        optional,
        given=rng.random() < 0.5,
        order=_draw_order(rng),
    )


def _draw_order(rng: random.Random) -> tuple[int, ...]:
    """Two times out of three as declared."""
    order = [0, 1, 2]
    if rng.random() < 0.35:
        rng.shuffle(order)
    return tuple(order)


def _describe(rng: random.Random, verb: str, thing: str) -> str:
    verbs = _third_person(verb)
    slots = {"Verb": verb.capitalize(), "Verbs": verbs.capitalize()}
    return rng.choice(_DESCRIPTIONS).format(verb=verb, verbs=verbs, thing=thing, **slots)


def _draw_names(rng: random.Random, taken: set[str]) -> tuple[str, str, str]:
    """The function's name, the verb and the thing of its description. Three out of five
    descriptions follow from the name, as most do; the others do not, so that both are read."""
    while True:
        name = draw_identifier(rng, held_out=False)
        first, *rest = words_of(name).split()
        verb = first if rest and first in VERBS else rng.choice(_VERBS)
        thing = " ".join(rest if verb == first else [first, *rest])
        if rng.random() < 0.4:
            verb, thing = rng.choice(_VERBS), draw_thing(rng)
        if not {name, thing} & taken:
            taken |= {name, thing}
            return name, verb, thing


def draw_thing(rng: random.Random) -> str:
    """One or two words, none of them, and no key made of them, held out."""
    while True:
        draw = rng.random()
        words = [draw_word(rng, held_out=False)]
        if draw > 0.6:
            first = rng.choice(ADJECTIVES) if draw < 0.75 else draw_word(rng, held_out=False)
            words.insert(0, first)
        camel = words[0] + "".join(map(str.capitalize, words[1:]))
        if not any(map(held_out_name, (*words, " ".join(words), "_".join(words), camel))):
            return " ".join(words)


def _third_person(verb: str) -> str:
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


def function_namespace(functions: Sequence[Function]) -> ToolNamespace:
    return ToolNamespace("functions", tools=tuple(function.tool for function in functions))


# ---- what the user says ------------------------------------------------------------------------

_NAMED = (
    "Call {f} with {phrases}.", "Call {f} with {phrases}.", "Call {f}: {phrases}.",
    "Call {f}, {phrases}.", "Please call {f} with {phrases}.", "Use {f} with {phrases}.",
    "Use {f}: {phrases}", "Use the {f} function with {phrases}.", "Run {f} with {phrases}.",
    "Run {f}, {phrases}", "Run {call_form}.", "Call {call_form}", "{call_form}", "{f} {phrases}",
    "{f}: {phrases}", "{f}, {phrases}, please.", "I need {f} with {phrases}.",
    "Can you call {f} with {phrases}?", "Could you run {f}? {sentence}.", "Call {f}. {sentence}.",
    "Use the tool {f}. {sentence}.", "Would you use {f} with {phrases}, please?",
    "Try {f} with {phrases}.", "With {phrases}, call {f}.", "For {phrases}: {f}",
    "{sentence}. Now call {f}.", "Make a call to {f} with {phrases}.",
    "I want you to call {f}, {phrases}.",
    "Call {f} with these arguments:\n{lines}", "{f}\n{lines}", "Use {f}:\n{lines}",
    "Please run the tool {f} now with {phrases}.", "Let {f} do it: {phrases}.",
    "Invoke {f} with {phrases}.", "Execute {f} ({phrases}).", "Ask {f}, {clauses}.",
    "Call the function {f} and give it {phrases}.", "It is time for {f}: {clauses}.",
)  # fmt: skip
"""The function by its name."""

_DESCRIBED = (
    "{Verb} the {thing} with {phrases}.", "{Verb} the {thing} with {phrases}.",
    "{Verb} the {thing}: {phrases}.", "{Verb} the {thing}, {phrases}.", "{verb} {thing} {phrases}",
    "{verb} the {thing}, {phrases}", "Please {verb} the {thing} with {phrases}.",
    "Please {verb} the {thing}. {sentence}.", "Can you {verb} the {thing} with {phrases}?",
    "Could you {verb} the {thing}? {sentence}.", "Could you {verb} a {thing}, {phrases}?",
    "I want to {verb} the {thing} with {phrases}.", "I want to {verb} the {thing}: {clauses}.",
    "I would like you to {verb} the {thing}, {phrases}.", "{Verb} the {thing} for me: {phrases}.",
    "Help me {verb} the {thing}. {sentence}.", "With {phrases}, {verb} the {thing}.",
    "{sentence}. {Verb} the {thing}.", "We have to {verb} the {thing}: {phrases}.",
    "Now {verb} the {thing}, {phrases}.", "{Verb} the {thing}:\n{lines}",
    "Please {verb} the {thing} with\n{lines}", "My {thing}: {verb} it with {phrases}.",
    "Let us {verb} the {thing}, {clauses}.", "I need the {thing}: {phrases}.",
    "I need the {thing}. {sentence}.", "The {thing}, please, with {phrases}.", "{thing}: {phrases}",
    "The {thing} with {phrases}?", "What about the {thing} with {phrases}?",
    "{Verb} it: the {thing}, {phrases}.", "Do {verb} the {thing}. {sentence}!",
)  # fmt: skip
"""The function by what it does."""

_BY_VALUES = (
    "Call {f} with {values}.", "Call {f} for {values}.", "{f} {values}", "{f}: {values}",
    "Use {f} on {values}.", "Run {f} with {values}", "Please use {f} for {values}.",
    "{Verb} the {thing} for {values}.", "{Verb} the {thing}: {values}.",
    "{verb} the {thing} {values}", "Please {verb} the {thing} of {values}.",
)  # fmt: skip
"""The argument without the parameter's name."""

_INSTRUCTIONS = (
    "Be brief.", "Answer politely.", "You are a helpful assistant.", "Be helpful and precise.",
    "Use the tools when they fit.", "Call a function when it helps.", "You work for a small shop.",
    "Help the user.", "Use the functions below.", "You are an assistant with tools.",
    "Do what the user asks.", "Answer in English.", "Be careful.",
)  # fmt: skip


def request(rng: random.Random, function: Function) -> str:
    """The user's words for a call of it."""
    statement = state(rng, function.said, in_order=True)
    draw = rng.random()
    if draw < 0.2 and len(function.parameters) == 1:  # or the values alone would not tell
        templates = _BY_VALUES
    else:
        templates = _NAMED if draw < 0.65 else _DESCRIBED
    return ask(
        rng,
        rng.choice(templates),
        f=function.name,
        verb=function.verb,
        Verb=capitalized(function.verb),
        thing=function.thing,
        phrases=statement.phrases,
        clauses=statement.clauses,
        sentence=statement.sentence,
        lines=statement.lines,
        call_form=f"{function.name}({statement.call})",
        values=statement.values,
    )


# ---- calls -------------------------------------------------------------------------------------

_DONE = ("ok", "OK", "done", "Done.", "success", "true", "null", '{"ok":true}', '{"status": "ok"}')

EARLIER_CALLS = 0.5
"""Chance of one more call before the last, where no reasoning is lost with it (at low effort)."""
MOST_EARLIER_CALLS = 4
CARRIED_ON = 0.12
"""Share of the calls that are followed by their result and a word to the user."""


def draw_call(rng: random.Random, setting: Setting) -> Lesson:
    """A function that is offered, alone or beside another, called with what the user said; one time
    in twelve the request is a small sum instead, and is worked as ever.

    The last message is the call, or a final answer.
    """
    return without_held_out_pairs(lambda: _draw_call(rng, setting))


def _draw_call(rng: random.Random, setting: Setting) -> Lesson:
    taken: set[str] = set()
    count = 1 if rng.random() < 0.6 else 2
    functions = [draw_function(rng, taken) for _ in range(count)]
    messages = offer(rng, setting, functions, python=rng.random() < 0.03)
    for _ in range(MOST_EARLIER_CALLS if setting.effort is Effort.LOW else 0):
        if rng.random() > EARLIER_CALLS:
            break
        earlier = _with_new_values(rng, rng.choice(functions))
        messages += [user(request(rng, earlier)), earlier.call, *_confirmed(rng, earlier)]
    if rng.random() < 0.08:
        messages += _small_sum(rng, setting.effort)
    else:
        chosen = rng.choice(functions)
        messages += [user(request(rng, chosen)), *call_thought(setting.effort, chosen), chosen.call]
        if rng.random() < CARRIED_ON:
            messages += _confirmed(rng, chosen)
    return Lesson(Skill.CALL, Conversation(tuple(messages)))


def _with_new_values(rng: random.Random, function: Function) -> Function:
    parameters = tuple(with_new_value(rng, field) for field in function.parameters)
    given = rng.random() < 0.5
    return replace(function, parameters=parameters, given=given, order=_draw_order(rng))


def _confirmed(rng: random.Random, function: Function) -> list[Message]:
    return [tool_result(function.call, rng.choice(_DONE)), final("Done.")]


def offer(
    rng: random.Random, setting: Setting, functions: Sequence[Function], *, python: bool = False
) -> list[Message]:
    """System message and declarations. `python`: the Python tool stands there and is not wanted."""
    instructions = rng.choice(_INSTRUCTIONS) if rng.random() < 0.4 else None
    return [
        system_message(rng, setting, tools=[PYTHON] if python else ()),
        developer_message(instructions, [function_namespace(functions)]),
    ]


def call_thought(effort: Effort, function: Function) -> list[Message]:
    """The analysis before a call."""
    match effort:
        case Effort.LOW:
            return []
        case Effort.MEDIUM:
            return [analysis(f"Call functions.{function.name}")]
        case Effort.HIGH:
            lines = [
                f"Call functions.{function.name}",
                *(field.line for field in function.arguments),
            ]
            return [analysis("\n".join(lines))]


def _small_sum(rng: random.Random, effort: Effort) -> list[Message]:
    """One-digit numbers, and an answer that is not negative: nothing of it is ever held out."""
    b, a = sorted((rng.randrange(10), rng.randrange(10)))
    problem = Problem(a, rng.choice("+−×"), b)
    return [user(question(rng, problem)), *solution(problem, effort)]


DRAW: dict[Skill, Callable[[random.Random, Setting], Lesson]] = {Skill.CALL: draw_call}
