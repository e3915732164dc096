"""A turn as a whole: what the parser's events add up to, for callers that do not stream.

Messages of the same kind are joined by a blank line. Calls carry the name the application gave, and
their arguments as text: as the model wrote them, unless they needed repair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ossia.harmony.events import HarmonyEvent, MessageEnd, MessageKind, Repair, Stop
from ossia.harmony.messages import Message, Role
from ossia.harmony.offered import FUNCTIONS, ToolSpec
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.tokenizer import Tokenizer

MESSAGE_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class ParsedCall:
    """A call of an offered tool, or, under `ParsedTurn.unoffered`, of something else."""

    name: str
    """The bare name of a function, the full name of another tool (`browser.search`)."""
    arguments: str
    complete: bool = True
    """False when the stream was cut inside the arguments: not to be run."""


@dataclass(frozen=True)
class ParsedTurn:
    reasoning: str
    preamble: str
    content: str | None
    """None when the model gave no answer."""
    tool_calls: tuple[ParsedCall, ...]
    finish: str
    """`length`: cut short. `tool_calls`: there are calls to run. `stop`: otherwise.

    A call that lacks only its stop token counts as made, unless the caller knows of a cut.
    """
    unoffered: tuple[ParsedCall, ...]
    """Calls of tools that were not offered: to be answered in-band."""
    messages: tuple[Message, ...]
    diagnostics: tuple[Repair, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `ossia harmony parse` prints it."""
        return {
            "messages": [_message_to_dict(message) for message in self.messages],
            "diagnostics": [
                {"rule": repair.rule.value, "span": list(repair.span), "text": repair.text}
                for repair in self.diagnostics
            ],
            "turn": {
                "reasoning": self.reasoning,
                "preamble": self.preamble,
                "content": self.content,
                "tool_calls": [
                    {"name": call.name, "arguments": call.arguments} for call in self.tool_calls
                ],
                "finish": self.finish,
            },
        }


def parse_turn(
    tokenizer: Tokenizer,
    ids: Iterable[int],
    *,
    tools: Iterable[ToolSpec] = (),
    parallel: bool = False,
    role: Role | None = Role.ASSISTANT,
    cut: bool | None = None,
) -> ParsedTurn:
    """A whole completion at once; the options are those of `HarmonyParser` and its `finish`."""
    parser = HarmonyParser(tokenizer, tools=tools, parallel=parallel, role=role)
    events = parser.feed(ids)
    events += parser.finish(cut=cut)
    return assemble(events, cut=parser.cut, cut_for_sure=bool(cut))


def assemble(
    events: Iterable[HarmonyEvent], *, cut: bool, cut_for_sure: bool = False
) -> ParsedTurn:
    """The turn that the events of one parser tell; `cut` is the finished parser's.

    Of a whole conversation the turn is what the assistant said last.
    """
    texts: dict[MessageKind, list[str]] = {kind: [] for kind in MessageKind}
    calls: list[ParsedCall] = []
    unoffered: list[ParsedCall] = []
    messages: list[Message] = []
    diagnostics: list[Repair] = []
    last: MessageEnd | None = None
    for event in events:
        if isinstance(event, Repair):
            diagnostics.append(event)
        if not isinstance(event, MessageEnd):
            continue
        last = event
        messages.append(event.message)
        if event.kind is MessageKind.INPUT:
            calls, unoffered = [], []
            texts = {kind: [] for kind in MessageKind}
        elif event.kind is MessageKind.TOOL_CALL:
            calls.append(_call(event))
        elif event.kind is MessageKind.UNOFFERED_CALL:
            unoffered.append(_call(event))
        else:
            texts[event.kind].append(event.message.text)
    made = last is not None and last.kind is MessageKind.TOOL_CALL and last.complete
    if cut and (cut_for_sure or not (made and last and last.stop is Stop.CUT)):
        finish = "length"
    else:
        finish = "tool_calls" if calls else "stop"
    answers = texts[MessageKind.CONTENT]
    return ParsedTurn(
        reasoning=_join(texts[MessageKind.REASONING]),
        preamble=_join(texts[MessageKind.PREAMBLE]),
        content=_join(answers) if answers else None,
        tool_calls=tuple(calls),
        finish=finish,
        unoffered=tuple(unoffered),
        messages=tuple(messages),
        diagnostics=tuple(diagnostics),
    )


def _call(event: MessageEnd) -> ParsedCall:
    recipient = event.message.recipient or ""
    name = recipient.removeprefix(f"{FUNCTIONS}.")
    return ParsedCall(name, event.message.text, event.complete)


def _join(texts: list[str]) -> str:
    return MESSAGE_SEPARATOR.join(text for text in texts if text)


def _message_to_dict(message: Message) -> dict[str, Any]:
    return {
        "role": message.role.value,
        "name": message.name,
        "channel": message.channel,
        "recipient": message.recipient,
        "content_type": message.content_type,
        "content": message.text,
    }
