"""Events on their way out, in order, with those held back whose fate the rest of the turn decides.

Two things wait. Text without a message of its own (R3, R6) is the answer if the turn brings nothing
else, and not otherwise. What follows a call (R12) is void if an invented tool result comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.harmony.events import (
    ContentDelta,
    HarmonyEvent,
    MessageEnd,
    MessageKind,
    MessageStart,
    Repair,
    Rule,
    Span,
    Stop,
)
from ossia.harmony.messages import Channel, Message, Role

_CHANNEL_OF_KIND = {
    MessageKind.REASONING: Channel.ANALYSIS,
    MessageKind.CONTENT: Channel.FINAL,
}


@dataclass(frozen=True)
class LooseText:
    """Text that no header made a message."""

    header: Span
    body: Span
    stop_token: Span
    """Empty where there is none."""
    text: str
    stop: Stop
    rule: Rule
    """R3: it stood between messages. R6: its message lacks `<|message|>`."""
    private: bool = False
    """It may be reasoning, so it never becomes the answer."""

    def as_message(self, kind: MessageKind) -> list[HarmonyEvent]:
        channel = _CHANNEL_OF_KIND[kind]
        what = "Text between messages" if self.rule is Rule.R3 else "A message without <|message|>"
        message = Message.of_text(Role.ASSISTANT, self.text, channel=channel)
        return [
            MessageStart(self.header, kind, Role.ASSISTANT, channel=channel),
            Repair(self.body, self.rule, f"{what} is taken as {kind.value}."),
            ContentDelta(self.body, kind, self.text),
            MessageEnd(self.stop_token, kind, message, self.stop),
        ]

    def as_repair(self) -> Repair:
        span = self.header[0], self.stop_token[1]
        return Repair(span, Rule.R3, f"Text between messages: {self.text}", dropped=True)


class Outbox:
    """Takes events in the order of their tokens; `out` holds those that may go."""

    def __init__(self) -> None:
        self.out: list[HarmonyEvent] = []
        self._held: list[HarmonyEvent | LooseText] = []
        self._has_output = False
        self._call_end: int | None = None

    def take(self) -> list[HarmonyEvent]:
        out, self.out = self.out, []
        return out

    def put(self, event: HarmonyEvent) -> None:
        if self._held or self._call_end is not None:
            self._held.append(event)
        else:
            self.out.append(event)

    def put_loose(self, loose: LooseText) -> None:
        """Text whose meaning depends on the rest of the turn, as far as that is still open."""
        bare = loose.rule is Rule.R6
        if bare and any(isinstance(h, LooseText) and h.rule is Rule.R6 for h in self._held):
            self.note_output()  # neither of the two is the turn's only output
        if self._has_output or (bare and loose.private):
            self.note_output()
            for event in self._beside_output(loose):
                self.put(event)
        else:
            self._held.append(loose)

    def note_output(self) -> None:
        """The turn has an output now: loose text is not its answer."""
        if self._has_output:
            return
        self._has_output = True
        held, self._held = self._held, []
        for entry in held:
            self.out += self._beside_output(entry)

    def hold_after_call(self, end: int) -> None:
        """A call ended before this token: from here on events wait for `release`."""
        self._call_end = end

    def release(self) -> None:
        """Nothing can take back what is held."""
        self.note_output()
        self._call_end = None
        self.out += [event for entry in self._held for event in self._beside_output(entry)]
        self._held = []

    def drop_after_call(self) -> int | None:
        """Forgets what came after the last call; returns where that began, if there was a call."""
        end = self._call_end
        if end is not None:
            self._held, self._call_end = [], None
        return end

    def close_turn(self) -> None:
        """The turn is over; whatever is still loose is its answer when it has no other."""
        if self._has_output:
            self.release()
        has_bare = any(isinstance(h, LooseText) and h.rule is Rule.R6 for h in self._held)
        for entry in self._held:
            if not isinstance(entry, LooseText):
                self.out.append(entry)
            elif entry.rule is Rule.R3 and has_bare:
                self.out.append(entry.as_repair())
            else:
                private = MessageKind.REASONING if entry.private else MessageKind.CONTENT
                self.out += entry.as_message(private)
        self._held = []
        self._has_output = False
        self._call_end = None

    @staticmethod
    def _beside_output(entry: HarmonyEvent | LooseText) -> list[HarmonyEvent]:
        if not isinstance(entry, LooseText):
            return [entry]
        if entry.rule is Rule.R3:
            return [entry.as_repair()]
        return entry.as_message(MessageKind.REASONING)
