"""Stop strings over streams, held against plain searching in the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.agent.stop_strings import StopStrings
from ossia.errors import RequestError

text = st.text(alphabet="abc", max_size=30)
stop = st.text(alphabet="abc", min_size=1, max_size=4)


def expected(whole: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop string that is complete first ends the text; of several, the longest."""
    for end in range(len(whole) + 1):
        hits = [s for s in stops if whole[:end].endswith(s)]
        if hits:
            longest = max(hits, key=len)
            return whole[: end - len(longest)], longest
    return whole, None


@given(text, st.lists(stop, max_size=3), st.lists(st.integers(1, 5), min_size=1))
def test_equals_searching_the_whole_text_in_any_pieces(
    whole: str, stops: list[str], sizes: list[int]
) -> None:
    filtered = StopStrings(stops)
    shown, at, turn = "", 0, 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        shown += filtered.feed(whole[at : at + size])
        at, turn = at + size, turn + 1
    if filtered.hit is None:
        shown += filtered.finish()
    assert (shown, filtered.hit) == expected(whole, stops)


def test_shows_at_once_what_cannot_become_a_stop_string() -> None:
    filtered = StopStrings(["END"])
    assert filtered.feed("abc") == "abc"
    assert filtered.feed("xE") == "x"
    assert filtered.feed("NX") == "ENX"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopStrings([""])
