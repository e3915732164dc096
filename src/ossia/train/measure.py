"""What a trained nano gets right, through the same path that `ossia chat` takes: on problems whose
operands training never combined, and on phrases that it never saw."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ossia
from ossia.agent.events import Turn
from ossia.engine.config import EngineConfig
from ossia.harmony.messages import Effort
from ossia.train.curriculum.arithmetic import Problem, Skill, draw_problem, held_out
from ossia.train.curriculum.lessons import answer, question
from ossia.train.curriculum.talk import BEYOND, HELLO, SORRY, WELCOME, WHO_I_AM

UNSEEN_TALK: tuple[tuple[str, str], ...] = (
    ("Hello to you, little model!", HELLO),
    ("hey, what a lovely day it is", HELLO),
    ("Good morning from Berlin.", HELLO),
    ("Who am I speaking with?", WHO_I_AM),
    ("What kind of model are you?", WHO_I_AM),
    ("Are you Claude or ChatGPT?", WHO_I_AM),
    ("Please tell me what you are able to do.", WHO_I_AM),
    ("Thanks so much, that was great.", WELCOME),
    ("Write a haiku about frogs.", SORRY),
    ("What is the tallest mountain in Peru?", SORRY),
    ("Why does the moon shine at night?", SORRY),
    ("Sort these letters: q, b, z.", SORRY),
    ("Give me a python function that reverses a list.", SORRY),
    ("Wie spät ist es?", SORRY),
    ("My landlord wants to raise the rent. What should I do?", SORRY),
    ("What is 144 divided by 12?", BEYOND),
    ("How much is 81 over 9?", BEYOND),
    ("What is 98765 * 43?", BEYOND),
    ("Compute the cube root of 27.", BEYOND),
    ("2 to the power of 10?", BEYOND),
)
"""Said in no lesson, with the answer of the lessons nearest to it."""


@dataclass(frozen=True)
class Score:
    """How many of a set of questions were answered as they should be."""

    right: int
    of: int
    reasoning_characters: float
    """Mean length of the analysis."""

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        z, n = 1.96, self.of
        share = self.right / n
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Question:
    text: str
    answer: str


def held_out_problems(skill: Skill, count: int, seed: int) -> list[Problem]:
    """Problems whose own two first operands are a held-out pair."""
    rng = random.Random(f"{seed}:{skill}")
    found: list[Problem] = []
    while len(found) < count:
        problem = draw_problem(rng, skill)
        if held_out(problem.a, problem.b):
            found.append(problem)
    return found


def question_sets(count: int, seed: int) -> Iterator[tuple[str, list[Question]]]:
    rng = random.Random(seed)
    for skill in Skill:
        if skill is Skill.TALK:
            yield skill.value, [Question(said, expected) for said, expected in UNSEEN_TALK]
        else:
            problems = held_out_problems(skill, count, seed)
            yield skill.value, [Question(question(rng, p), answer(p)) for p in problems]


def measure(
    model: str | Path,
    *,
    count: int = 200,
    seed: int = 0,
    efforts: Sequence[Effort] = (Effort.MEDIUM,),
    kernels: str = "auto",
    report: Callable[[Effort, str, Score], None] = lambda *_: None,
) -> dict[Effort, dict[str, Score]]:
    """Ask `count` questions of each skill under each effort, greedily; an answer is right when it
    is the expected sentence, whole."""
    config = EngineConfig(max_num_seqs=64, max_num_batched_tokens=1024, max_queue=count)
    scores: dict[Effort, dict[str, Score]] = {effort: {} for effort in efforts}
    with ossia.load(model, kernels=kernels, engine=config) as llm:

        async def ask_all(questions: Sequence[Question], effort: Effort) -> list[Turn]:
            turns = (llm.achat(q.text, effort=effort, date="2026-01-01") for q in questions)
            return await asyncio.gather(*turns)

        for effort in efforts:
            for name, questions in question_sets(count, seed):
                turns = asyncio.run(ask_all(questions, effort))
                pairs = zip(turns, questions, strict=True)
                scores[effort][name] = Score(
                    right=sum(turn.content == q.answer for turn, q in pairs),
                    of=len(questions),
                    reasoning_characters=sum(len(t.reasoning) for t in turns) / len(turns),
                )
                report(effort, name, scores[effort][name])
    return scores
