"""Conversations into the token ids that gpt-oss reads: prompts, and training examples with the
weight of each token's loss.

Text is encoded piece by piece exactly as openai-harmony 0.0.8 does, since BPE is not indifferent to
where a text is cut; only this module writes control tokens. docs/harmony.md lists where the two
differ on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ossia.errors import ConversationError, TokenizerError
from ossia.harmony.messages import (
    Channel,
    Content,
    Conversation,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    TextContent,
)
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.tool_schema import response_formats_section, tools_section

_CONSTRAIN = "<|constrain|>"
_TO_EVERYONE = "all"
"""The recipient that is the same as none."""


class Drop(StrEnum):
    """Which reasoning of earlier turns is left out of the prompt."""

    COMPLETED = "completed"
    """The analysis of every turn that a `final` has closed, its tool calls and their outputs
    included; the analysis of the turn in progress stays. What OpenAI's guides ask for.
    """
    LIBRARY = "library"
    """openai-harmony 0.0.8's rule: if the last assistant message is a `final`, every analysis
    before the *first* `final`; otherwise nothing.
    """
    NONE = "none"


@dataclass(frozen=True)
class Rendered:
    """A prompt. `tokenizer.decode(token_ids)` is its text."""

    token_ids: tuple[int, ...]
    boundaries: tuple[int, ...] = ()
    """Where each rendered message ends: the position behind its end token, ascending."""


@dataclass(frozen=True)
class TrainingExample:
    """Tokens, and for each the weight of its loss: 1 where the model itself has to produce it, 0
    elsewhere.
    """

    token_ids: tuple[int, ...]
    loss_weights: tuple[int, ...]


def render_for_completion(
    tokenizer: Tokenizer,
    conversation: Conversation,
    *,
    drop: Drop = Drop.COMPLETED,
    role: Role = Role.ASSISTANT,
    sampled: Mapping[int, Sequence[int]] | None = None,
) -> Rendered:
    """The conversation, then `<|start|>` and the role that is to speak.

    `sampled`: by index of an assistant's message, the tokens in which the model wrote it, which
    then stand in the prompt instead of the rendering: the message's `<|start|>` (which may be
    missing, where it belonged to the prompt) to its end token, `<|return|>` becoming `<|end|>`.
    What `drop` leaves out is left out with or without them.

    Raises ConversationError for a message that Harmony cannot express, and for sampled tokens that
    are not one message.
    """
    messages = conversation.messages
    dropped = dropped_messages(messages, drop)
    out = _Writer(tokenizer)
    _render_messages(out, messages, dropped, last_token_returns=False, sampled=sampled)
    out.control(tokenizer.control.start)
    out.text(str(role))
    return Rendered(tuple(out.token_ids), tuple(out.boundaries))


def render_for_training(
    tokenizer: Tokenizer, conversation: Conversation, *, drop: Drop = Drop.COMPLETED
) -> TrainingExample:
    """The conversation as the model saw and wrote it, up to the last message; a `final` there ends
    in `<|return|>` and closes no turn: its analysis is what is to be learnt, so COMPLETED keeps it.

    A loss weight is 1 on what the model has to produce: from after `<|start|>assistant` to the
    message's end token, and `<|start|>assistant` itself where the model goes on after an
    `<|end|>` of its own. It is 0 on the `<|end|>` of an earlier `final` (the model wrote
    `<|return|>` there) and on earlier turns whose reasoning was dropped (in this context, the
    model would not have written what remains of them).
    """
    messages = conversation.messages
    closing = [i for i in _closing_finals(messages) if i < len(messages) - 1]
    dropped = _dropped(messages, drop, closing)
    out = _Writer(tokenizer)
    returns = bool(messages) and _is_final(messages[-1])
    _render_messages(out, messages, dropped, last_token_returns=returns, closing=closing)
    return TrainingExample(tuple(out.token_ids), tuple(out.loss_weights))


def render_message(
    tokenizer: Tokenizer, message: Message, *, has_function_tools: bool = False
) -> Rendered:
    """One message, from `<|start|>` to its end token.

    `has_function_tools`: whether the conversation declares function tools, which adds a line to a
    system message.
    """
    out = _Writer(tokenizer)
    _render_message(out, message, has_function_tools)
    return Rendered(tuple(out.token_ids), (len(out.token_ids),))


# -- What is left out -----------------------------------------------------------------------------


def dropped_messages(messages: Sequence[Message], drop: Drop = Drop.COMPLETED) -> set[int]:
    """The indices of the messages that a prompt leaves out."""
    return _dropped(messages, drop, _closing_finals(messages))


def _is_final(message: Message) -> bool:
    return message.role == Role.ASSISTANT and message.channel == Channel.FINAL


def _closing_finals(messages: Sequence[Message]) -> list[int]:
    return [i for i, message in enumerate(messages) if _is_final(message)]


def _dropped(messages: Sequence[Message], drop: Drop, closing: Sequence[int]) -> set[int]:
    """The indices of the messages that are not rendered."""
    match drop:
        case Drop.NONE:
            return set()
        case Drop.LIBRARY:
            return _dropped_by_library(messages)
        case Drop.COMPLETED:
            completed = messages[: closing[-1]] if closing else ()
            return set(_reasoning(completed))


def _dropped_by_library(messages: Sequence[Message]) -> set[int]:
    spoken = [message for message in messages if message.role == Role.ASSISTANT]
    if not spoken or not _is_final(spoken[-1]):
        return set()
    # Any role's final and any role's analysis, as there.
    first = next(i for i, message in enumerate(messages) if message.channel == Channel.FINAL)
    return {i for i in range(first) if messages[i].channel == Channel.ANALYSIS}


def _reasoning(messages: Sequence[Message]) -> Iterator[int]:
    """The indices of the analysis: the assistant's, and the outputs of tools called from it.

    An output goes with its call, whatever its own channel says, so that neither stays alone: it
    belongs to the oldest call of that name that has no output yet. Without one, its channel
    decides.
    """
    waiting: list[tuple[str, bool]] = []
    for i, message in enumerate(messages):
        reasons = message.channel == Channel.ANALYSIS
        if message.role == Role.ASSISTANT:
            if _calls(message):
                waiting.append((message.recipient or "", reasons))
        elif message.role == Role.TOOL:
            call = next((call for call in waiting if call[0] == message.name), None)
            if call is not None:
                waiting.remove(call)
                reasons = call[1]
        else:
            continue
        if reasons:
            yield i


# -- Messages -------------------------------------------------------------------------------------


class _Writer:
    """Token ids and their loss weights, as they are written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.token_ids: list[int] = []
        self.loss_weights: list[int] = []
        self.boundaries: list[int] = []

    def text(self, text: str, weight: int = 0) -> None:
        ids = self.tokenizer.encode(text)
        self.token_ids += ids
        self.loss_weights += [weight] * len(ids)

    def control(self, token_id: int, weight: int = 0) -> None:
        self.token_ids.append(token_id)
        self.loss_weights.append(weight)

    def sampled(self, ids: Sequence[int]) -> None:
        self.token_ids += ids
        self.loss_weights += [0] * len(ids)


def _render_messages(
    out: _Writer,
    messages: Sequence[Message],
    dropped: set[int],
    *,
    last_token_returns: bool,
    closing: Sequence[int] = (),
    sampled: Mapping[int, Sequence[int]] | None = None,
) -> None:
    has_function_tools = any(map(_declares_functions, messages))
    shortened = set(_in_shortened_turns(dropped, closing))
    control = out.tokenizer.control
    previous: int | None = None
    for i, message in enumerate(messages):
        if i in dropped:
            continue
        weight = 1 if message.role == Role.ASSISTANT and i not in shortened else 0
        goes_on = previous is not None and _goes_on(messages[previous])
        try:
            if sampled is not None and i in sampled:
                _splice(out, message, sampled[i])
            else:
                _render_message(out, message, has_function_tools, weight, weight if goes_on else 0)
        except (ConversationError, TokenizerError) as error:
            raise ConversationError(f"messages[{i}]: {error}") from error
        out.boundaries.append(len(out.token_ids))
        if i in closing:
            out.loss_weights[-1] = 0
        previous = i
    if last_token_returns:
        out.token_ids[-1] = control.return_


def _splice(out: _Writer, message: Message, ids: Sequence[int]) -> None:
    """The message as the model wrote it."""
    control = out.tokenizer.control
    if not _is_one_message(out.tokenizer, message, ids):
        raise ConversationError(
            "its sampled tokens are not one message of the assistant, from its header to its end "
            f"token; got {out.tokenizer.decode(ids[:40])!r}."
        )
    if ids[0] != control.start:
        out.control(control.start)
        out.text(str(message.role))
    out.sampled(ids[:-1])
    out.control(control.end if ids[-1] == control.return_ else ids[-1])


def _is_one_message(tokenizer: Tokenizer, message: Message, ids: Sequence[int]) -> bool:
    control, ordinary = tokenizer.control, tokenizer.ordinary_ids
    if message.role != Role.ASSISTANT or not ids or ids[-1] not in control.stop_ids:
        return False
    if (ids[-1] == control.call) != _calls(message) or control.message not in ids:
        return False
    content = list(ids).index(control.message)
    header = ids[:content]
    if header and header[0] == control.start:
        header = header[1:]
        ends = (i for i, token in enumerate(header) if token not in ordinary)
        author = header[: next(ends, len(header))]
        if not tokenizer.decode(author).startswith(Role.ASSISTANT):
            return False
    in_header = (control.channel, control.constrain)
    return all(token in ordinary or token in in_header for token in header) and all(
        token in ordinary for token in ids[content + 1 : -1]
    )


def _in_shortened_turns(dropped: set[int], closing: Sequence[int]) -> Iterator[int]:
    """The indices of the messages of closed turns from which something was dropped."""
    begin = 0
    for end in closing:
        turn = range(begin, end + 1)
        if not dropped.isdisjoint(turn):
            yield from turn
        begin = end + 1


def _goes_on(message: Message) -> bool:
    """Whether the model keeps the floor after this message: it ended in `<|end|>`."""
    return message.role == Role.ASSISTANT and not _calls(message) and not _is_final(message)


def _calls(message: Message) -> bool:
    return message.recipient is not None and message.recipient != _TO_EVERYONE


def _declares_functions(message: Message) -> bool:
    return any(
        namespace.name == "functions" and namespace.tools
        for part in message.content
        if isinstance(part, DeveloperContent)
        for namespace in part.tools
    )


def _render_message(
    out: _Writer,
    message: Message,
    has_function_tools: bool,
    weight: int = 0,
    start_weight: int = 0,
) -> None:
    """`weight` is that of all the model writes itself, `start_weight` that of `<|start|>` and the
    role.
    """
    _check_header(message)
    control = out.tokenizer.control
    out.control(control.start, start_weight)
    if message.role == Role.TOOL:
        out.text(message.name or "")
    else:
        out.text(str(message.role), start_weight)
        if message.name is not None:
            out.text(f":{message.name}", weight)
    if _calls(message):
        out.text(f" to={message.recipient}", weight)
    if message.channel is not None:
        out.control(control.channel, weight)
        out.text(message.channel, weight)
    if message.content_type is not None:
        plain = message.content_type.removeprefix(_CONSTRAIN)
        if plain == message.content_type:
            out.text(f" {plain}", weight)
        else:
            out.text(" ", weight)
            out.control(control.constrain, weight)
            out.text(plain, weight)
    out.control(control.message, weight)
    for part in message.content:
        out.text(_checked(_content_text(part, message.role, has_function_tools)), weight)
    is_call = message.role == Role.ASSISTANT and _calls(message)
    out.control(control.call if is_call else control.end, weight)


def _checked(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConversationError(
                f"the text holds a lone surrogate at character {error.start}, which is no Unicode "
                "character; decode its bytes again, for example with errors='replace'."
            ) from None
    return text


# Whatever would end a header field, or begin a control token to whoever reads the text again.
_BREAKS_HEADER = re.compile(r"\s|<\|")


def _check_header(message: Message) -> None:
    """Refuses what would make a header say something else when it is read back."""
    fields = {
        "name": message.name,
        "recipient": message.recipient,
        "channel": message.channel,
        "content_type": message.content_type,
    }
    for field, value in fields.items():
        if value is None:
            continue
        if field == "content_type":
            value = value.removeprefix(_CONSTRAIN)
            if value.startswith("to="):
                raise ConversationError(
                    f"content_type {value!r} would be read as a recipient; set recipient instead."
                )
        elif not value:
            raise ConversationError(f"{field} is empty; leave it out (None) instead.")
        if _BREAKS_HEADER.search(value):
            raise ConversationError(
                f"{field} {value!r} would break the message's header: it may not hold white space "
                "or `<|`."
            )
        _checked(value)
    if message.role != Role.TOOL:
        return
    if message.name is None:
        raise ConversationError(
            "a tool's message needs the tool's name, such as functions.get_weather."
        )
    speakers = [str(role) for role in Role if role != Role.TOOL]
    if message.name.partition(":")[0] in speakers or message.name.startswith("to="):
        raise ConversationError(
            f"a tool named {message.name!r} would be read as a role or a recipient; give it "
            "another name."
        )


# -- Contents -------------------------------------------------------------------------------------


def _content_text(part: Content, role: Role, has_function_tools: bool) -> str:
    match part:
        case TextContent():
            return part.text
        case SystemContent():
            if role != Role.SYSTEM:
                raise ConversationError(
                    f"a system content belongs into a system message, not one of the role {role}."
                )
            return _system_text(part, has_function_tools)
        case DeveloperContent():
            if role != Role.DEVELOPER:
                raise ConversationError(
                    "a developer content belongs into a developer message, not one of the role "
                    f"{role}."
                )
            return _developer_text(part)


def _system_text(system: SystemContent, has_function_tools: bool) -> str:
    about: list[str] = []
    if system.model_identity is not None:
        about.append(system.model_identity)
    if system.knowledge_cutoff is not None:
        about.append(f"Knowledge cutoff: {system.knowledge_cutoff}")
    if system.conversation_start_date is not None:
        about.append(f"Current date: {system.conversation_start_date}")
    sections = ["\n".join(about)] if about else []
    if system.reasoning_effort is not None:
        sections.append(f"Reasoning: {system.reasoning_effort}")
    if system.tools:
        sections.append(tools_section(system.tools))
    if system.valid_channels:
        channels = f"# Valid channels: {', '.join(system.valid_channels)}."
        if system.channel_required:
            channels += " Channel must be included for every message."
        if has_function_tools:
            channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(channels)
    return "\n\n".join(sections)


def _developer_text(developer: DeveloperContent) -> str:
    sections: list[str] = []
    if developer.instructions is not None:
        sections += ["# Instructions", developer.instructions]
    if developer.tools:
        sections.append(tools_section(developer.tools))
    if developer.response_formats:
        sections.append(response_formats_section(developer.response_formats))
    return "\n\n".join(sections)
