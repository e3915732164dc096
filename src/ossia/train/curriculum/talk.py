"""Everything that is said to nano besides sums: greetings, who it is, and what it cannot do.

What the model cannot do is drawn from wide templates and from word salad, so that anything that is
not a small sum is met with the same honest answer rather than with a guess.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from ossia.train.curriculum.arithmetic import held_out
from ossia.evals.words import ADJECTIVES, NOUNS, SMALL, VERBS

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
    if kind < 0.12:
        return Exchange(_greeting(rng), "A greeting.", HELLO)
    if kind < 0.32:
        return Exchange(_who(rng), "They ask who I am.", WHO_I_AM)
    if kind < 0.40:
        return Exchange(_thanks(rng), "They thank me.", WELCOME)
    if kind < 0.65:
        return Exchange(_too_hard(rng), "A sum beyond me.", BEYOND)
    return Exchange(_other(rng), "Not a sum.", SORRY)


ASKED = (
    "What is {}?", "What is {}?", "What is {}?", "what is {}", "What's {}?", "what's {}?",
    "Compute {}.", "Compute {}", "compute {}", "Calculate {}.", "Calculate {}", "calculate {}",
    "{}", "{}", "{}=?", "{} = ?", "{} =", "{}=", "{}?", "How much is {}?", "how much is {}?",
    "Please compute {}.", "Can you tell me what {} is?", "Work out {}.", "Tell me {}.",
    "Solve {}", "What does {} equal?", "What do you get for {}?", "I need {}.", "Evaluate {}.",
    "Hi, what is {}?", "Hello! What is {}?", "What is the result of {}?", "Find {}.",
)  # fmt: skip
"""Ways to ask for the value of an expression."""

_NAMES = ("", "", "", " nano", ", nano", " there", " little model", " my friend", " Ossia")
_GREETINGS = (
    "hello", "hi", "hey", "good morning", "good evening", "good afternoon", "good day", "greetings",
    "welcome", "hello again", "hi again",
)  # fmt: skip
_PLEASANTRIES = (
    "", "", "", ", how are you", ", how are you today", ", how is it going", ", nice to meet you",
    ", good to see you", ", what's up", ", are you there", ", I am new here",
)  # fmt: skip

_WHO = (
    "who are you", "what are you", "what is your name", "what's your name", "introduce yourself",
    "which model are you", "what model is this", "are you a robot", "are you an AI", "what is nano",
    "who made you", "who built you", "who trained you", "are you gpt-oss", "do you have a name",
    "who am I talking to", "who is this", "what is Ossia", "are you human", "are you a person",
    "tell me about yourself", "say something about yourself", "what should I call you",
    "describe yourself",
)  # fmt: skip
_MODELS = ("ChatGPT", "GPT-4", "Gemini", "Llama", "gpt-oss-20b", "Mistral", "Alexa", "Siri", "Qwen")
_WHAT = (
    "what can you do", "what can I ask you", "how can you help me", "help", "what do you know",
    "what are you good at", "what are you for", "what are your skills", "what do you do",
    "what are you able to do", "how do I use you", "what questions can you answer", "help me",
)  # fmt: skip
_ASKING = (
    "",
    "",
    "",
    "so ",
    "please tell me ",
    "tell me, ",
    "can you tell me ",
    "I wonder ",
    "and ",
)

_THANKS = (
    "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "cheers", "bye",
    "well done", "good job", "goodbye", "see you", "nice work", "that helped", "that was great",
)  # fmt: skip
_BEFORE_THANKS = ("", "", "", "great, ", "ok, ", "perfect, ", "good, ", "oh, ", "ah, ", "yes, ")
_AFTER_THANKS = (
    "",
    "",
    "",
    " nano",
    " so much",
    " for your help",
    ", that was all",
    ", you are good",
)


def _greeting(rng: random.Random) -> str:
    return _varied(rng, f"{_one(rng, _GREETINGS)}{_one(rng, _NAMES)}{_one(rng, _PLEASANTRIES)}")


def _who(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.2:
        first, second = _one(rng, _MODELS), _one(rng, _MODELS)
        asked = f"are you {first}" if draw < 0.1 else f"are you {first} or {second}"
    else:
        asked = _one(rng, _WHO if draw < 0.7 else _WHAT)
    return _varied(rng, f"{_one(rng, _ASKING)}{asked}")


def _thanks(rng: random.Random) -> str:
    spoken = f"{_one(rng, _BEFORE_THANKS)}{_one(rng, _THANKS)}{_one(rng, _AFTER_THANKS)}"
    return _varied(rng, spoken)


def _too_hard(rng: random.Random) -> str:
    """Division, powers, decimals, long products and numbers of five digits and more."""
    a, b = rng.randrange(2, 1000), rng.randrange(2, 1000)
    big, long = rng.randrange(10**4, 10 ** rng.randrange(5, 10)), rng.randrange(100, 1000)
    if any(held_out(x, y) for x, y in itertools.combinations((a, b, big, long), 2)):
        return _too_hard(rng)
    hard = (
        f"{a} / {b}", f"{a}/{b}", f"{a} divided by {b}", f"{a} ÷ {b}", f"{a} : {b}", f"{a} mod {b}",
        f"{big} * {b}", f"{a} × {big}", f"{big} + {a}", f"{big} - {b}", f"{a} plus {big}",
        f"{long} * {b}", f"{b} times {long}", f"{long} × {b}", f"{long}x{b}", f"{a}*{long}",
        f"{a}.{b % 10} + {b}.{a % 10}", f"{a % 100}.{b} * {b % 10}", f"{a}^{b % 10}",
        f"{a} to the power of {b % 10}", f"{a} squared", f"{a} cubed", f"the square root of {a}",
        f"the root of {a}", f"the logarithm of {b}", f"{b % 10} percent of {a}", f"{a}%", f"{b}!",
        f"{a} factorial", f"half of {a}", f"a third of {b}", f"the sine of {a}", f"{a} over {b}",
    )  # fmt: skip
    return rng.choice(ASKED).format(_one(rng, hard))


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
