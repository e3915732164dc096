"""Exact-token history: assistant messages that come back are given the very tokens that the model
sampled, so that a prompt continues the one before it and the model reads its own words.

The unit is a step: what one generation wrote. A step is found by the ids of its messages (response
items, tool calls) or by their content, within one scope only. Content is compared as clients may
change it: JSON arguments by value, text without the white space at its ends.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum, auto
from typing import Any, cast

from ossia.errors import ConversationError, UsageError
from ossia.harmony.messages import Channel, Conversation, Message, Role, TextContent
from ossia.harmony.render import Drop, dropped_messages

_OVERHEAD = 16
"""Tokens that a message counts for besides its own: entries without tokens take space too."""

_SEPARATOR = "\n\n"
"""What stands between messages of one kind where a client holds them as one text."""


@dataclass(frozen=True)
class WrittenMessage:
    """An assistant's message of a step."""

    message: Message
    token_ids: tuple[int, ...] | None
    """As sampled, with `<|end|>` for `<|return|>`; None for one that needed repair, which is always
    rendered."""
    message_id: str | None = None
    """Under which it can come back: the id of a response item or of a tool call."""


@dataclass(frozen=True)
class Recalled:
    """A conversation with what was found of it."""

    conversation: Conversation
    """As it came, its known messages as they were written, forgotten ones put back in."""
    sampled: Mapping[int, tuple[int, ...]]
    """By index into the conversation: the tokens of a message; `render_for_completion` takes it."""
    unknown: int = 0
    """Assistant messages of the prompt for which nothing was found."""
    restored: int = 0
    """Messages of the prompt that the client had left out."""


class History:
    """The steps of many conversations, the least recently used forgotten first.

    All methods may be called from any thread. The tokens are those of one vocabulary: do not share
    a history between models that have different ones.
    """

    def __init__(self, max_tokens: int = 1_000_000) -> None:
        """`max_tokens` bounds what is kept, over all scopes; a token takes about 40 bytes. Raises
        UsageError when it is negative.
        """
        if max_tokens < 0:
            raise UsageError(f"max_tokens must not be negative; got {max_tokens}.")
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._steps: OrderedDict[int, _Step] = OrderedDict()
        """By number, the most recently used last."""
        self._places: dict[_Key, tuple[int, int]] = {}
        """Number of a step and index into its messages; of equal contents, the latest."""
        self._next = 0
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """What is kept counts for so many tokens, at most `max_tokens`."""
        return self._num_tokens

    def remember(self, scope: str, messages: Sequence[WrittenMessage]) -> None:
        """Keep what one generation wrote, in its order."""
        if messages:
            with self._lock:
                self._add(_Step(scope, tuple(messages), set()))

    def alias(self, scope: str, message_id: str, other_id: str) -> bool:
        """Let a message be found under another id as well; False when it is not known."""
        with self._lock:
            place = self._places.get(_Key.of_id(scope, message_id))
            if place is not None:
                self._point(_Key.of_id(scope, other_id), *place)
            return place is not None

    def recall(
        self,
        scope: str,
        conversation: Conversation,
        message_ids: Mapping[int, str] | None = None,
        *,
        drop: Drop = Drop.COMPLETED,
    ) -> Recalled:
        """What is known of a conversation; nothing of another scope ever is.

        `message_ids`: by index of a message, the id that its client gave it. A step found by an id
        is put back whole, also when the client has dropped its reasoning; a content alone gets its
        own tokens and nothing else. A message that was edited is taken as it came.
        """
        messages: list[Message] = []
        sampled: dict[int, tuple[int, ...]] = {}
        unknown: set[int] = set()
        restored: set[int] = set()
        with self._lock:
            for segment in _segments(conversation.messages):
                came = [conversation.messages[i] for i in segment]
                ids = [(message_ids or {}).get(i) for i in segment]
                found = self._find(scope, came, ids)
                kinds = set(map(_kind, came))
                for written in found:
                    if _kind(written.message) not in kinds:
                        restored.add(len(messages))
                    if isinstance(written, _Unknown):
                        unknown.add(len(messages))
                    elif written.token_ids is not None:
                        sampled[len(messages)] = written.token_ids
                    messages.append(written.message)
        dropped = dropped_messages(messages, drop)
        return Recalled(
            Conversation(tuple(messages)), sampled, len(unknown - dropped), len(restored - dropped)
        )

    # -- Persistence ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, for a server to keep over a restart."""
        with self._lock:
            return {"steps": [step.to_dict(self._names(n)) for n, step in self._steps.items()]}

    @classmethod
    def from_dict(cls, document: Any, max_tokens: int = 1_000_000) -> History:
        """What `to_dict` wrote. Raises ConversationError for anything else."""
        history = cls(max_tokens)
        try:
            for entry in document["steps"]:
                step = _Step.from_dict(entry)
                number = history._add(step)
                ids = cast("dict[str, int]", entry["ids"])
                for name, index in ids.items():
                    place = range(len(step.messages))[index]  # IndexError for one out of range
                    history._point(_Key.of_id(step.scope, name), number, place)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConversationError(f"This is no saved history: {error!r}.") from error
        return history

    def _names(self, number: int) -> dict[str, int]:
        return {
            key.value: self._places[key][1]
            for key in sorted(self._steps[number].keys, key=lambda key: key.value)
            if key.is_id
        }

    # -- What is kept --------------------------------------------------------------------------

    def _add(self, step: _Step) -> int:
        number, self._next = self._next, self._next + 1
        self._steps[number] = step
        self._num_tokens += step.num_tokens
        for index, written in enumerate(step.messages):
            self._point(_Key.of_content(step.scope, written.message), number, index)
            if written.message_id is not None:
                self._point(_Key.of_id(step.scope, written.message_id), number, index)
        while self._num_tokens > self._max_tokens:
            self._forget()
        return number

    def _point(self, key: _Key, number: int, index: int) -> None:
        step = self._steps.get(number)
        if step is None:  # larger than the history
            return
        before = self._places.get(key)
        if before is not None:
            self._steps[before[0]].keys.discard(key)
        self._places[key] = number, index
        step.keys.add(key)

    def _forget(self) -> None:
        _, step = self._steps.popitem(last=False)
        self._num_tokens -= step.num_tokens
        for key in step.keys:
            del self._places[key]

    # -- Looking up ----------------------------------------------------------------------------

    def _find(
        self, scope: str, came: Sequence[Message], ids: Sequence[str | None]
    ) -> list[WrittenMessage]:
        """What one step wrote, for the messages that came of it."""
        if not all(map(_is_known_kind, came)):
            return [WrittenMessage(message, None) for message in came]
        by_id = self._numbers(_Key.of_id(scope, name) for name in ids if name is not None)
        contents = [_Key.of_content(scope, message) for message in came]
        for number in by_id:
            if _agree(self._steps[number].messages, came, may_miss=True):
                return self._used(number)
        for number in self._numbers(reversed(contents)):
            if _agree(self._steps[number].messages, came, may_miss=False):
                return self._used(number)
        return [self._find_alone(*each) for each in zip(contents, came, strict=True)]

    def _find_alone(self, key: _Key, message: Message) -> WrittenMessage:
        place = self._places.get(key)
        if place is None:
            return _Unknown(message, None)
        number, index = place
        return self._used(number)[index]

    def _numbers(self, keys: Iterable[_Key]) -> list[int]:
        places = (self._places.get(key) for key in keys)
        return list(dict.fromkeys(place[0] for place in places if place is not None))

    def _used(self, number: int) -> list[WrittenMessage]:
        self._steps.move_to_end(number)
        return list(self._steps[number].messages)


@dataclass(frozen=True)
class _Key:
    """What a message is found by. The scope is part of it, so no other scope can ask for it."""

    scope: str
    value: str
    is_id: bool

    @classmethod
    def of_id(cls, scope: str, message_id: str) -> _Key:
        return cls(scope, message_id, True)

    @classmethod
    def of_content(cls, scope: str, message: Message) -> _Key:
        said = repr((_kind(message), *_said(message)))
        return cls(scope, hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest(), False)


@dataclass(frozen=True)
class _Step:
    scope: str
    messages: tuple[WrittenMessage, ...]
    keys: set[_Key]
    """Those that lead here and nowhere else."""

    @property
    def num_tokens(self) -> int:
        return sum(
            _OVERHEAD
            + (len(written.message.text) if written.token_ids is None else len(written.token_ids))
            for written in self.messages
        )

    def to_dict(self, names: dict[str, int]) -> dict[str, Any]:
        return {
            "scope": self.scope,
            "ids": names,
            "token_ids": [
                None if written.token_ids is None else list(written.token_ids)
                for written in self.messages
            ],
        } | Conversation(tuple(written.message for written in self.messages)).to_dict()

    @classmethod
    def from_dict(cls, entry: Any) -> _Step:
        read = Conversation.from_dict({"messages": entry["messages"]}).messages
        written = [
            WrittenMessage(message, None if ids is None else tuple(map(int, ids)))
            for message, ids in zip(read, entry["token_ids"], strict=True)
        ]
        return cls(str(entry["scope"]), tuple(written), set())


class _Unknown(WrittenMessage):
    """A message for which nothing was found."""


# -- Comparing ------------------------------------------------------------------------------------


class _Kind(Enum):
    REASONING = auto()
    PREAMBLE = auto()
    CONTENT = auto()
    CALL = auto()


def _kind(message: Message) -> _Kind:
    if message.recipient is not None:
        return _Kind.CALL
    match message.channel:
        case Channel.ANALYSIS:
            return _Kind.REASONING
        case Channel.COMMENTARY:
            return _Kind.PREAMBLE
        case _:
            return _Kind.CONTENT


def _is_known_kind(message: Message) -> bool:
    """Whether it is one that a model writes."""
    return message.role == Role.ASSISTANT and all(
        isinstance(part, TextContent) for part in message.content
    )


def _segments(messages: Sequence[Message]) -> Iterator[list[int]]:
    """The indices of the messages in order, those together that one step may have written: up to a
    final message, or to a call that no further call follows.
    """
    segment: list[int] = []
    for i, message in enumerate(messages):
        if message.role != Role.ASSISTANT:
            yield from filter(None, [segment])
            yield [i]
            segment = []
            continue
        before = _kind(messages[segment[-1]]) if segment else None
        kind = _kind(message)
        if before is _Kind.CONTENT or (before is _Kind.CALL and kind is not _Kind.CALL):
            yield segment
            segment = []
        segment.append(i)
    yield from filter(None, [segment])


def _agree(written: Sequence[WrittenMessage], came: Sequence[Message], *, may_miss: bool) -> bool:
    """Whether a client can have made the messages that came from those that were written.

    Messages of one kind may have become one. `may_miss`: what no end user sees or needs, reasoning
    and preambles, may be missing, as a whole; answers and calls never.
    """
    of_step = [message.message for message in written]
    for kind in (_Kind.REASONING, _Kind.PREAMBLE, _Kind.CONTENT):
        ours, theirs = _joined(of_step, kind), _joined(came, kind)
        missing = may_miss and not theirs and kind is not _Kind.CONTENT
        if ours != theirs and not missing:
            return False
    return _calls_of(of_step) == _calls_of(came)


def _joined(messages: Iterable[Message], kind: _Kind) -> str:
    texts = [message.text for message in messages if _kind(message) is kind]
    return _plain(_SEPARATOR.join(text for text in texts if text))


def _calls_of(messages: Iterable[Message]) -> list[tuple[object, ...]]:
    return [_said(message) for message in messages if _kind(message) is _Kind.CALL]


def _said(message: Message) -> tuple[object, ...]:
    """What a message says, whatever its spelling. A call's channel is not told to clients."""
    name = message.name or ""
    if message.recipient is None:
        return (name, str(message.channel), _plain(message.text))
    return (name, str(message.recipient), _arguments(message.text))


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _arguments(text: str) -> object:
    """Of JSON, its value: members in any order, numbers in any spelling; else the text."""
    try:
        value = json.loads(
            text,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_refuse,
            object_pairs_hook=_members,
        )
        return _canonical(value)
    except (ValueError, RecursionError, InvalidOperation):
        return _plain(text)


class _Number(str):
    """A JSON number as it is spelt."""


def _refuse(value: object) -> object:
    raise ValueError(value)


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key stands twice")  # which of the two counts is not ours to say
    return members


def _canonical(value: object) -> object:
    match value:
        case _Number():
            sign, digits, exponent = Decimal(value).as_tuple()
            significant = "".join(map(str, digits)).lstrip("0")
            stripped = significant.rstrip("0")
            zeros = len(significant) - len(stripped)
            return ("number", sign, stripped, int(exponent) + zeros) if stripped else ("number", 0)
        case dict():
            members = cast("dict[str, object]", value)
            return {key: _canonical(members[key]) for key in sorted(members)}
        case list():
            return [_canonical(item) for item in cast("list[object]", value)]
        case _:
            return value
