"""One message from its header to its stop token: bytes in, events out.

Arguments of a call are told as they come and repaired at the end, when they are known as a whole.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from ossia.harmony.events import (
    CALLS,
    ContentDelta,
    MessageEnd,
    MessageKind,
    MessageStart,
    Repair,
    Rule,
    Span,
    Stop,
)
from ossia.harmony.header import Header
from ossia.harmony.messages import Channel, Message
from ossia.harmony.offered import repair_arguments
from ossia.harmony.outbox import Outbox
from ossia.harmony.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class OpenMessage:
    """A message while its content comes in."""

    def __init__(
        self,
        kind: MessageKind,
        header: Header,
        header_span: Span,
        *,
        tokenizer: Tokenizer,
        outbox: Outbox,
        dropped: bool,
    ) -> None:
        """`dropped`: a further call where one was wanted, told as one `Repair` at its end."""
        self.kind = kind
        self._header = header
        self._begin, self.content = header_span
        self._told = self.content
        """The first token that no event has covered yet."""
        self._tokenizer = tokenizer
        self._outbox = outbox
        self._dropped = dropped
        self._parts: list[str] = []
        self._decoder = _Utf8Decoder("replace")

    def start(self, notes: Iterable[Repair]) -> None:
        """Tells the header, and how it was repaired; `notes` are what its tokens gave rise to."""
        if self._dropped:
            return
        header, span, put = self._header, (self._begin, self.content), self._outbox.put
        put(
            MessageStart(
                span,
                self.kind,
                header.role,
                header.name,
                header.channel,
                header.recipient,
                header.content_type,
            )
        )
        for note in notes:
            put(note)
        for rule, text in header.repairs:
            put(Repair(span, rule, text))
        if self.kind is MessageKind.UNOFFERED_CALL:
            put(Repair(span, Rule.R9, f"{header.recipient} is not an offered tool."))
        elif self.kind is MessageKind.TOOL_CALL and header.channel == Channel.FINAL:
            put(Repair(span, Rule.R9, "A call on the final channel."))

    def say(self, ids: Sequence[int], end: int) -> None:
        """More ordinary tokens, of which the last stands before the token `end`."""
        text = self._decoder.decode(self._tokenizer.decode_bytes(ids))
        if text:
            self._parts.append(text)
            self._tell(text, end)

    def say_bare(self, text: str, end: int) -> None:
        """The text that a header without `<|message|>` holds, up to the token `end`."""
        if not self._dropped:
            rule = Rule.R7 if self.kind is MessageKind.CONTENT else Rule.R6
            repair = Repair((self._told, end), rule, f"{self.kind.value} without <|message|>.")
            self._outbox.put(repair)
        self._parts.append(text)
        self._tell(text, end)

    def _tell(self, text: str, end: int) -> None:
        if self._dropped:
            return
        if text.strip():
            self._outbox.note_output()
        self._outbox.put(ContentDelta((self._told, end), self.kind, text))
        self._told = end

    def drop_control(self, at: int, spelling: str) -> None:
        """R11: the control token `at` is no part of the text."""
        if self._dropped:
            return
        if self._told < at:  # bytes of a character that is not complete yet
            self._tell("", at)
        repair = Repair((at, at + 1), Rule.R11, f"{spelling} inside a message.", dropped=True)
        self._outbox.put(repair)
        self._told = at + 1

    def end(self, stop: Stop, span: Span, content: Callable[[], bytes], *, cut: bool) -> None:
        """The message is over. `span` is the stop token's, empty where there is none; `content`
        gives the bytes of all its tokens; `cut`: a missing stop token means that it was cut short.
        """
        rest = self._decoder.decode(b"", final=True)
        self._parts.append(rest)
        text = "".join(self._parts)
        if self._dropped:
            what = f"Only the first call of a turn counts; left out: {self._header.recipient} "
            repair = Repair((self._begin, span[1]), Rule.PARALLEL, what + text, dropped=True)
            self._outbox.put(repair)
            return
        if rest or self._told < span[0]:
            self._tell(rest, span[0])
        put, header, whole = self._outbox.put, self._header, True
        replaced = text.count(_REPLACEMENT)
        if replaced and replaced > content().count(_REPLACEMENT.encode()):
            put(Repair(span, Rule.R0, "Bytes that are not UTF-8 are shown as U+FFFD."))
        if self.kind is MessageKind.TOOL_CALL and header.tool is not None:
            arguments = repair_arguments(header.tool, text)
            text, whole = arguments.text, arguments.whole and not (cut and header.tool.raw_text)
            for repair in arguments.repairs:
                put(Repair(span, Rule.R10, repair))
        for repair in self._unusual_end(stop, span, cut):
            put(repair)
        message = Message.of_text(
            header.role,
            text,
            name=header.name,
            channel=header.channel,
            recipient=header.recipient,
            content_type=header.content_type,
        )
        put(MessageEnd(span, self.kind, message, stop, whole or stop is not Stop.CUT))

    def _unusual_end(self, stop: Stop, span: Span, cut: bool) -> Iterable[Repair]:
        is_call = self.kind in CALLS
        if stop is Stop.CUT:
            if cut or is_call:
                what = "call" if is_call else "message"
                yield Repair(span, Rule.CUT, f"The stream ended before the {what} did.")
        elif is_call and stop is not Stop.CALL:
            yield Repair(span, Rule.R9, "A call that does not end with <|call|>.")
        elif not is_call and stop is Stop.CALL:
            yield Repair(span, Rule.R9, "<|call|> ends a message that calls nothing.")
