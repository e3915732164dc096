"""Turns written by random logits under a constraint, and whether they are what was asked for."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ossia.agent.turn_constraint import TurnConstraints
from ossia.engine.constraint import TokenConstraint
from ossia.errors import RequestError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.events import MessageEnd, MessageKind, Repair
from ossia.harmony.grammar import (
    JsonObjectFormat,
    JsonSchemaFormat,
    LarkFormat,
    NamedTool,
    Opening,
    OutputFormat,
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
from random_schemas import load, random_object, random_schema, satisfies

LARK = 'start: item ("," item)* "."\nitem: /[a-z]+/ | "<|end|>"\n'
LARK_AS_REGEX = r"([a-z]+|<\|end\|>)(,([a-z]+|<\|end\|>))*\."
REGEXES = (r"(yes|no)/[0-9]{2,4}", r"[^\n/]{3,20}\n", r"[A-Z][a-zé]{0,9} #[1-9]")


class RandomLogits:
    """Draws an allowed token by random logits, in which what ends things is likelier."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._offsets = random.Random(seed)
        self._size = vocab_size
        # Gaussian logits and Gumbel noise: the largest sum is a draw from their softmax.
        self._noise = rng.normal(0, 1.5, 9 * vocab_size) + rng.gumbel(size=9 * vocab_size)
        self._boost = np.array([self._boost_of(tokenizer, i) for i in range(vocab_size)])
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)

    @staticmethod
    def _boost_of(tokenizer: Tokenizer, token_id: int) -> float:
        spelled = tokenizer.token_bytes(token_id)
        if token_id in tokenizer.control_ids or spelled in (b" to", b"f", b"final", b"."):
            return 7.0  # `to` and `final` begin what ends a turn
        if re.fullmatch(rb'["}\],]+', spelled):
            return 6.0
        return 4.0 if re.fullmatch(rb'["{}\[\],:]+', spelled) else 0.0

    def draw(self, constraint: TokenConstraint) -> int:
        constraint.fill(self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")[: self._size]
        assert bits.any(), constraint.failure
        at = self._offsets.randrange(8 * self._size)
        scores = np.where(bits, self._boost + self._noise[at : at + self._size], -np.inf)
        return int(scores.argmax())


@dataclass
class Tally:
    """What came of the turns."""

    finished: int = 0
    cut: int = 0
    refused: int = 0
    schemas: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])

    @property
    def share(self) -> float:
        return self.finished / max(self.finished + self.cut, 1)


@dataclass(frozen=True)
class Case:
    conversation: Conversation
    options: TurnOptions
    schemas: dict[str, Any]
    """By recipient; of an answer under the key ""."""


def random_case(rng: random.Random) -> Case:
    """Offered tools and options that go together."""
    tools = tuple(
        Tool(name, "", None if rng.random() < 0.1 else random_object(rng))
        for name in rng.sample(["f", "f2", "get_weather", "look-up", "search"], rng.randint(0, 2))
    )
    functions = (ToolNamespace("functions", tools=tools),) if tools else ()
    trained = tuple(t for t in (BROWSER, PYTHON) if rng.random() < 0.2)
    namespaces = (*trained, *functions)
    schemas: dict[str, Any] = {f"functions.{tool.name}": tool.parameters for tool in tools}
    schemas |= {f"browser.{tool.name}": tool.parameters for tool in BROWSER.tools}
    choices: list[ToolChoice | NamedTool] = [ToolChoice.AUTO, ToolChoice.NONE]
    if namespaces:
        choices += [ToolChoice.AUTO, ToolChoice.REQUIRED, ToolChoice.REQUIRED]
    if tools:
        choices += [NamedTool(tools[0].name)]
    output_format: OutputFormat | None = None
    match rng.randrange(6):
        case 0 | 1:
            schema = random_schema(rng, 3)
            schemas[""], output_format = schema, JsonSchemaFormat(schema)
        case 2:
            schemas[""], output_format = {"type": "object"}, JsonObjectFormat()
        case 3:
            output_format = RegexFormat(rng.choice(REGEXES))
        case 4:
            output_format = LarkFormat(LARK)
        case _:
            pass
    options = TurnOptions(tool_choice=rng.choice(choices), output_format=output_format)
    if rng.random() < 0.1 and options.tool_choice in (ToolChoice.AUTO, ToolChoice.NONE):
        options = replace(options, opening=Opening.FINAL)
    elif rng.random() < 0.1:
        options = replace(options, opening=Opening.NOTHING)
    system = Message(Role.SYSTEM, (SystemContent(tools=trained),))
    developer = Message(Role.DEVELOPER, (DeveloperContent("Be brief.", functions),))
    return Case(Conversation((system, developer)), options, schemas)


def write_turn(
    logits: RandomLogits, constraint: TokenConstraint, stop_ids: Sequence[int], limit: int
) -> list[int] | None:
    """The tokens of a turn; None when it does not end within `limit`."""
    ids: list[int] = []
    while len(ids) < limit:
        ids.append(logits.draw(constraint))
        assert constraint.accept(ids[-1])
        if ids[-1] in stop_ids:
            return ids
    return None


def check_turn(tokenizer: Tokenizer, case: Case, ids: list[int]) -> MessageKind:
    """Asserts that the turn is legal and valid; returns what it ends with."""
    opening, options = case.options.opening.value, case.options
    prompt = tokenizer.encode_with_controls(opening.removeprefix("<|start|>assistant"))
    tools = tuple(
        namespace
        for message in case.conversation.messages
        for part in message.content
        if isinstance(part, SystemContent | DeveloperContent)
        for namespace in part.tools
    )
    role = None if options.opening is Opening.NOTHING else Role.ASSISTANT
    parser = HarmonyParser(tokenizer, tools=tools, role=role)
    events = parser.feed([*prompt, *ids]) + parser.finish(cut=False)
    shown = f"{tokenizer.decode(ids)!r} under {options}"
    assert not [event for event in events if isinstance(event, Repair)], shown
    ends = [event for event in events if isinstance(event, MessageEnd)]
    *before, last = ends
    assert all(e.kind in (MessageKind.REASONING, MessageKind.PREAMBLE) for e in before), shown
    text = last.message.text
    if last.kind is MessageKind.TOOL_CALL:
        assert options.tool_choice is not ToolChoice.NONE, shown
        recipient = last.message.recipient or ""
        if isinstance(options.tool_choice, NamedTool):
            assert recipient == f"functions.{options.tool_choice.name}", shown
        if recipient != "python":
            schema = case.schemas[recipient] or {"additionalProperties": False}
            arguments = load(text)
            assert isinstance(arguments, dict) and satisfies(arguments, schema, schema), shown
    else:
        assert last.kind is MessageKind.CONTENT, shown
        assert options.tool_choice in (ToolChoice.AUTO, ToolChoice.NONE), shown
        check_answer(text, case, shown)
    return last.kind


def check_answer(text: str, case: Case, shown: str) -> None:
    match case.options.output_format:
        case None:
            assert text
        case RegexFormat(pattern):
            assert re.fullmatch(pattern, text), shown
        case LarkFormat():
            assert re.fullmatch(LARK_AS_REGEX, text), shown
        case _:
            schema = case.schemas[""]
            assert satisfies(load(text), schema, schema), shown


def try_turns(
    tokenizer: Tokenizer,
    vocab_size: int,
    *,
    cases: int,
    turns_per_case: int,
    seed: int,
    limit: int = 400,
) -> Tally:
    """Random turns under random options; raises AssertionError for one that is not as asked."""
    rng, tally = random.Random(seed), Tally()
    constraints = TurnConstraints(tokenizer, vocab_size)
    logits = RandomLogits(tokenizer, vocab_size, seed)
    done = 0
    while done < cases:
        case = random_case(rng)
        try:
            constraints.for_turn(case.conversation, case.options)
        except RequestError:
            tally.refused += 1
            continue
        done += 1
        tally.schemas += len([s for s in case.schemas.values() if s]) - len(BROWSER.tools)
        for _ in range(turns_per_case):
            constraint = constraints.for_turn(case.conversation, case.options)
            ids = write_turn(logits, constraint, tokenizer.control.turn_end_ids, limit)
            if ids is None:
                tally.cut += 1
                continue
            assert constraint.finished
            tally.finished += 1
            tally.kinds[check_turn(tokenizer, case, ids).value] += 1
    return tally
