"""Tables, JSON and files of scores that are made by hand."""

from __future__ import annotations

import builtins
import json
import random

import pytest

from ossia.evals import report
from ossia.evals.report import Report
from ossia.evals.run import Outcome, Plan, Score
from ossia.evals.task import Suite, Task
from ossia.harmony.messages import Effort


def nothing(rng: random.Random, count: int) -> list:
    return []


SUMS = Task("sums", "arithmetic", "± small", "Sums.", nothing, lambda: "Seen: 90 %.")
CALLS = Task("call", "tools", "called", "Calls.", nothing)
SUITE = Suite("nano", "All.", (SUMS, CALLS))


def outcome(right: bool, variant: str = "", tokens: int = 10) -> Outcome:
    return Outcome(
        variant=variant,
        asked="1 + 1?",
        prompt="<|start|>user<|message|>1 + 1?",
        expected="2",
        right=right,
        why="" if right else "3 in place of 2",
        got="2" if right else "3",
        reasoning="one and one\nis",
        reasoning_tokens=tokens,
        answer_tokens=2,
        repaired=not right,
    )


def score(task: Task, effort: Effort, right: int, of: int, asked: int | None = None) -> Score:
    outcomes = tuple(outcome(i < right, "even" if i % 2 else "odd", 4 + i) for i in range(of))
    return Score(task, effort, outcomes, of if asked is None else asked, 1.5)


SCORES = (
    score(SUMS, Effort.LOW, 8, 10),
    score(SUMS, Effort.HIGH, 10, 10),
    score(CALLS, Effort.LOW, 0, 4),
)
PLAN = Plan(efforts=(Effort.LOW, Effort.HIGH))


def a_report(**changes) -> Report:
    about = {"ossia": "1.2", "machine": "abacus"}
    values = {"suite": SUITE, "plan": PLAN, "model": "m", "about": about, "scores": SCORES}
    return Report(**(values | changes))


def test_a_row_lines_up_with_the_head():
    line = report.row(SCORES[0])
    # By hand: (0.8 + 0.19207 ± 1.96 · √(0.016 + 0.0096036)) / 1.38415 = 0.4902 and 0.9433.
    figures = "8 of 10 80.0% 49.0% – 94.3% 8.5 2.0 20.0% 0%"
    assert " ".join(line.split()) == f"± small low {figures}"
    for title, value in (("share", "80.0%"), ("reasoning", "8.5"), ("repaired", "20.0%")):
        assert report.HEAD.index(title) + len(title) == line.index(value) + len(value)
    assert len(report.HEAD) == len(line)


def test_a_partial_row_says_so():
    assert "partial: 200 were to be asked" in report.row(score(SUMS, Effort.LOW, 1, 2, asked=200))
    assert "partial" not in report.row(SCORES[0])


def test_failures_show_the_reasoning():
    text = report.failures(SCORES[0], 1)
    assert text.count("expected:") == 1
    assert "reasoning: one and one\n             is" in text and "3 in place of 2" in text
    assert report.failures(SCORES[0], 9).count("expected:") == 2
    assert report.failures(SCORES[0], 0) == report.failures(SCORES[1], 5) == ""


def test_the_files(tmp_path):
    paths = a_report().write(tmp_path / "new")
    assert {path.name for path in paths} == {"eval.json", "eval.md", "eval.png"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in paths}
    values = json.loads((tmp_path / "new/eval.json").read_text())
    assert (values["model"], values["seed"], values["machine"]) == ("m", 0, "abacus")
    assert values["notes"] == {"sums": "Seen: 90 %."} and values["interrupted"] is False
    first = values["scores"][0]
    assert (first["task"], first["effort"], first["right"], first["of"]) == ("sums", "low", 8, 10)
    assert first["variants"] == {"even": {"right": 4, "of": 5}, "odd": {"right": 4, "of": 5}}
    assert len(first["examples"]) == 10
    assert first["examples"][9] | {"reasoning_tokens": 0} == {
        "variant": "even",
        "asked": "1 + 1?",
        "prompt": "<|start|>user<|message|>1 + 1?",
        "expected": "2",
        "right": False,
        "why": "3 in place of 2",
        "got": "3",
        "reasoning": "one and one\nis",
        "reasoning_tokens": 0,
        "answer_tokens": 2,
        "repaired": True,
        "cut": False,
    }
    assert (tmp_path / "new/eval.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_per_skill_and_a_column_per_effort():
    lines = a_report().markdown("eval.png").splitlines()
    at = lines.index("| skill | low | high |")
    assert lines[at + 2 : at + 6] == [
        "| **arithmetic** | | |",
        "| ± small | 80% (49–94), 8 tokens | 100% (72–100), 8 tokens |",
        "| **tools** | | |",
        "| called | 0% (0–49), 6 tokens |  |",
    ]
    assert "| ± small | odd | 4 of 5 | 5 of 5 |" in lines
    assert any("Seen: 90 %." in line for line in lines)
    assert "![accuracy and reasoning by effort](eval.png)" in lines
    for line in lines:
        if line.startswith("| called |"):
            assert line.count("|") in (4, 5)


def test_an_interrupted_run_says_so():
    assert "**Interrupted" in a_report(interrupted=True).markdown()
    assert "Interrupted" not in a_report().markdown()


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    paths = a_report().write(tmp_path)
    assert {path.name for path in paths} == {"eval.json", "eval.md"}
    assert "![" not in (tmp_path / "eval.md").read_text()


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    a_report().write(tmp_path)
    before = (tmp_path / "eval.json").read_text()
    from pathlib import Path

    def full(self, *_, **__):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        a_report(model="other").write(tmp_path)
    assert (tmp_path / "eval.json").read_text() == before
