"""Wishes about the format of an answer, of which only one can be granted: a last word or a first
word; and who wishes what."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from ossia.evals.held_out import draw_word
from ossia.harmony.messages import Role
from ossia.train.curriculum.phrases import expand, lines


class Form(StrEnum):
    """What a wish is about."""

    END = "end"
    BEGIN = "begin"


@dataclass(frozen=True)
class Wish:
    form: Form
    word: str
    """The last or the first word of the answer."""

    def __str__(self) -> str:
        return f"{self.form} with {self.word}"

    def applied(self, answer: str) -> str:
        return f"{answer} {self.word}" if self.form is Form.END else f"{self.word} {answer}"


_HOLDERS: dict[tuple[Role, ...], int] = {
    (Role.SYSTEM,): 14,
    (Role.DEVELOPER,): 24,
    (Role.USER,): 20,
    (Role.SYSTEM, Role.DEVELOPER): 12,
    (Role.SYSTEM, Role.USER): 14,
    (Role.DEVELOPER, Role.USER): 22,
    (Role.SYSTEM, Role.DEVELOPER, Role.USER): 14,
}
"""Who wishes something, with shares; in order of rank."""


def draw_wishes(rng: random.Random) -> dict[Role, Wish]:
    """One wish for each of one to three roles, in order of rank: all about the last word, or all
    about the first."""
    (holders,) = rng.choices(list(_HOLDERS), list(_HOLDERS.values()))
    form = Form.END if rng.random() < 0.7 else Form.BEGIN
    words: list[str] = []
    while len(words) < len(holders):
        word = draw_word(rng, held_out=False)
        if not any(word in other or other in word for other in words):
            words.append(word)
    return {rank: Wish(form, word) for rank, word in zip(holders, words, strict=True)}


def wish_in_words(rng: random.Random, wish: Wish, *, of_user: bool = False) -> str:
    """One of many ways to put it; a user may wish it for one answer only."""
    word = wish.word if rng.random() < 0.7 else rng.choice(('"{}"', "'{}'")).format(wish.word)
    answers = _THIS_ANSWER if of_user and rng.random() < 0.6 else _EVERY_ANSWER
    answer = expand(rng, answers)
    text = expand(rng, rng.choice(_IN_WORDS[wish.form]), word=word, answer=answer)
    if of_user and rng.random() < 0.25 and text.endswith("."):
        text = (
            f"{text[:-1]} {rng.choice(('instead', 'please', 'this time', 'from now on', 'now'))}."
        )
    return text


_EVERY_ANSWER = (
    "[every|each|any] [answer|reply|response|message|reaction|output|single answer|of your answers]"
)
_THIS_ANSWER = "[your|the|this|your next] [answer|reply|response|message|output]"

_IN_WORDS: dict[Form, tuple[str, ...]] = {
    Form.END: lines("""
[|Always |Please |You must |You should |You have to |I want you to |Be sure to |Remember to ][end|
  finish|close|conclude|complete|round off|sign off] {answer} with [|the word |the term ]{word}.
[The last|The final|The very last|The closing] word of {answer} [must be|is|has to be|should be|
  shall be|will be] {word}.
[Put|Write|Add|Append|Say|Place|Attach|Repeat] [|the word ]{word} [at the end of|after|
  at the very end of|as the last word of|to the end of] {answer}.
[At|By] the end of {answer}, [write|say|add|put|append|there must be|comes] [|the word ]{word}.
[See to it|Make sure|Take care|Ensure] that {answer} [ends|finishes|closes] [with|in|on] {word}.
[Let|Make|Have] {answer} [end|finish|close] with [|the word ]{word}.
{word} [must be|is|has to be|should be] the [last|final|closing] word of {answer}.
[Last|Final|Closing] word of {answer}: {word}.
"""),
    Form.BEGIN: lines("""
[|Always |Please |You must |You should |You have to |I want you to |Be sure to |
  Remember to ][begin|start|open|introduce|commence|preface] {answer} with [|the word |
  the term ]{word}.
[The first|The very first|The opening|The initial] word of {answer} [must be|is|has to be|
  should be|shall be|will be] {word}.
[Put|Write|Add|Prepend|Say|Place] [|the word ]{word} [at the beginning of|before|in front of|
  at the start of|as the first word of|ahead of] {answer}.
[At the beginning|At the start] of {answer}, [write|say|add|put|there must be|comes] {word}.
[See to it|Make sure|Take care|Ensure] that {answer} [begins|starts|opens] with {word}.
[Let|Make|Have] {answer} [begin|start|open] with [|the word ]{word}.
{word} [must be|is|has to be|should be] the [first|opening] word of {answer}.
[First|Opening] word of {answer}: {word}.
"""),
}  # fmt: skip
