"""Arithmetic as conversations: how problems are asked, thought through and answered."""

from __future__ import annotations

import random

from ossia.harmony.messages import Conversation, Effort, Message
from ossia.train.curriculum.arithmetic import Problem, draw_training_problem, working
from ossia.train.curriculum.lesson import (
    Lesson,
    Setting,
    Skill,
    analysis,
    developer_message,
    final,
    system_message,
    user,
)

EARLIER_TURNS = 0.12
"""Share of the lessons that begin with an earlier question and its answer."""
DEVELOPER = 0.08
"""Share under instructions of a developer that change nothing."""


def draw_sum(rng: random.Random, setting: Setting, skill: Skill) -> Lesson:
    """One problem of the skill, asked, worked as long as the effort asks for, and answered."""
    messages = [system_message(rng, setting)]
    if rng.random() < DEVELOPER:
        messages.append(developer_message(rng.choice(_INSTRUCTIONS)))
    while rng.random() < EARLIER_TURNS:
        earlier = draw_training_problem(rng, rng.choice((Skill.SUM, Skill.PRODUCT)))
        # Rendering drops the working of earlier turns, and learns nothing from what is left.
        messages += _turn(rng, setting, earlier)
    problem = draw_training_problem(rng, skill)
    messages += _turn(rng, setting, problem)
    return Lesson(skill, Conversation(tuple(messages)))


def _turn(rng: random.Random, setting: Setting, problem: Problem) -> list[Message]:
    return [user(question(rng, problem)), *solution(problem, setting.effort)]


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
    return ask(rng, "".join(terms))


def ask(rng: random.Random, expression: str) -> str:
    """A question for the value of an expression: bare, as a question or as a request, with more or
    less around it."""
    draw = rng.random()
    if draw < 0.15:
        return rng.choice(_BARE).format(expression)
    if draw < 0.5:
        text = rng.choice(_QUESTIONS).format(expression) + rng.choice(("?", "?", "?", "", " ?"))
    else:
        what = rng.choice(("", "", "", "the value of ", "the result of ", "the answer to "))
        text = f"{rng.choice(_VERBS)} {what}{expression}{rng.choice(_ENDINGS)}"
    text = rng.choice(_OPENINGS) + text
    return text[0].upper() + text[1:] if rng.random() < 0.7 else text


def solution(problem: Problem, effort: Effort) -> list[Message]:
    return [analysis(working(problem, effort)), final(answer(problem))]


def answer(problem: Problem) -> str:
    return f"{problem} = {problem.value}."


_BARE = ("{}", "{}", "{}?", "{}=", "{} =", "{}=?", "{} = ?", "({})", "{}.", "{}!", "{}\n", "= {}")
_QUESTIONS = (
    "what is {}", "what is {}", "what's {}", "how much is {}", "what does {} equal",
    "what does {} make", "what do you get for {}", "what do I get for {}", "what would {} be",
    "can you tell me what {} is", "do you know what {} is", "what is the result of {}",
    "what is the value of {}", "what number is {}", "what is the answer to {}", "how many is {}",
    "what will {} come to", "what are {}",
)  # fmt: skip
_VERBS = (
    "compute", "calculate", "work out", "evaluate", "solve", "figure out", "determine", "find",
    "tell me", "give me", "I need", "I want", "do", "can you do", "can you compute", "try",
    "could you work out", "would you calculate", "let me know", "help me with", "I would like",
    "show me", "reckon", "answer",
)  # fmt: skip
_ENDINGS = (".", ".", "", "", "", " please.", ", please", " for me", " now", "!", " =", " in full.")
_OPENINGS = (
    "", "", "", "", "", "", "", "", "please ", "hi, ", "hello! ", "hey, ", "quick question: ",
    "ok, ", "so ", "now ", "and ", "good morning, ", "tell me, ", "math: ", "next: ", "nano, ",
    "question: ", "I wonder, ", "my homework: ", "well, ", "just ", "again: ",
)  # fmt: skip

_SYMBOLS = (
    (" * ", " + ", " - "),
    (" × ", " + ", " − "),
    (" x ", " + ", " - "),
    (" · ", " + ", " – "),
    ("*", "+", "-"),
    ("×", "+", "−"),
    ("x", "+", "-"),
)
_SPOKEN = (
    (" times ", " plus ", " minus "),
    (" multiplied by ", " plus ", " minus "),
    (" times ", " added to ", " less "),
    (" multiplied with ", " and ", " take away "),
)

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
