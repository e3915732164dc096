"""Problems and talk as Harmony conversations: how things are asked, under which system message, and
after which earlier turns. The effort that a system message asks for changes nothing yet.

`lessons` is an endless stream, a pure function of its seed. Earlier turns keep their final answers
only, as rendering drops the analysis of turns that a final has closed.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ossia.harmony.messages import (
    Channel,
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
)
from ossia.train.curriculum.arithmetic import (
    Problem,
    Skill,
    draw_problem,
    may_train,
    working,
)
from ossia.train.curriculum.talk import ASKED, IDENTITY, draw_exchange


@dataclass(frozen=True)
class Mix:
    """What the lessons of one stage are made of."""

    skills: Mapping[Skill, float] = field(
        default_factory=lambda: {
            Skill.ADD: 0.15,
            Skill.SUBTRACT: 0.15,
            Skill.MULTIPLY: 0.22,
            Skill.ADD_TWICE: 0.08,
            Skill.MULTIPLY_ADD: 0.20,
            Skill.TALK: 0.20,
        }
    )
    """Shares of the lessons."""
    full_system: float = 0.15
    """Share under the whole system message that `ossia chat` writes; it is long, so that early
    stages train mostly without one."""
    short_system: float = 0.05
    """Share under an identity line alone."""
    developer: float = 0.05
    earlier_turns: float = 0.10


@dataclass(frozen=True)
class Lesson:
    """A conversation that ends in the assistant's analysis and final answer."""

    skill: Skill
    conversation: Conversation


def lessons(seed: int, mix: Mix) -> Iterator[Lesson]:
    """Endless lessons in which no held-out pair of numbers occurs."""
    rng = random.Random(seed)
    while True:
        yield draw_lesson(rng, mix)


def draw_lesson(rng: random.Random, mix: Mix) -> Lesson:
    messages = _preface(rng, mix)
    while rng.random() < mix.earlier_turns:
        said, _, answer = _draw_turn(rng, _draw_skill(rng, mix))
        messages.append(Message.of_text(Role.USER, said))
        messages.append(Message.of_text(Role.ASSISTANT, answer, channel=Channel.FINAL))
    skill = _draw_skill(rng, mix)
    said, thought, answer = _draw_turn(rng, skill)
    messages += [
        Message.of_text(Role.USER, said),
        Message.of_text(Role.ASSISTANT, thought, channel=Channel.ANALYSIS),
        Message.of_text(Role.ASSISTANT, answer, channel=Channel.FINAL),
    ]
    return Lesson(skill, Conversation(tuple(messages)))


def chat_system(effort: Effort, date: datetime.date) -> SystemContent:
    """The system message under which `ossia chat` runs nano."""
    return SystemContent(
        model_identity=IDENTITY,
        reasoning_effort=effort,
        conversation_start_date=date.isoformat(),
    )


def question(rng: random.Random, problem: Problem) -> str:
    """One of many ways to ask for a problem's value."""
    if problem.c is None and rng.random() < 0.15:
        return rng.choice(_SENTENCES[problem.operator]).format(a=problem.a, b=problem.b)
    times, plus, minus = rng.choice(_SYMBOLS) if rng.random() < 0.8 else rng.choice(_SPOKEN)
    spelled = {"×": times, "+": plus, "−": minus}
    terms = [f"{problem.a}{spelled[problem.operator]}{problem.b}"]
    if problem.c is not None:
        terms += [spelled[problem.then], str(problem.c)]
        if problem.operator == "×" and problem.then == "+" and rng.random() < 0.25:
            terms.reverse()
    return rng.choice(ASKED).format("".join(terms))


def answer(problem: Problem) -> str:
    return f"{problem} = {problem.value}.".replace("-", "−")


_SYMBOLS = (
    (" * ", " + ", " - "),
    (" × ", " + ", " − "),
    (" x ", " + ", " - "),
    (" · ", " + ", " – "),
    ("*", "+", "-"),
    ("×", "+", "−"),
    ("x", "+", "-"),
)
_SPOKEN = ((" times ", " plus ", " minus "), (" multiplied by ", " plus ", " minus "))

_SENTENCES = {
    "+": (
        "What is the sum of {a} and {b}?", "Add {a} and {b}.", "add {a} and {b}", 
        "Add {a} to {b}.", "What do {a} and {b} make together?",
    ),
    "−": (
        "What is the difference of {a} and {b}?", "Subtract {b} from {a}.", "Take {b} from {a}.",
        "subtract {b} from {a}", "How much is {a} less {b}?", "What is {a} take away {b}?",
    ),
    "×": (
        "What is the product of {a} and {b}?", "Multiply {a} by {b}.", "Multiply {a} and {b}.",
        "multiply {a} with {b}", "How much is {a} multiplied with {b}?", "What do {a} {b}s make?",
    ),
}  # fmt: skip

_INSTRUCTIONS = (
    "Be brief.", "Answer politely.", "You are a helpful assistant.", "Be helpful and precise.",
    "Answer in English.", "You help pupils with their homework.", "Think step by step.",
    "Answer the question of the user.", "Be concise.", "You are a calculator.",
)  # fmt: skip


def _draw_turn(rng: random.Random, skill: Skill) -> tuple[str, str, str]:
    """What the user says, the analysis, the final answer."""
    if skill is Skill.TALK:
        exchange = draw_exchange(rng)
        return exchange.said, exchange.thought, exchange.answer
    problem = draw_problem(rng, skill)
    while not may_train(problem):
        problem = draw_problem(rng, skill)
    return question(rng, problem), working(problem), answer(problem)


def _draw_skill(rng: random.Random, mix: Mix) -> Skill:
    (skill,) = rng.choices(list(mix.skills), list(mix.skills.values()))
    return skill


def _preface(rng: random.Random, mix: Mix) -> list[Message]:
    """The system and developer messages, if any."""
    messages: list[Message] = []
    draw = rng.random()
    if draw < mix.full_system + mix.short_system:
        date = datetime.date(2024, 7, 1) + datetime.timedelta(days=rng.randrange(365 * 12))
        system = chat_system(rng.choice(tuple(Effort)), date)
        if draw >= mix.full_system:
            system = SystemContent(
                IDENTITY, reasoning_effort=None, knowledge_cutoff=None, valid_channels=None
            )
        messages.append(Message(Role.SYSTEM, (system,)))
    if rng.random() < mix.developer:
        instructions = DeveloperContent(rng.choice(_INSTRUCTIONS))
        messages.append(Message(Role.DEVELOPER, (instructions,)))
    return messages
