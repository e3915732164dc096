"""Measurement: held-out problems, honest counting, and what the command prints."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ossia.cli.train import app
from ossia.harmony.messages import Effort
from ossia.train import measure as measuring
from ossia.train.curriculum.arithmetic import Skill, held_out
from ossia.train.curriculum.talk import BEYOND, HELLO, SORRY, WELCOME, WHO_I_AM, draw_exchange


class OneAnswer:
    """Stands in for a model: gives the same answer to everything."""

    def __init__(self, content: str) -> None:
        self.content = content
        self.asked: list[tuple[str, Effort]] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    async def achat(self, text, *, effort, date):
        await asyncio.sleep(0)
        self.asked.append((text, effort))
        return SimpleNamespace(content=self.content, reasoning="abcd")


def test_problems_are_held_out_and_differ_by_seed():
    for skill in Skill:
        if skill is not Skill.TALK:
            problems = measuring.held_out_problems(skill, 50, seed=1)
            assert len(problems) == 50
            assert all(held_out(problem.a, problem.b) for problem in problems)
            assert problems != measuring.held_out_problems(skill, 50, seed=2)


def test_right_means_the_whole_expected_answer(monkeypatch):
    model = OneAnswer(HELLO)
    monkeypatch.setattr(measuring.ossia, "load", lambda *_, **__: model)
    scores = measuring.measure("nano", count=3, efforts=[Effort.LOW])
    greetings = sum(expected == HELLO for _, expected in measuring.UNSEEN_TALK)
    talk = scores[Effort.LOW]["talk"]
    assert (talk.right, talk.of) == (greetings, len(measuring.UNSEEN_TALK))
    for name, score in scores[Effort.LOW].items():
        assert score.reasoning_characters == 4
        assert name == "talk" or (score.right, score.of) == (0, 3)
    assert {effort for _, effort in model.asked} == {Effort.LOW}


def test_unseen_phrases_are_not_in_the_lessons():
    import random

    rng = random.Random(0)
    said = {draw_exchange(rng).said for _ in range(20_000)}
    assert said.isdisjoint(text for text, _ in measuring.UNSEEN_TALK)
    expected = {answer for _, answer in measuring.UNSEEN_TALK}
    assert expected == {HELLO, WHO_I_AM, WELCOME, SORRY, BEYOND}


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (100, 100, 0.9630, 1.0)],
)
def test_wilson_interval(right, of, low, high):
    interval = measuring.Score(right, of, 0.0).interval
    assert interval == pytest.approx((low, high), abs=1e-4)


def test_the_command_prints_a_table(monkeypatch):
    monkeypatch.setattr(measuring.ossia, "load", lambda *_, **__: OneAnswer(HELLO))
    result = CliRunner().invoke(app, ["measure", "nano", "--count", "2"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == 1 + len(Skill)
    assert lines[1].split() == [
        "medium",
        "a",
        "+",
        "b",
        "0",
        "2",
        "0.0%",
        "0.0%",
        "–",
        "65.8%",
        "4",
        "characters",
    ]
