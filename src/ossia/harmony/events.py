"""What the parser tells about a stream of tokens: one event type per meaning.

Spans count tokens from the first one fed. Together the spans of `MessageStart`, `ContentDelta`,
`MessageEnd` and of those `Repair`s that say `dropped` hold every token exactly once, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ossia.harmony.messages import Message, Role

Span = tuple[int, int]
"""First token and one past the last."""


class MessageKind(StrEnum):
    """What a message is to whoever consumes it; the channel alone does not tell."""

    REASONING = "reasoning"
    """Chain of thought: for developers, not for end users."""
    PREAMBLE = "preamble"
    """Visible commentary, usually before a call."""
    CONTENT = "content"
    """The answer."""
    TOOL_CALL = "tool_call"
    """A call of an offered tool, on whatever channel."""
    UNOFFERED_CALL = "unoffered_call"
    """A call of something that was not offered: to be answered in-band, never shown to a client."""
    INPUT = "input"
    """A message by another author, where the stream is a whole conversation and no completion."""


CALLS = (MessageKind.TOOL_CALL, MessageKind.UNOFFERED_CALL)


class Stop(StrEnum):
    """How a message ended."""

    END = "end"
    RETURN = "return"
    CALL = "call"
    IMPLICIT = "implicit"
    """The header of the next message came without a stop token before it (R11)."""
    CUT = "cut"
    """The stream ended first."""


class Rule(StrEnum):
    """Why something was repaired; R0 to R12 are explained in docs/harmony.md."""

    R0 = "R0"
    """Bytes that are not UTF-8; each is shown as U+FFFD."""
    R1 = "R1"
    """A stop token where a message should start."""
    R2 = "R2"
    """A message without `<|start|>assistant`."""
    R3 = "R3"
    """Text between messages."""
    R4 = "R4"
    """A header begun again."""
    R5 = "R5"
    """Header words out of place."""
    R6 = "R6"
    """A message without `<|message|>`."""
    R7 = "R7"
    """A final message without `<|message|>`."""
    R8 = "R8"
    """A recipient misspelt or repeated."""
    R9 = "R9"
    """A tool that was not offered, or a call on the final channel."""
    R10 = "R10"
    """Arguments of a call."""
    R11 = "R11"
    """Control tokens inside content, or their spelling inside a header."""
    R12 = "R12"
    """An invented message by somebody else."""
    PARALLEL = "parallel"
    """A further call where one was wanted."""
    CUT = "cut"
    """The stream ended without a stop token."""


@dataclass(frozen=True, slots=True)
class MessageStart:
    """A header. Fields are as repaired; `recipient` of an offered tool is its full name."""

    span: Span
    kind: MessageKind
    role: Role
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More text of the message. Of a call: its arguments as the model writes them; the repaired
    ones come with `MessageEnd`.
    """

    span: Span
    kind: MessageKind
    text: str


@dataclass(frozen=True, slots=True)
class MessageEnd:
    """The message as a whole."""

    span: Span
    kind: MessageKind
    message: Message
    stop: Stop
    complete: bool = True
    """False for a call whose arguments were cut short: not to be run."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A deviation from the format and what became of it, in one sentence."""

    span: Span
    rule: Rule
    text: str
    dropped: bool = False
    """The tokens of the span are in no message; otherwise they also belong to one."""


HarmonyEvent = MessageStart | ContentDelta | MessageEnd | Repair
