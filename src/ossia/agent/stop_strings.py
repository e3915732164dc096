"""Stop strings over a stream of text: gives out what can no longer be part of one.

The engine knows token ids only, so stop strings are matched here, on text. What is held back is
never longer than the longest stop string less one character.
"""

from __future__ import annotations

from collections.abc import Sequence

from ossia.errors import RequestError


class StopStrings:
    """Feed text, take what is safe to show; `hit` is the stop string that ended the stream."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises RequestError when a stop string is empty."""
        if any(not stop for stop in stops):
            raise RequestError("A stop string must hold at least one character; got an empty one.")
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """The text that may be shown now. After a hit: everything before the stop string, once."""
        if self.hit is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            # The one that is complete first wins, of two the longer: so it does not matter in
            # which pieces the text came.
            at, self.hit = min(found, key=lambda pair: (pair[0] + len(pair[1]), pair[0]))
            shown, self._held = self._held[:at], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back for a stop string that did not come."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
