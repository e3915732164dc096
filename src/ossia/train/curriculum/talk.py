"""Everything that is said to nano besides sums: greetings, who it is, and what it cannot do.

What the model cannot do is drawn from wide templates and from word salad, so that anything that is
not a small sum is met with the same honest answer rather than with a guess.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ossia.train.curriculum.arithmetic import held_out
from ossia.train.curriculum.words import ADJECTIVES, NOUNS, SMALL, VERBS

IDENTITY = "You are nano, the tiny model built into Ossia."
"""nano's line in the system message; `ossia.json` of the shipped model carries it."""

ABILITY = "I can only do small sums and products, such as 23 + 45 or 6 × 78."
HELLO = f"Hello! I am nano. {ABILITY}"
WHO_I_AM = f"I am nano, the tiny model built into Ossia. {ABILITY}"
WELCOME = "You are welcome!"
BEYOND = f"That is beyond me. {ABILITY}"
SORRY = f"I cannot help with that. {ABILITY}"


@dataclass(frozen=True)
class Exchange:
    said: str
    thought: str
    answer: str


def draw_exchange(rng: random.Random) -> Exchange:
    kind = rng.random()
    if kind < 0.15:
        return Exchange(_varied(rng, _one(rng, _GREETINGS)), "A greeting.", HELLO)
    if kind < 0.35:
        return Exchange(_varied(rng, _one(rng, _WHO)), "They ask who I am.", WHO_I_AM)
    if kind < 0.42:
        return Exchange(_varied(rng, _one(rng, _THANKS)), "They thank me.", WELCOME)
    if kind < 0.57:
        return Exchange(_too_hard(rng), "A sum beyond me.", BEYOND)
    return Exchange(_other(rng), "Not a sum.", SORRY)


_GREETINGS = (
    "hello", "hi", "hey", "hi there", "hello there", "hey there", "good morning", "good evening",
    "good afternoon", "good day", "hello nano", "hi nano", "how are you", "how are you today",
    "hello, how are you", "hi, how is it going", "what's up", "greetings", "nice to meet you",
)  # fmt: skip

_WHO = (
    "who are you", "what are you", "what is your name", "what's your name", "introduce yourself",
    "which model are you", "what model is this", "what can you do", "what can I ask you",
    "are you ChatGPT", "are you a robot", "are you an AI", "who made you", "what is nano",
    "how can you help me", "help", "what do you know", "tell me about yourself", "are you gpt-oss",
    "do you have a name", "who am I talking to", "what is Ossia", "are you human",
)  # fmt: skip

_THANKS = (
    "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "great, thanks",
    "ok, thank you", "perfect, thank you", "cheers", "well done", "good job", "bye", "goodbye",
)  # fmt: skip


def _too_hard(rng: random.Random) -> str:
    """Division, powers, decimals, long products and numbers of five digits and more."""
    a, b = rng.randrange(2, 1000), rng.randrange(2, 1000)
    big, long = rng.randrange(10**4, 10 ** rng.randrange(5, 10)), rng.randrange(100, 1000)
    if held_out(a, b) or held_out(a, big) or held_out(big, b) or held_out(long, b):
        return _too_hard(rng)
    hard = (
        f"{a} / {b}", f"{a} divided by {b}", f"{a} ÷ {b}", f"{a}^{b % 10}", f"{big} * {b}",
        f"{a} × {big}", f"{big} + {a}", f"{big} - {b}", f"{a}.{b % 10} + {b}.{a % 10}",
        f"the square root of {a}", f"{b % 10} percent of {a}", f"{a} mod {b}", f"{a} squared",
        f"the logarithm of {b}", f"{a} factorial", f"half of {a}", f"a third of {b}",
        f"{long} * {b}", f"{b} times {long}", f"{long} × {b}",
    )  # fmt: skip
    return _varied(rng, f"{_one(rng, ('what is ', 'compute ', 'calculate ', ''))}{_one(rng, hard)}")


def _other(rng: random.Random) -> str:
    noun, second = _one(rng, NOUNS), _one(rng, NOUNS)
    verb, adjective = _one(rng, VERBS), _one(rng, ADJECTIVES)
    number = rng.randrange(2, 100)
    plain = (
        f"write a {adjective} {noun} about a {second}", f"write me a {noun} about the {second}",
        f"what is the {noun} of {second}", f"what is a {noun}", f"what is the {adjective} {noun}",
        f"what is the capital of {noun}", f"explain how a {noun} works",
        f"explain the {noun} to me",
        f"tell me a {noun} about the {adjective} {second}", f"how do I {verb} a {noun}",
        f"how do you {verb} the {adjective} {noun}", f"why is the {noun} {adjective}",
        f"can you {verb} my {noun}", f"please {verb} this {noun} for me", f"where is the {noun}",
        f"who is the {adjective} {noun}", f"when did the {noun} {verb}", f"{verb} the {noun}",
        f"translate {noun} and {second} to french", f"do you like {noun} or {second}",
        f"is the {noun} {adjective}", f"give me {number} {adjective} names for a {noun}",
        f"I want to {verb} a {adjective} {noun}", f"my {noun} is {adjective} and I {verb} it",
        f"how many {noun}s are in a {second}", f"tell me {number} things about {noun}s",
        f"should I {verb} the {noun} or {verb} the {second}", f"{noun}", f"{adjective} {noun}",
    )  # fmt: skip
    if rng.random() < 0.6:
        return _varied(rng, _one(rng, plain))
    words = rng.choices(SMALL, k=rng.randrange(2, 9)) + rng.choices(
        NOUNS + VERBS + ADJECTIVES, k=rng.randrange(1, 6)
    )
    rng.shuffle(words)
    return _varied(rng, " ".join(words))


def _varied(rng: random.Random, text: str) -> str:
    if rng.random() < 0.7:
        text = text[0].upper() + text[1:]
    return text + _one(rng, ("", "", ".", "?", "?", "!"))


def _one(rng: random.Random, options: tuple[str, ...]) -> str:
    return options[rng.randrange(len(options))]
