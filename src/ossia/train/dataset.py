"""A user's data into conversations and training examples: JSON Lines, one conversation a line, in
Harmony's own JSON or in the form of chat APIs, told apart by shape.

Nothing is ignored: whatever cannot be read is a TrainingError that names the file, the line and the
mend. Files are streamed; no more than one line is held.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from ossia.errors import ConversationError, TrainingError
from ossia.harmony.messages import Conversation, Role, SystemContent, parse_json
from ossia.harmony.render import TrainingExample, render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.chat_form import read_chat

DEFAULT_IDENTITY = SystemContent().model_identity
"""What a model without an identity of its own is told that it is."""

EXAMPLES_OF_SKIPPED = 5
"""Skipped lines that are kept by name, of each reason."""

_HARMONY_KEYS = frozenset({"channel", "recipient", "content_type"})
_HARMONY_CONTENTS = ("system_content", "developer_content")


@dataclass(frozen=True)
class Line:
    """One line of a file that is not blank."""

    path: Path
    number: int
    """From 1, blank lines counted."""
    text: str

    @property
    def place(self) -> str:
        """How errors and reports name it."""
        return f"{self.path}, line {self.number}"


def read_lines(path: str | Path) -> Iterator[Line]:
    """The lines of a UTF-8 file, blank ones left out.

    Raises TrainingError for a file that cannot be read, holds nothing, or is not text.
    """
    path, found = Path(path), False
    try:
        with path.open("rb") as stream:
            for number, data in enumerate(stream, 1):
                text = _decoded(data, path, number)
                if text and not text.isspace():
                    found = True
                    yield Line(path, number, text)
    except FileNotFoundError:
        raise TrainingError(f"{path}: there is no such file; name a file of JSON Lines.") from None
    except IsADirectoryError:
        raise TrainingError(f"{path}: this is a folder; name a file of JSON Lines in it.") from None
    except OSError as error:
        raise TrainingError(
            f"{path}: the file cannot be read ({error.strerror}); check its name and permissions."
        ) from error
    if not found:
        raise TrainingError(f"{path}: the file is empty; expected one conversation a line.")


def _decoded(data: bytes, path: Path, number: int) -> str:
    try:
        text = data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not UTF-8"
    else:
        if "\0" not in text:
            return text.rstrip("\r\n")
        reason = "it holds a zero byte"
    raise TrainingError(
        f"{path}, line {number}: expected text, but {reason}; save the data as JSON Lines in UTF-8 "
        "(unpack a compressed file, export a Parquet one)."
    )


def read_conversations(
    path: str | Path, *, identity: str | None = DEFAULT_IDENTITY
) -> Iterator[Conversation]:
    """The conversations of a JSON Lines file, in order; streamed.

    `identity` begins the system message of conversations in the chat form; those in Harmony's form
    carry their own. Raises TrainingError, naming file, line and mend.
    """
    for line in read_lines(path):
        yield read_conversation(line, identity=identity)


def read_conversation(line: Line, *, identity: str | None = DEFAULT_IDENTITY) -> Conversation:
    """The conversation on one line. Raises TrainingError, naming file, line and mend."""
    return conversation_of(line, read_object(line), identity=identity)


def read_object(line: Line) -> dict[str, Any]:
    """The JSON object on one line. Raises TrainingError, naming file, line and mend."""
    try:
        value = parse_json(line.text)
    except ConversationError as error:
        raise TrainingError(f"{line.place}: {_why_not_json(line.text, error)}") from error
    if isinstance(value, dict):
        return value
    raise TrainingError(
        f'{line.place}: expected an object such as {{"messages": […]}}, got {_kind(value)}; '
        "write each conversation as one object on a line of its own."
    )


def _why_not_json(text: str, error: ConversationError) -> str:
    mend = "write each conversation as one JSON object on a line of its own."
    cause = error.__cause__
    if isinstance(cause, json.JSONDecodeError):
        return f"this is not JSON ({cause.msg} at character {cause.colno} of {len(text)}); {mend}"
    return f"{str(error).rstrip('.')}; {mend}"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def conversation_of(
    line: Line, document: dict[str, Any], *, identity: str | None = DEFAULT_IDENTITY
) -> Conversation:
    """The conversation in the object that stands on `line`. Raises TrainingError."""
    if not document.get("messages"):
        raise TrainingError(
            f'{line.place}: there are no messages; expected an object such as {{"messages": '
            '[{"role": "user", "content": "…"}, …]}.'
        )
    try:
        if not is_harmony(document):
            return read_chat(document, identity=identity)
    except ConversationError as error:
        raise TrainingError(f"{line.place}: {error}") from error
    try:
        return Conversation.from_dict(document)
    except ConversationError as error:
        raise TrainingError(f"{line.place}: {_with_mend(error)}") from error


def _with_mend(error: ConversationError) -> str:
    return f"{str(error).rstrip('.')}; correct it, or take the line out."


def is_harmony(document: dict[str, Any]) -> bool:
    """Whether a conversation is in Harmony's own JSON: some message names a channel, a recipient or
    a content type, or has a system or developer content."""
    messages = document["messages"]
    return isinstance(messages, list) and any(map(_is_harmony_message, messages))


def _is_harmony_message(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    kinds = [part.get("type") for part in parts if isinstance(part, dict)]
    return bool(_HARMONY_KEYS & message.keys()) or any(k in kinds for k in _HARMONY_CONTENTS)


# -- Training examples ----------------------------------------------------------------------------


class Unfit(StrEnum):
    """Why a well-formed conversation cannot be trained on."""

    TOO_LONG = "too long"
    NOTHING_TO_LEARN = "nothing to learn"


@dataclass
class Skipped:
    """The lines that were left out; its owner is the `Examples` that count them."""

    counts: Counter[Unfit] = field(default_factory=Counter)
    lines: dict[Unfit, list[str]] = field(default_factory=dict)
    """The first few of each reason: a sentence with file and line."""

    def add(self, reason: Unfit, sentence: str) -> None:
        self.counts[reason] += 1
        named = self.lines.setdefault(reason, [])
        if len(named) < EXAMPLES_OF_SKIPPED:
            named.append(sentence)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            reason.value: {"count": self.counts[reason], "lines": self.lines.get(reason, [])}
            for reason in Unfit
        }


class Examples(Iterator[TrainingExample]):
    """Training examples, one at a time; `skipped` says what was left out so far."""

    def __init__(self, examples: Iterator[TrainingExample], skipped: Skipped) -> None:
        self._examples = examples
        self.skipped = skipped

    def __next__(self) -> TrainingExample:
        return next(self._examples)


def load_examples(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    identity: str | None = DEFAULT_IDENTITY,
    on_error: Literal["raise", "skip"] = "raise",
) -> Examples:
    """The rendered conversations of a file, in order; streamed.

    A conversation of more than `max_tokens` tokens, and one without anything to learn, is a
    TrainingError naming the line; with `on_error="skip"` it is left out and counted in `skipped`.
    What is malformed is an error in either case.
    """
    skipped = Skipped()

    def examples() -> Iterator[TrainingExample]:
        for line in read_lines(path):
            conversation = read_conversation(line, identity=identity)
            example = render_line(line, conversation, tokenizer)
            unfit = why_unfit(conversation, example, max_tokens)
            if unfit is None:
                yield example
                continue
            reason, sentence = unfit
            if on_error == "raise":
                raise TrainingError(f"{line.place}: {sentence}")
            skipped.add(reason, f"{line.place}: {sentence}")

    return Examples(examples(), skipped)


def render_line(line: Line, conversation: Conversation, tokenizer: Tokenizer) -> TrainingExample:
    """`render_for_training`, whose errors name the line as TrainingError."""
    try:
        return render_for_training(tokenizer, conversation)
    except ConversationError as error:
        raise TrainingError(f"{line.place}: {_with_mend(error)}") from error


def why_unfit(
    conversation: Conversation, example: TrainingExample, max_tokens: int | None
) -> tuple[Unfit, str] | None:
    """The reason, as one and as a sentence, why nothing can be learnt from an example, or None."""
    last = conversation.messages[-1].role
    if last != Role.ASSISTANT:
        return Unfit.NOTHING_TO_LEARN, (
            "there is nothing to learn, for the last message has the "
            f"role {last}; end the conversation with a message of the assistant."
        )
    count = len(example.token_ids)
    if max_tokens is not None and count > max_tokens:
        return Unfit.TOO_LONG, (
            f"the conversation has {count:,} tokens, more than the {max_tokens:,} that are "
            "trained at once; shorten it, take it out, or raise the limit."
        )
    return None
