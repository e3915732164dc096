"""Turns under a grammar, read by the parser and by a plain check of schemas: whatever the model
prefers, they are legal and valid. On nano's vocabulary, a scrambled one, and o200k.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest

import ossia.nano
from ossia.agent.events import TurnEnd
from ossia.agent.turn import run_turn
from ossia.agent.turn_constraint import TurnConstraints, token_table
from ossia.engine.request import Request, SamplingParams
from ossia.errors import RequestError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.events import Repair
from ossia.harmony.grammar import (
    JsonSchemaFormat,
    LarkFormat,
    NamedTool,
    Opening,
    RegexFormat,
    ToolChoice,
    TurnOptions,
)
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    Tool,
    ToolNamespace,
)
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.tokenizer import Tokenizer
from random_turns import try_turns
from scripted import ScriptedEngine
from support import o200k, small_tokenizer

A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTIONS = ToolNamespace("functions", tools=(Tool("f", "", A), Tool("f2"), Tool("f3", "", {})))
TOOLS = (BROWSER, PYTHON, FUNCTIONS)
OFFERS = Conversation(
    (
        Message(Role.SYSTEM, (SystemContent(tools=(BROWSER, PYTHON)),)),
        Message(Role.DEVELOPER, (DeveloperContent(None, (FUNCTIONS,)),)),
    )
)
EMPTY = Conversation()


@functools.cache
def nano() -> Tokenizer:
    return Tokenizer.load(Path(ossia.nano.__file__).parent)


def tokenizer_of(name: str) -> Tokenizer:
    return {"nano": nano, "scrambled": lambda: small_tokenizer(True), "o200k": o200k}[name]()


@functools.cache
def constraints(name: str) -> TurnConstraints:
    return TurnConstraints(tokenizer_of(name), vocab_size(name))


def vocab_size(name: str) -> int:
    # openai-harmony knows one token more than the published model.
    return tokenizer_of(name).vocab_size - (name == "o200k")


ANY = pytest.mark.parametrize("name", ["nano", "scrambled", "o200k"])

THINK = "<|channel|>analysis<|message|>I <|end|>\nthink: é {<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>ok<|return|>"
LAST_THOUGHT = "<|channel|>analysis<|message|>x<|end|><|start|>assistant"
ARGS = '<|message|>{"a": 1}<|call|>'
LEGAL = [
    FINAL,
    THINK.replace("<|end|>\n", "\n") + FINAL,
    "<|channel|>analysis<|message|><|end|><|start|>assistant" + FINAL,
    "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant" + FINAL,
    "<|channel|>commentary to=functions.f <|constrain|>json" + ARGS,
    "<|channel|>commentary to=functions.f<|constrain|>json" + ARGS,
    "<|channel|>commentary to=functions.f json" + ARGS,
    '<|channel|>commentary to=functions.f json<|message|>{\n    "a": 1\n}<|call|>',
    " to=functions.f<|channel|>commentary <|constrain|>json" + ARGS,
    "<|channel|>commentary to=functions.f2 <|constrain|>json<|message|>{}<|call|>",
    '<|channel|>commentary to=functions.f3 <|constrain|>json<|message|>{"any": [1]}<|call|>',
    "<|channel|>analysis to=python code<|message|>print('{')\n<|call|>",
    " to=python<|channel|>analysis code<|message|>1+1<|call|>",
    '<|channel|>analysis to=browser.search <|constrain|>json<|message|>{"query":"x"}<|call|>',
]
ILLEGAL = [
    "ok<|return|>",
    "<|channel|>final<|message|><|return|>",
    "<|channel|>final<|message|>ok<|end|>",
    "<|channel|>analysis<|message|>x<|return|>",
    "<|channel|>analysis<|message|>x<|end|><|channel|>final<|message|>ok<|return|>",
    "<|channel|>analysis<|message|>x<|end|><|start|>user<|message|>ok<|end|>",
    "<|channel|>other<|message|>x<|end|>",
    "<|channel|>commentary to=functions.nope <|constrain|>json<|message|>{}<|call|>",
    "<|channel|>analysis to=functions.f <|constrain|>json" + ARGS,
    "<|channel|>final to=functions.f <|constrain|>json" + ARGS,
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "1"}<|call|>',
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1, "b": 2}<|call|>',
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|return|>',
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":  1}<|call|>',
    '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\n\n"a": 1}<|call|>',
]


def follows(name: str, text: str, options: TurnOptions, conversation: Conversation) -> bool:
    """Whether the grammar lets the whole text through, and can end there and nowhere before."""
    constraint = constraints(name).for_turn(conversation, options)
    ids = tokenizer_of(name).encode_with_controls(text)
    for token in ids:
        if constraint.finished or not constraint.accept(token):
            return False
    return constraint.finished


@ANY
def test_legal_turns_pass_and_others_do_not(name: str) -> None:
    tokenizer = tokenizer_of(name)
    for text in LEGAL:
        assert follows(name, text, TurnOptions(), OFFERS), text
        parser = HarmonyParser(tokenizer, tools=TOOLS)
        events = parser.feed(tokenizer.encode_with_controls(text)) + parser.finish()
        assert not [event for event in events if isinstance(event, Repair)], text
    for text in ILLEGAL:
        assert not follows(name, text, TurnOptions(), OFFERS), text


def test_options_decide_what_ends_the_turn() -> None:
    call = "<|channel|>commentary to=functions.f <|constrain|>json" + ARGS
    other = "<|channel|>commentary to=functions.f2 <|constrain|>json<|message|>{}<|call|>"

    def passing(**options: object) -> list[str]:
        made = TurnOptions(**options)  # type: ignore[arg-type]
        return [t for t in (FINAL, call, other) if follows("scrambled", t, made, OFFERS)]

    assert passing() == [FINAL, call, other]
    assert passing(tool_choice=ToolChoice.NONE) == [FINAL]
    assert passing(tool_choice=ToolChoice.REQUIRED) == [call, other]
    assert passing(tool_choice=NamedTool("f2")) == [other]
    assert passing(allowed_tools=("functions.f",)) == [FINAL, call]
    assert passing(strict=False) == [FINAL, call, other]
    assert follows("scrambled", call.replace("1", '"x"'), TurnOptions(strict=False), OFFERS)
    preamble = "<|channel|>commentary<|message|>x<|end|><|start|>assistant"
    required = TurnOptions(tool_choice=ToolChoice.REQUIRED)
    assert follows("scrambled", LAST_THOUGHT + preamble + call, required, OFFERS)
    assert not follows("scrambled", LAST_THOUGHT + LAST_THOUGHT + call, required, OFFERS)
    assert follows(
        "scrambled", LAST_THOUGHT + preamble + LAST_THOUGHT + call, TurnOptions(), OFFERS
    )
    several = f"{call}<|start|>assistant{other}"
    assert not follows("scrambled", several, TurnOptions(), OFFERS)
    parallel = constraints("scrambled").for_turn(OFFERS, TurnOptions(parallel_tool_calls=True))
    ids = small_tokenizer(True).encode_with_controls(several)
    assert parallel.count_legal(ids) == len(ids)
    assert passing(parallel_tool_calls=True) == [FINAL]  # a call may be followed by another


def test_the_grammar_begins_where_the_prompt_ends() -> None:
    answer = TurnOptions(output_format=RegexFormat("a/b\n?"), opening=Opening.FINAL)
    assert follows("scrambled", "a/b\n<|return|>", answer, EMPTY)
    assert not follows("scrambled", "a/c<|return|>", answer, EMPTY)
    whole = TurnOptions(opening=Opening.NOTHING)
    assert follows("scrambled", "<|start|>assistant" + FINAL, whole, EMPTY)
    assert not follows("scrambled", FINAL, whole, EMPTY)


def test_a_refusal_says_which_tool_and_which_keyword() -> None:
    bad = {"type": "object", "properties": {"x": {"oneOf": [{}, {"type": "null"}]}}}
    tools = ToolNamespace("functions", tools=(Tool("good", "", A), Tool("bad", "", bad)))
    offers = Conversation((Message(Role.DEVELOPER, (DeveloperContent(None, (tools,)),)),))
    with pytest.raises(RequestError, match=r"^functions\.bad: .*keyword oneOf.*\.$"):
        constraints("scrambled").for_turn(offers, TurnOptions())
    assert constraints("scrambled").for_turn(offers, TurnOptions(allowed_tools=("good",)))
    for output_format in (
        JsonSchemaFormat({"pattern": "(?=x)", "type": "string"}),
        RegexFormat("(a"),
        LarkFormat("start: nothing"),
    ):
        with pytest.raises(RequestError, match=r"^response_format: [^\n]*\.$"):
            constraints("scrambled").for_turn(EMPTY, TurnOptions(output_format=output_format))
        with pytest.raises(RequestError, match=r"^response_format: "):
            constraints("scrambled").for_completion(output_format)


def test_a_completion_is_the_answer_alone() -> None:
    tokenizer = small_tokenizer(True)
    constraint = constraints("scrambled").for_completion(JsonSchemaFormat({"type": "integer"}))
    assert all(map(constraint.accept, tokenizer.encode("-12"))) and constraint.may_end
    assert constraint.accept(tokenizer.control.endoftext) and constraint.finished


def test_the_prompt_may_already_hold_the_beginning_of_a_message() -> None:
    """As when a turn is led on to its answer: the grammar goes on from there."""
    tokenizer = small_tokenizer(True)
    prompt = tokenizer.encode_with_controls("<|channel|>final<|message|>a")
    options = TurnOptions(output_format=RegexFormat("abc"))
    constraint = constraints("scrambled").for_turn(EMPTY, options, prompt)
    assert constraint.num_accepted == 0
    rest = tokenizer.encode_with_controls("bc<|return|>")
    assert constraint.count_legal(rest) == len(rest)
    with pytest.raises(RequestError, match="grammar does not allow"):
        required = TurnOptions(tool_choice=ToolChoice.REQUIRED)
        constraints("scrambled").for_turn(OFFERS, required, prompt)


def test_each_generation_of_a_turn_gets_its_own_constraint() -> None:
    """Also the one after an in-band answer; where nothing asks for a grammar, there is none."""
    tokenizer = small_tokenizer(True)
    unoffered = tokenizer.encode_with_controls(
        "<|channel|>commentary to=functions.nope <|constrain|>json<|message|>{}<|call|>"
    )
    answer = tokenizer.encode_with_controls(FINAL)

    async def turn(options: TurnOptions) -> list[Request]:
        # The script goes against the grammar, as only a script can.
        engine = ScriptedEngine(unoffered, answer)
        source = constraints("scrambled").constrained(engine, OFFERS, options)
        stops = SamplingParams(stop_token_ids=tokenizer.control.turn_end_ids)
        async for event in run_turn(source, tokenizer, OFFERS, sampling=stops):
            if isinstance(event, TurnEnd):
                assert event.turn.content == "ok"
        assert engine.open_streams == 0
        return engine.requests

    first, second = asyncio.run(turn(TurnOptions()))
    assert first.constraint is not None and second.constraint is not None
    assert first.constraint is not second.constraint
    assert all(
        request.constraint is None for request in asyncio.run(turn(TurnOptions(strict=False)))
    )
    with pytest.raises(RequestError, match="not offered"):
        asyncio.run(turn(TurnOptions(tool_choice=NamedTool("nope"))))


def test_a_vocabulary_of_another_model_is_refused() -> None:
    with pytest.raises(RequestError, match="the vocabulary of another model"):
        token_table(nano(), 500)


@pytest.mark.parametrize(
    ("name", "cases", "turns"), [("nano", 25, 8), ("scrambled", 12, 8), ("o200k", 3, 3)]
)
def test_random_turns_are_legal_and_valid(name: str, cases: int, turns: int) -> None:
    tally = try_turns(
        tokenizer_of(name), vocab_size(name), cases=cases, turns_per_case=turns, seed=11
    )
    print(name, tally, f"{tally.share:.1%} finished")
    assert tally.finished + tally.cut == cases * turns
    assert tally.share >= 0.8 and tally.refused <= cases / 10


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_random_turns_over_a_thousand_schemas() -> None:
    tally = try_turns(nano(), vocab_size("nano"), cases=800, turns_per_case=13, seed=1)
    print(tally, f"{tally.share:.1%} finished")
    assert tally.finished >= 10_000 and tally.schemas >= 1000
    assert tally.share >= 0.8 and tally.refused <= 40
