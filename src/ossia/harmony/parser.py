"""Token ids of a completion into messages, as they come: `feed` and `finish` return events.

Total: whatever the tokens, nothing is raised and nothing is lost; each deviation from the format is
mended by the rules R1 to R12 of docs/harmony.md and told as a `Repair`. Structure is read off
control tokens by id, never off text that spells one. All decisions fall at control tokens, hence
the same events come under any chunking, once adjacent deltas are joined.

Text is told as soon as its meaning is settled. What waits: text without `<|message|>` (R3, R6), a
header that may begin inside a message (R11), and, up to the next call or the end, all that follows
a call, since an invented tool result would take it back (R12).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ossia.errors import UsageError
from ossia.harmony.events import CALLS, HarmonyEvent, MessageKind, Repair, Rule, Span, Stop
from ossia.harmony.header import Header, Section, Setting, is_cut_header, read_header
from ossia.harmony.messages import Channel, Role
from ossia.harmony.offered import OfferedTools, ToolSpec
from ossia.harmony.open_message import OpenMessage
from ossia.harmony.outbox import LooseText, Outbox
from ossia.harmony.tokenizer import Tokenizer

_KIND_OF_CHANNEL = {
    Channel.ANALYSIS: MessageKind.REASONING,
    Channel.COMMENTARY: MessageKind.PREAMBLE,
}
_HEADER_WORDS = r"(?:\s|assistant|analysis|commentary|final)*"
_IMPLIED_START = re.compile(_HEADER_WORDS + r"to=\S")
_ONLY_HEADER_WORDS = re.compile(_HEADER_WORDS)
# Reasoning whose markers were lost, as in "analysisWe need to".
_UNMARKED_ANALYSIS = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z])")


class _State(Enum):
    START = auto()
    """Between messages."""
    HEADER = auto()
    CONTENT = auto()
    PROBE = auto()
    """In content, after a control token that may begin the next header."""
    VOID = auto()
    """After an invented message: the rest is dropped."""


@dataclass
class _OpenHeader:
    """A header while its tokens come in."""

    begin: int
    """Its first token; a header begun again (R4) may start later than that."""
    start: int
    starts: bool
    """Begins with `<|start|>`."""
    sections: list[tuple[Section, int]]
    """Each with its first token."""
    checked: int = 0
    """How many sections a probe has found fit for a header."""
    notes: list[Repair] = field(default_factory=list[Repair])


class HarmonyParser:
    """One completion, fed in any pieces and finished once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        tools: Iterable[ToolSpec] = (),
        parallel: bool = False,
        role: Role | None = Role.ASSISTANT,
    ) -> None:
        """`tools` is what was offered: namespaces as rendered, or names. `parallel` lets a turn
        hold several calls; otherwise the first counts. `role` is ASSISTANT when the tokens follow
        `<|start|>assistant`, None when they begin with `<|start|>`; in the latter case they may
        also be a whole conversation, recognised by its first author.
        """
        if role not in (None, Role.ASSISTANT):
            raise UsageError(f"A parser's role is 'assistant' or None; got {role!r}.")
        self._tokenizer = tokenizer
        self._control = tokenizer.control
        self._ordinary = tokenizer.ordinary_ids
        self._stops = {
            self._control.end: Stop.END,
            self._control.return_: Stop.RETURN,
            self._control.call: Stop.CALL,
        }
        self._tools = OfferedTools(tools)
        self._parallel = parallel
        self._tokens: list[int] = []
        self._outbox = Outbox()
        self._state = _State.START
        self._stray = 0
        """The first token since the last message, while between messages."""
        self._run = 0
        """The first token since the last control token, while between messages."""
        self._header = _OpenHeader(0, 0, False, [(Section.AUTHOR, 0)])
        self._message: OpenMessage | None = None
        self._transcript: bool | None = None if role is None else False
        self._called = False
        self._analysis_lost = False
        """A header named analysis without reaching `<|message|>`: its text is still to come."""
        self._last_stop: Stop | None = None
        self._finished = False
        self._cut = True
        if role is not None:
            self._state = _State.HEADER

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens fed so far, as they came."""
        return tuple(self._tokens)

    @property
    def void(self) -> bool:
        """The model invented somebody else's message: what else it generates is dropped."""
        return self._state is _State.VOID

    @property
    def cut(self) -> bool:
        """After `finish`: the stream ended before the turn did."""
        return self._cut

    def feed(self, ids: Iterable[int]) -> list[HarmonyEvent]:
        """The events that these further tokens bring about. Raises UsageError after `finish`."""
        if self._finished:
            raise UsageError("This parser is finished; each completion takes a parser of its own.")
        fresh = list(ids)
        begin, end = len(self._tokens), len(self._tokens) + len(fresh)
        self._tokens += fresh
        if self._ordinary.issuperset(fresh):
            if self._state is _State.CONTENT:
                self._say(begin, end)
        else:
            at = begin
            for index, token in enumerate(fresh, begin):
                if token in self._ordinary:
                    continue
                if index > at and self._state is _State.CONTENT:
                    self._say(at, index)
                self._read_control(index, token)
                at = index + 1
            if end > at and self._state is _State.CONTENT:
                self._say(at, end)
        return self._outbox.take()

    def finish(self, *, cut: bool | None = None) -> list[HarmonyEvent]:
        """The remaining events. `cut` says whether generation was cut short, by length say; with
        None that is read off the tokens: a turn that ends without a stop token was.
        """
        if self._finished:
            raise UsageError("This parser is finished; each completion takes a parser of its own.")
        self._finished = True
        end = len(self._tokens)
        self._cut = self._was_cut(cut)
        match self._state:
            case _State.START:
                if self._find_implied_start(end):
                    self._end_bare(end, Stop.CUT)
                else:
                    self._end_stray(end)
            case _State.HEADER:
                self._end_bare(end, Stop.CUT)
            case _State.CONTENT:
                self._end_message(end, Stop.CUT)
            case _State.PROBE if self._ends_as_bare(end, cut=True):
                self._end_implicitly()
                self._end_bare(end, Stop.CUT)
            case _State.PROBE:
                self._give_up_probe(end)
                self._end_message(end, Stop.CUT)
            case _State.VOID:
                if self._stray < end:
                    text = f"After an invented message: {self._text(self._stray, end)}"
                    self._drop(self._stray, end, Rule.R12, text)
        self._outbox.close_turn()
        return self._outbox.take()

    # -- Control tokens ----------------------------------------------------------------------

    def _read_control(self, at: int, token: int) -> None:
        stop = self._stops.get(token)
        if stop and self._state is not _State.VOID:
            self._last_stop = stop
        match self._state:
            case _State.START:
                self._read_between(at, token, stop)
            case _State.HEADER:
                self._read_in_header(at, token, stop)
            case _State.CONTENT:
                self._read_in_content(at, token, stop)
            case _State.PROBE:
                self._read_in_probe(at, token, stop)
            case _State.VOID:
                pass

    def _read_between(self, at: int, token: int, stop: Stop | None) -> None:
        if self._find_implied_start(at):
            self._read_in_header(at, token, stop)
        elif stop:
            self._end_stray(at)
            self._drop(at, at + 1, Rule.R1, "A stop token with no message to end.")
            self._stray = self._run = at + 1
        elif token == self._control.start or token == self._control.channel:
            self._end_stray(at)
            self._open_header(at, token)
            if token == self._control.channel:
                self._note(Rule.R2, at, at, "The message begins without <|start|>assistant.")
        else:
            self._run = at + 1

    def _read_in_header(self, at: int, token: int, stop: Stop | None) -> None:
        control = self._control
        if token == control.message:
            self._begin_message(at)
        elif stop:
            self._end_bare(at, stop)
        elif token == control.channel:
            self._header.sections.append((Section.CHANNEL, at + 1))
        elif token == control.constrain:
            self._header.sections.append((Section.CONSTRAIN, at + 1))
        elif token == control.start:
            self._end_bare(at, Stop.IMPLICIT)
            self._open_header(at, token)
        else:
            self._note(Rule.R8, at, at + 1, f"{self._spelling(token)} inside a header.")

    def _read_in_content(self, at: int, token: int, stop: Stop | None) -> None:
        if stop:
            self._end_message(at, stop)
        elif token == self._control.start or token == self._control.channel:
            self._open_header(at, token)
            self._state = _State.PROBE
        else:
            self._drop_from_content(at)

    def _read_in_probe(self, at: int, token: int, stop: Stop | None) -> None:
        control = self._control
        if token == control.message:
            header = self._read_header(at, has_message=True)
            if header.says_something and (header.names_analysis or not header.odd):
                self._end_implicitly()
                self._begin_message(at)
            else:
                self._give_up_probe(at)
                self._drop_from_content(at)
        elif stop:
            if self._ends_as_bare(at):
                self._end_implicitly()
                self._end_bare(at, stop)
            else:
                self._give_up_probe(at)
                self._end_message(at, stop)
        elif token == control.channel or token == control.start:
            begin = self._header.begin
            if self._read_header(at, has_message=True, skip=self._header.checked).odd:
                self._give_up_probe(at)
                begin = at
            elif token == control.channel:
                self._header.checked = len(self._header.sections)
                self._header.sections.append((Section.CHANNEL, at + 1))
                return
            self._open_header(at, token)
            self._header.begin = begin
            self._state = _State.PROBE
        elif token == control.constrain:
            self._header.sections.append((Section.CONSTRAIN, at + 1))
        else:
            self._note(Rule.R8, at, at + 1, f"{self._spelling(token)} inside a header.")

    # -- Between messages --------------------------------------------------------------------

    def _find_implied_start(self, at: int) -> bool:
        """R2: whether the text before this token begins a header by ` to=`, which is then open."""
        if not _IMPLIED_START.match(self._text(self._run, at)):
            return False
        begin = self._run
        self._end_stray(begin)
        self._state = _State.HEADER
        self._header = _OpenHeader(begin, begin, False, [(Section.AUTHOR, begin)])
        self._note(Rule.R2, begin, begin, "The message begins without <|start|>assistant.")
        return True

    def _end_stray(self, at: int) -> None:
        """R3: what stands between messages, up to this token."""
        begin, self._stray = self._stray, at
        if begin == at:
            return
        text = self._text(begin, at)
        if _ONLY_HEADER_WORDS.fullmatch(text):
            self._drop(begin, at, Rule.R3, f"Tokens between messages: {text}")
            return
        self._outbox.put_loose(
            LooseText(
                header=(begin, begin),
                body=(begin, at),
                stop_token=(at, at),
                text=text,
                stop=Stop.CUT,
                rule=Rule.R3,
                private=self._may_be_thought(text),
            )
        )

    # -- Headers -----------------------------------------------------------------------------

    def _open_header(self, at: int, token: int) -> None:
        starts = token == self._control.start
        section = Section.AUTHOR if starts else Section.CHANNEL
        self._header = _OpenHeader(at, at, starts, [(section, at + 1)])
        self._state = _State.HEADER

    def _note(self, rule: Rule, begin: int, end: int, text: str) -> None:
        """A repair of the open header, told with it."""
        self._header.notes.append(Repair((begin, end), rule, text))

    def _read_header(self, end: int, *, has_message: bool, skip: int = 0) -> Header:
        """The open header, up to this token; without the sections to skip."""
        open_header, message = self._header, self._message
        sections: list[tuple[Section, str]] = []
        for section, first in reversed(open_header.sections[skip:]):
            sections.append((section, self._text(first, end)))
            end = first - 1
        sections.reverse()
        in_call = message is not None and message.kind is MessageKind.TOOL_CALL
        setting = Setting(
            self._tools,
            starts=open_header.starts,
            has_message=has_message,
            after_call=self._called or in_call,
            transcript=bool(self._transcript),
        )
        return read_header(sections, setting)

    def _begin_message(self, at: int) -> None:
        """The header that `<|message|>` at this token ends."""
        header = self._read_header(at, has_message=True)
        if self._is_invented(header, at + 1):
            return
        self._analysis_lost = False
        self._drop_abandoned()
        self._open_message(_kind_of(header), header, at + 1)
        self._state = _State.CONTENT

    def _open_message(self, kind: MessageKind, header: Header, content: int) -> OpenMessage:
        """The message of the open header; its content begins with this token."""
        dropped = False
        if kind is MessageKind.INPUT:
            self._outbox.close_turn()
            self._called = False
        elif kind in CALLS:
            self._outbox.release()
            enough = self._called and not self._parallel and not self._transcript
            dropped = enough and kind is MessageKind.TOOL_CALL
        elif (
            kind is MessageKind.CONTENT and header.channel != Channel.FINAL and not self._transcript
        ):
            named = f"{header.channel} is no valid channel" if header.channel else "No channel"
            self._note(Rule.R5, content - 1, content, f"{named}: taken as final.")
        self._message = OpenMessage(
            kind,
            header,
            (self._header.start, content),
            tokenizer=self._tokenizer,
            outbox=self._outbox,
            dropped=dropped,
        )
        self._message.start(self._header.notes)
        return self._message

    def _is_invented(self, header: Header, end: int) -> bool:
        """R12: whether somebody else speaks who cannot; if so, it is dropped and all after it."""
        if self._transcript is None:
            self._transcript = header.foreign and not self._text(0, self._header.begin).strip()
        if not header.foreign or self._transcript:
            return False
        after_call = self._outbox.drop_after_call()
        begin = self._header.begin if after_call is None else after_call
        author = header.name or header.role.value
        text = f"The model invented a message by {author}; left out: {self._text(begin, end)}"
        self._drop(begin, end, Rule.R12, text)
        self._state = _State.VOID
        self._stray = end
        return True

    def _drop_abandoned(self) -> None:
        """R4: the part of a header before it was begun again."""
        if self._header.begin < self._header.start:
            self._drop(self._header.begin, self._header.start, Rule.R4, "A header begun again.")

    # -- Messages without <|message|> --------------------------------------------------------

    def _end_bare(self, at: int, stop: Stop) -> None:
        """R6, R7: a header that ends with no `<|message|>`; what is no header word is its text."""
        header = self._read_header(at, has_message=False)
        begin, end = self._header.start, _after(at, stop)
        if stop is Stop.IMPLICIT and header.foreign:  # begun again, so it invents nothing
            header = replace(header, role=Role.ASSISTANT, text="")
        if stop is not Stop.IMPLICIT and self._is_invented(header, end):
            return
        self._drop_abandoned()
        self._state = _State.START
        self._stray = self._run = end
        self._analysis_lost = self._analysis_lost or header.names_analysis
        is_framed = self._header.starts or self._has_channel()
        if stop is Stop.CUT and is_framed and is_cut_header(header.text):
            header = replace(header, role=Role.ASSISTANT, text="")
        if header.text.strip() or header.foreign:
            self._place_bare(header, at, stop)
        elif begin < end:
            rule = {Stop.CUT: Rule.CUT, Stop.IMPLICIT: Rule.R4}.get(stop, Rule.R6)
            text = f"A header without a message: {self._text(begin, at)}"
            self._drop(begin, end, rule, text)

    def _place_bare(self, header: Header, at: int, stop: Stop) -> None:
        """What becomes of the text of a header that ends before this token."""
        body = (self._header.sections[header.text_section][1], at)
        # While a thought is missing, only a real `<|channel|>` makes something else of a text.
        lost = header.names_analysis or (self._analysis_lost and not self._has_channel())
        if header.begins_call or header.foreign:
            self._end_bare_as(_kind_of(header), header, body, stop)
        elif header.channel == Channel.FINAL and not lost:
            header = replace(header, recipient=None, tool=None)
            self._end_bare_as(MessageKind.CONTENT, header, body, stop)
        else:
            # Unframed text before a header begun again stands between messages, as it were.
            between = stop is Stop.IMPLICIT and not header.says_something
            self._outbox.put_loose(
                LooseText(
                    header=(self._header.start, body[0]),
                    body=body,
                    stop_token=(at, _after(at, stop)),
                    text=header.text,
                    stop=stop,
                    rule=Rule.R3 if between else Rule.R6,
                    private=self._may_be_thought(header.text),
                )
            )

    def _may_be_thought(self, text: str) -> bool:
        return self._analysis_lost or _UNMARKED_ANALYSIS.match(text) is not None

    def _has_channel(self) -> bool:
        return any(section is Section.CHANNEL for section, _ in self._header.sections)

    def _end_bare_as(self, kind: MessageKind, header: Header, body: Span, stop: Stop) -> None:
        self._open_message(kind, header, body[0]).say_bare(header.text, body[1])
        self._end_message(body[1], stop)

    # -- Content -----------------------------------------------------------------------------

    def _say(self, begin: int, end: int) -> None:
        """Ordinary tokens inside a message."""
        assert self._message is not None
        self._message.say(self._tokens[begin:end], end)

    def _drop_from_content(self, at: int) -> None:
        """R11: a control token inside a message."""
        assert self._message is not None
        self._message.drop_control(at, self._spelling(self._tokens[at]))

    def _end_message(self, at: int, stop: Stop) -> None:
        """The message ends before this token, which is its stop token if there is one."""
        message = self._message
        assert message is not None
        end = _after(at, stop)
        self._message = None
        self._state = _State.START
        self._stray = self._run = end
        message.end(stop, (at, end), lambda: self._bytes(message.content, at), cut=self._cut)
        if message.kind in CALLS:
            self._called = self._called or message.kind is MessageKind.TOOL_CALL
            if not self._transcript:
                self._outbox.hold_after_call(end)

    # -- A header that may begin inside content ------------------------------------------------

    def _ends_as_bare(self, at: int, *, cut: bool = False) -> bool:
        """Whether the probed header, ended with no `<|message|>`, is one all the same."""
        header = self._read_header(at, has_message=False)
        if cut and is_cut_header(header.text):
            return True
        if header.odd:
            return False
        return (
            not header.text.strip()
            or header.names_analysis
            or header.channel == Channel.FINAL
            or header.begins_call
            or header.foreign
        )

    def _end_implicitly(self) -> None:
        begin = self._header.begin
        self._end_message(begin, Stop.IMPLICIT)
        self._note(Rule.R11, begin, begin, "The message before it has no stop token.")
        self._state = _State.HEADER

    def _give_up_probe(self, end: int) -> None:
        """It was no header: its control tokens are dropped, the rest is content."""
        self._state = _State.CONTENT
        at = self._header.begin
        for index in range(at, end):
            if self._tokens[index] not in self._ordinary:
                if index > at:
                    self._say(at, index)
                self._drop_from_content(index)
                at = index + 1
        if end > at:
            self._say(at, end)

    # -- Odds and ends -----------------------------------------------------------------------

    def _bytes(self, begin: int, end: int) -> bytes:
        """The ordinary tokens among these."""
        ids = [token for token in self._tokens[begin:end] if token in self._ordinary]
        return self._tokenizer.decode_bytes(ids)

    def _text(self, begin: int, end: int) -> str:
        return self._bytes(begin, end).decode("utf-8", errors="replace")

    def _spelling(self, token: int) -> str:
        if token in self._tokenizer.control_ids:
            return self._tokenizer.token_bytes(token).decode()
        return f"The unknown token {token}"

    def _drop(self, begin: int, end: int, rule: Rule, text: str) -> None:
        self._outbox.put(Repair((begin, end), rule, text, dropped=True))

    def _was_cut(self, cut: bool | None) -> bool:
        turn_over = self._last_stop in (Stop.RETURN, Stop.CALL)
        ended = self._state is _State.VOID or (
            self._state is _State.START
            and self._last_stop is not None
            and (turn_over or self._stray == len(self._tokens))
        )
        if cut is None:
            return not ended and self._tokens[-1:] != [self._control.endoftext]
        return cut and not (ended and turn_over)


def _after(at: int, stop: Stop) -> int:
    """One past the stop token, which may be missing."""
    return at if stop in (Stop.CUT, Stop.IMPLICIT) else at + 1


def _kind_of(header: Header) -> MessageKind:
    if header.foreign:
        return MessageKind.INPUT
    if header.tool is not None:
        return MessageKind.TOOL_CALL
    if header.recipient is not None:
        return MessageKind.UNOFFERED_CALL
    for channel, kind in _KIND_OF_CHANNEL.items():
        if header.channel == channel:
            return kind
    return MessageKind.CONTENT
