"""What a turn is told as while it happens: one type per meaning, ended by exactly one `TurnEnd`.

Consumers match on the type. Reasoning and answer never share an event, so that what must not be
shown to an end user is left out by not matching it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ossia.harmony.messages import Message, Role


class TurnFinish(StrEnum):
    """Why a turn ended."""

    STOP = "stop"
    """The model finished its answer, or a stop string was reached."""
    TOOL_CALLS = "tool_calls"
    """The model waits for the results of `Turn.tool_calls`."""
    LENGTH = "length"
    """`max_tokens` or the context was reached; what there is of the answer may be incomplete."""
    CANCELLED = "cancelled"
    REPETITION = "repetition"
    """The model repeated itself and would not have come to an end."""
    NAN = "nan"
    """The model's numbers are no numbers: no token can be drawn from them."""
    ERROR = "error"
    """The engine failed; `Turn.diagnostics` says how."""

    @property
    def failed(self) -> bool:
        """Whether the model or the engine broke down: what there is of the turn is no result."""
        return self in (TurnFinish.NAN, TurnFinish.ERROR)


@dataclass(frozen=True)
class ToolCall:
    """A call of an offered tool. `arguments` is what the model wrote, normally a JSON object."""

    call_id: str
    name: str
    """As offered: the bare name of a function, the full name of another tool (`browser.search`)."""
    arguments: str
    recipient: str
    """The tool's full name, such as `functions.get_weather`."""
    channel: str | None
    """The channel that the call was made on; its result belongs there too."""

    def result(self, output: str) -> Message:
        """The message that gives the call's result back: append it behind `Turn.messages`."""
        return Message.of_text(
            Role.TOOL,
            output,
            name=self.recipient,
            recipient=Role.ASSISTANT,
            channel=self.channel,
        )


@dataclass(frozen=True)
class Alternative:
    """A token that might have stood in another one's place."""

    token_id: int
    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """A token of a text that is shown. The bytes of all of them, decoded with U+FFFD for what is no
    UTF-8, are that text.
    """

    text: str
    """What of it is shown; U+FFFD for a part of a character."""
    bytes: bytes
    token_id: int | None
    """None for text that the model did not write: the blank line between two messages."""
    logprob: float | None
    """Natural logarithm, under the unmodified distribution; None where `token_id` is."""
    top: tuple[Alternative, ...] = ()
    """The most probable first."""


@dataclass(frozen=True)
class ReasoningDelta:
    """Raw chain of thought: for developers, not for end users."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """If asked for: of the tokens that this text completes."""


@dataclass(frozen=True)
class PreambleDelta:
    """Visible commentary before a tool call."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """The answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ToolCallEvent:
    """A complete call, its arguments repaired where that was possible."""

    call: ToolCall


@dataclass(frozen=True)
class Diagnostic:
    """Something that was repaired, dropped or capped, in one sentence."""

    text: str
    """May quote what the model wrote, its reasoning included."""
    summary: str
    """Quotes nothing: for places where reasoning must not appear."""


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class TurnLogprobs:
    """Per token of each text of the turn; headers and control tokens are left out."""

    reasoning: tuple[TokenLogprob, ...]
    preamble: tuple[TokenLogprob, ...]
    content: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Turn:
    """All of a turn: what was thought, said and called, and how it ended."""

    reasoning: str
    preamble: str
    content: str | None
    """None when the model gave no answer (it called a tool, or was cut while reasoning)."""
    tool_calls: tuple[ToolCall, ...]
    finish: TurnFinish
    messages: tuple[Message, ...]
    """What to append to the conversation for the next turn."""
    token_ids: tuple[int, ...]
    """The tokens as sampled, and those headers that a budget put between them."""
    usage: Usage
    diagnostics: tuple[Diagnostic, ...] = ()
    message_ids: tuple[str, ...] = ()
    """One per message: its id in the history; of a call its `call_id`."""
    logprobs: TurnLogprobs | None = None
    """None unless asked for."""


@dataclass(frozen=True)
class TurnEnd:
    turn: Turn


TurnEvent = ReasoningDelta | PreambleDelta | TextDelta | ToolCallEvent | Diagnostic | TurnEnd
