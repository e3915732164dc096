"""Conversations as values: what `render` turns into tokens and what the parser makes of a
completion.

`Conversation.from_json` and `to_json` speak openai-harmony's own JSON form, so that data moves
between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """Who speaks. Instructions rank system > developer > user > assistant > tool."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Channel(StrEnum):
    """The channels of the trained system message. A message may name another one; it is then an
    ordinary string.
    """

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    FINAL = "final"


class Effort(StrEnum):
    """How long the model reasons: the `Reasoning:` line of the system message."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True)
class Tool:
    """A function offered to the model. `parameters` is a JSON schema, or None for a function
    without arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ToolNamespace:
    """Tools that share a prefix: `functions`, `browser`, or a bare tool such as `python`
    (description only).
    """

    name: str
    description: str | None = None
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class TextContent:
    text: str


@dataclass(frozen=True)
class SystemContent:
    """The system message as trained; every field may be None to leave its line out."""

    model_identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    reasoning_effort: Effort | None = Effort.MEDIUM
    knowledge_cutoff: str | None = "2024-06"
    conversation_start_date: str | None = None
    valid_channels: tuple[str, ...] | None = ("analysis", "commentary", "final")
    channel_required: bool = True
    tools: tuple[ToolNamespace, ...] = ()


@dataclass(frozen=True)
class ResponseFormat:
    """A schema shown to the model under `# Response Formats`, as trained."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True)
class DeveloperContent:
    """Instructions of the application ("system prompt" elsewhere), its function tools and response
    formats.
    """

    instructions: str | None = None
    tools: tuple[ToolNamespace, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()


Content = TextContent | SystemContent | DeveloperContent


@dataclass(frozen=True)
class Message:
    """One message. For a tool's output `role` is TOOL and `name` the tool's full name, such as
    `functions.get_weather`.
    """

    role: Role
    content: tuple[Content, ...]
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None

    @classmethod
    def of_text(
        cls,
        role: Role,
        text: str,
        *,
        name: str | None = None,
        channel: str | None = None,
        recipient: str | None = None,
        content_type: str | None = None,
    ) -> Message:
        return cls(role, (TextContent(text),), name, channel, recipient, content_type)

    @property
    def text(self) -> str:
        """The text contents, concatenated as rendering does; empty for system and developer
        contents.
        """
        return "".join(part.text for part in self.content if isinstance(part, TextContent))


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...] = ()
