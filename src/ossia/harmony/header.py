"""From the words of a message's header to its author, channel, recipient and content type.

A header comes as sections: what stood before the first `<|channel|>`, then what followed each
`<|channel|>` and `<|constrain|>`. Every sequence of sections has a reading. Where `<|message|>`
never came, the header runs into the text of the message; what is no header word is that text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from ossia.harmony.events import Rule
from ossia.harmony.messages import Channel, Role
from ossia.harmony.offered import OfferedTool, OfferedTools, clean_recipient

# Only plain blanks part words; spaces of other alphabets are noise inside them (R8).
_BLANKS = " \t\r\n\f\v"
_WORD = re.compile(rf"[^{_BLANKS}]+")
_NAME = re.compile(r"[A-Za-z][\w/+.-]*")
_RECIPIENT = re.compile(r"to=([^{\[(\"<]*)")  # up to what begins arguments
_LITERAL_CONTROL = re.compile(r"<\|\w+\|>")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_CHANNEL_START = re.compile(r"\W*(analysis|commentary|final)", re.IGNORECASE)
_TYPE_BEFORE_JSON = re.compile(r"(?:json|code|text)(?=\s*[{\[])", re.IGNORECASE)
_TYPE_BY_ITSELF = re.compile(r"(?:json|code|text)(?=\s*(?:[{\[]|$))", re.IGNORECASE)

_CHANNELS = tuple(Channel)
# After `to=` these are participants of the conversation, not tools.
_PARTICIPANTS = frozenset({"all", *Role})

# Longer words are no channel; to look at their edges would cost the square of their length.
_LONGEST_NAME = 64

# A section may hold two words that are not understood; more of them is prose.
_MOST_UNKNOWN_WORDS = 2


class Section(Enum):
    AUTHOR = auto()
    """Before the first `<|channel|>`."""
    CHANNEL = auto()
    CONSTRAIN = auto()


@dataclass(frozen=True)
class Setting:
    """Where a header stands, on which its reading depends."""

    tools: OfferedTools
    starts: bool
    """It begins with `<|start|>`, so that its first word is an author."""
    has_message: bool
    """`<|message|>` ended it."""
    after_call: bool = False
    """A call came before it in the turn."""
    transcript: bool = False
    """The stream is a whole conversation: other authors are meant."""


@dataclass(frozen=True)
class Header:
    role: Role
    name: str | None
    channel: str | None
    """A valid channel, or a name of the model's own making."""
    names_analysis: bool
    """`analysis` is among its channels, even if a later one counts."""
    recipient: str | None
    """The full name of the offered tool; otherwise what the model wrote, cleaned."""
    tool: OfferedTool | None
    content_type: str | None
    text: str
    """The message itself, where `<|message|>` is missing."""
    text_section: int
    """The section in which that text begins."""
    says_something: bool
    odd: bool
    """It holds words that no header has."""
    repairs: tuple[tuple[Rule, str], ...]

    @property
    def foreign(self) -> bool:
        """By somebody who does not speak inside a completion."""
        return self.role is not Role.ASSISTANT

    @property
    def begins_call(self) -> bool:
        """Without `<|message|>`: its text is the arguments of a call, and no thought of one."""
        return (
            self.recipient is not None
            and not self.names_analysis
            and self.text.lstrip().startswith("{")
        )


def read_header(sections: Sequence[tuple[Section, str]], setting: Setting) -> Header:
    """The reading of a header. Total: it never raises, whatever the words."""
    reader = _Reader(setting, alone=len(sections) == 1)
    for index, (section, text) in enumerate(sections):
        reader.read(index, section, text)
    return reader.header()


def is_cut_header(text: str) -> bool:
    """Whether the text may be the beginning of a header word that the stream's end cut off."""
    return any(word.startswith(text.strip(_BLANKS)) for word in ("functions.", *Role, *Channel))


class _Reader:
    """Walks the sections word by word; the fields are what has been understood so far."""

    def __init__(self, setting: Setting, *, alone: bool) -> None:
        self._setting = setting
        self._alone = alone
        self._role = Role.ASSISTANT
        self._name: str | None = None
        self._author: str | None = None
        self._tool_author: str | None = None
        self._channels: list[Channel] = []
        self._custom_channel: str | None = None
        self._recipients: list[tuple[str, OfferedTool | None]] = []
        self._participant: str | None = None
        self._content_type: str | None = None
        self._text = ""
        self._text_section = 0
        self._odd = False
        self._repairs: list[tuple[Rule, str]] = []

    def read(self, index: int, section: Section, text: str) -> None:
        end = len(text)
        if spelled := _LITERAL_CONTROL.search(text):
            end = spelled.start()
            if self._setting.has_message:
                self._odd = True
                self._repair(
                    Rule.R11,
                    f"{spelled.group()} is spelled out in ordinary tokens: from there the header "
                    f"is mere text and says nothing: {text[end:]}",
                )
        if section is not Section.AUTHOR and self._setting.has_message and not text.strip(_BLANKS):
            self._repair(Rule.R5, f"<|{section.name.lower()}|> with nothing behind it.")
        at = self._read_author(text, end) if section is Section.AUTHOR else 0
        unknown: list[str] = []
        first = True
        while word := _WORD.search(text, at, end):
            taken = self._take(section, word, first=first, after_unknown=bool(unknown))
            if not taken:
                if not self._setting.has_message:
                    break
                taken = len(word.group())
                if not (first and section is Section.CHANNEL and self._name_channel(word.group())):
                    unknown.append(word.group())
                if len(unknown) > _MOST_UNKNOWN_WORDS:
                    unknown[-1] = text[word.start() : end]
                    break
            at = word.start() + taken
            first = False
        if self._setting.has_message:
            self._place(section, unknown)
        elif rest := text[at:] if self._text else text[at:].lstrip(_BLANKS):
            if not self._text:
                self._text_section = index
            self._text += rest

    # -- The author --------------------------------------------------------------------------

    def _read_author(self, text: str, end: int) -> int:
        """Reads the author at the start of the text; returns where the other words begin."""
        word = _WORD.search(text, 0, end)
        if word is None:
            return 0
        spoken = word.group()
        if spoken.startswith(Role.ASSISTANT):
            self._author = Role.ASSISTANT
            rest = spoken[len(Role.ASSISTANT) :]
            if rest.startswith(":"):
                self._name = _speaker(rest[1:])
                return word.end()
            if rest and self._setting.has_message:
                self._repair(Rule.R5, f"The author and the next word run together: {spoken!r}.")
            return word.start() + len(Role.ASSISTANT)
        if not self._setting.starts:
            return 0
        role, _, name = spoken.partition(":")
        if role in (Role.SYSTEM, Role.DEVELOPER, Role.USER, Role.TOOL):
            self._author, self._role = spoken, Role(role)
            self._name = _speaker(name) or (role if role == Role.TOOL else None)
            return word.end()
        return self._read_unusual_author(word)

    def _read_unusual_author(self, word: re.Match[str]) -> int:
        """A tool, or a word of the header that slipped into the author's place."""
        spoken, setting = word.group(), self._setting
        tool = setting.tools.exactly(spoken)
        slipped = _channel_of(spoken) is not None
        if _NAME.fullmatch(spoken) and not slipped:
            self._tool_author = spoken
            # `<|start|>bash` is how models garble a call of `bash`, `<|start|>functions.bash` how
            # the output of a tool begins. Two of three signs of an output are taken as one.
            signs = ("." in spoken) + (tool is None) + setting.after_call
            if setting.transcript or signs >= 2:
                self._role = Role.TOOL
                return word.end()
        if tool or slipped:
            self._author = spoken
            return 0  # read again, as recipient or channel
        self._odd = True
        self._repair(Rule.R5, f"{spoken!r} is no author; the message is the assistant's.")
        return word.end() if setting.has_message else 0

    # -- The other words ---------------------------------------------------------------------

    def _take(
        self, section: Section, word: re.Match[str], *, first: bool, after_unknown: bool
    ) -> int:
        """Reads one word; returns how many characters of it are header, 0 when it is unknown."""
        if word.group().startswith("to="):
            return self._take_recipient(word)
        if taken := self._take_channel(section, word, first):
            return taken
        if not after_unknown and self._take_bare_tool(section, word):
            return len(word.group())
        if section is Section.AUTHOR:
            return 0
        constrain = "<|constrain|>" if section is Section.CONSTRAIN else ""
        if self._setting.has_message:
            name = _clean(word.group()) if constrain and first else None
            if name:
                self._content_type = constrain + name
            return len(word.group()) if name else 0
        known = _TYPE_BY_ITSELF if constrain else _TYPE_BEFORE_JSON
        if plain := known.match(word.string, word.start()):
            self._content_type = constrain + plain.group()
            return len(plain.group())
        return 0

    def _take_channel(self, section: Section, match: re.Match[str], first: bool) -> int:
        word, has_message = match.group(), self._setting.has_message
        if not has_message and not first:
            return 0  # a channel's name in the text of the message
        taken = len(word)
        if section is Section.AUTHOR:
            # Unframed text may well begin with "final": there only `analysis` counts.
            means_channel = has_message or self._author is not None or word == Channel.ANALYSIS
            exact = Channel(word) if word in _CHANNELS and means_channel else None
            channel = _channel_of(word) if word == self._author else exact
        elif section is Section.CONSTRAIN and not has_message:
            channel = _channel_of(word) if word == match.string.strip(_BLANKS) else None
        else:
            channel = _channel_of(word)
            glued = _CHANNEL_START.match(word)
            if channel is None and glued and (first or glued[1].lower() == Channel.FINAL):
                channel = Channel(glued[1].lower())
                taken = len(word) if has_message and "to=" not in word else glued.end()
            elif channel is Channel.FINAL and glued and not has_message:
                taken = glued.end()  # `final[]`: the brackets are the answer
        if channel is None:
            return 0
        if section is Section.AUTHOR:
            self._repair(Rule.R5, f"The channel {word!r} stands in the author's place.")
        elif word[:taken] != channel:
            self._repair(Rule.R5, f"{word[:taken]!r} is taken as the channel {channel}.")
        self._channels.append(channel)
        return taken

    def _name_channel(self, word: str) -> bool:
        """The first word after `<|channel|>`, which is none of the valid channels."""
        name = word.casefold()
        near = [c for c in Channel if len(name) >= 4 and c.startswith(name)]
        if near:
            self._repair(Rule.R5, f"{word!r} is taken as the channel {near[0]}.")
            self._channels.append(near[0])
        elif self._custom_channel is None and _NAME.fullmatch(word):
            self._custom_channel = word
        else:
            return False
        return True

    def _take_bare_tool(self, section: Section, match: re.Match[str]) -> bool:
        """A tool's name without `to=`, where it is no word of a sentence."""
        word, text = match.group(), match.string
        if section is Section.AUTHOR and len(text.split()) > 2:
            return False
        if not self._setting.has_message and text[match.end() :].strip(_BLANKS)[:1] not in "{[":
            return False
        tool = self._setting.tools.exactly(clean_recipient(word))
        if tool is None:
            return False
        if not self._recipients:
            self._repair(Rule.R5, f"{word!r} is an offered tool and taken as the recipient.")
        self._recipients.append((word, tool))
        return True

    def _take_recipient(self, match: re.Match[str]) -> int:
        tools = self._setting.tools
        if self._content_type is not None:
            self._repair(Rule.R5, "The recipient stands behind the content type.")
        word = _RECIPIENT.match(match.group())
        assert word is not None
        written, taken = word[1], word.end()
        if tools.exactly(written) is None and taken == len(match.group()):
            # `to= functions.f`, `to=functions. f`
            following = _WORD.match(match.string, match.end() + 1)
            if following and tools.exactly(clean_recipient(written + following.group())):
                written += following.group()
                taken = following.end() - match.start()
                self._repair(Rule.R8, f"A space parts the recipient {written!r}.")
        name = clean_recipient(written)
        if name.casefold() in _PARTICIPANTS and not tools.exactly(name):
            self._participant = name
            return taken
        if not name:
            self._repair(Rule.R8, "`to=` names nobody.")
            return taken
        # A space of another alphabet may also part the recipient from the next word.
        first_part = clean_recipient(written.split()[0])
        tool = tools.exactly(name) or tools.exactly(first_part) or tools.find(written)
        if tool and written != tool.recipient and not self._recipients:
            self._repair(Rule.R8, f"The recipient {written!r} is taken as {tool.recipient}.")
        self._recipients.append((written, tool))
        return taken

    def _place(self, section: Section, unknown: list[str]) -> None:
        """What becomes of the words of a section that were not understood."""
        may_be_type = section is Section.CHANNEL or (
            section is Section.AUTHOR and self._author is not None and self._alone
        )
        if len(unknown) == 1 and may_be_type and not self._content_type and _clean(unknown[0]):
            self._content_type = _clean(unknown.pop())
        if unknown:
            self._odd = self._odd or len(unknown) > 1 or section is Section.AUTHOR
            self._repair(Rule.R5, f"The header holds words that say nothing: {' '.join(unknown)}")

    # -- The sum -----------------------------------------------------------------------------

    def header(self) -> Header:
        written, tool = self._recipients[0] if self._recipients else (None, None)
        recipient = tool.recipient if tool else written and clean_recipient(written)
        if self._tool_author and (self._role is Role.TOOL or self._participant == Role.ASSISTANT):
            self._role, self._name = Role.TOOL, self._tool_author
        if self._role is not Role.ASSISTANT:
            recipient, tool = self._participant or recipient, None
        elif self._participant:
            self._repair(Rule.R8, f"to={self._participant} is no tool; the words are left out.")
        if len(self._recipients) > 1:
            self._repair(Rule.R8, "Several recipients: only the first counts.")
        if len(self._channels) > 1:
            self._repair(Rule.R5, f"Several channels: the last, {self._channels[-1]}, counts.")
        if self._custom_channel and self._channels:
            self._repair(Rule.R5, f"{self._custom_channel!r} is no channel; it is left out.")
        says_something = bool(self._author or self._tool_author or self._channels or recipient)
        return Header(
            role=self._role,
            name=self._name,
            channel=self._channels[-1] if self._channels else self._custom_channel,
            names_analysis=Channel.ANALYSIS in self._channels,
            recipient=recipient,
            tool=tool,
            content_type=self._content_type,
            text=self._text,
            text_section=self._text_section,
            says_something=says_something,
            odd=self._odd or self._custom_channel is not None,
            repairs=tuple(self._repairs),
        )

    def _repair(self, rule: Rule, text: str) -> None:
        self._repairs.append((rule, text))


def _speaker(name: str) -> str | None:
    """The name behind `assistant:`, as far as a header can hold it."""
    return "".join(name.partition("<|")[0].split()) or None


def _clean(word: str) -> str | None:
    """The word without noise, if what is left can stand in a header."""
    name = clean_recipient(word)
    return name if _NAME.fullmatch(name) else None


def _channel_of(word: str) -> Channel | None:
    """The channel whose name the word is, punctuation and case aside."""
    if len(word) > _LONGEST_NAME:
        return None
    name = _EDGES.sub("", word).casefold()
    return Channel(name) if name in _CHANNELS else None
