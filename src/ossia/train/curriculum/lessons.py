"""Every source of training text by name, and the mix of them: an endless stream that is a pure
function of its generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ossia.train.curriculum import (
    hierarchy,
    python_tool,
    refusals,
    results,
    shapes,
    talk,
    tools,
)
from ossia.train.curriculum.arithmetic import SKILLS
from ossia.train.curriculum.documents import Document, Topic, draw_document
from ossia.train.curriculum.lesson import Lesson, Setting, Skill, draw_setting
from ossia.train.curriculum.sums import draw_sum

DRAW_LESSON: Mapping[Skill, Callable[[random.Random, Setting], Lesson]] = {
    **{skill: partial(draw_sum, skill=skill) for skill in SKILLS},
    **talk.DRAW,
    **refusals.DRAW,
    **hierarchy.DRAW,
    **tools.DRAW,
    **results.DRAW,
    **python_tool.DRAW,
    **shapes.DRAW,
}

TOPICS = tuple(map(str, Topic))
SOURCES = (*TOPICS, *map(str, Skill))
"""The names that a recipe's mix may use."""


def draw(rng: random.Random, mix: Mapping[str, float], *, full_system: float) -> Document | Lesson:
    """One document or lesson; the shares of `mix` are relative. `full_system` is the share of
    lessons under a whole system message."""
    (name,) = rng.choices(list(mix), list(mix.values()))
    if name in TOPICS:
        return draw_document(rng, Topic(name))
    skill = Skill(name)
    return DRAW_LESSON[skill](rng, draw_setting(rng, skill=skill, full_system=full_system))


def stream(
    rng: random.Random, mix: Mapping[str, float], *, full_system: float
) -> Iterator[Document | Lesson]:
    """Endless."""
    while True:
        yield draw(rng, mix, full_system=full_system)
