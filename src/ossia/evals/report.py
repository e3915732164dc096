"""Scores as a table to read, as JSON, and as the files of `ossia eval --out`: `eval.json` with all
answers, `eval.md` with the tables and `eval.png`, where matplotlib is installed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ossia.evals.run import Plan, Score
from ossia.evals.task import Suite, Task
from ossia.harmony.messages import Effort

# ---- on the terminal ---------------------------------------------------------------------------

_WIDTH = 42

HEAD = (
    f"{'skill':<{_WIDTH}}{'effort':<8}{'right':>11}{'share':>9}   95 % interval"
    f"{'reasoning':>12}{'answer':>8}{'repaired':>10}{'cut':>6}"
)


def row(score: Score) -> str:
    """One line of the table; reasoning and answer in mean tokens."""
    low, high = score.interval
    counts = f"{score.right} of {score.of}"
    partial = "" if score.complete else f"   partial: {score.asked} were to be asked"
    return (
        f"{score.task.skill:<{_WIDTH}}{score.effort:<8}{counts:>11}{score.right / score.of:>9.1%}"
        f"{f'{low:.1%} – {high:.1%}':>16}{score.reasoning_tokens:>12.1f}{score.answer_tokens:>8.1f}"
        f"{score.repaired:>10.1%}{score.cut:>6.0%}{partial}"
    )


def failures(score: Score, most: int) -> str:
    """The first wrong answers with their reasoning."""
    blocks: list[str] = []
    for outcome in [o for o in score.outcomes if not o.right][:most]:
        lines = {
            "asked": outcome.asked,
            "expected": outcome.expected,
            "reasoning": outcome.reasoning,
            "got": outcome.got or "(nothing)",
            "wrong": outcome.why,
        }
        blocks.append("\n".join(f"  {name + ':':<11}{_indented(t)}" for name, t in lines.items()))
    return "\n\n".join(blocks)


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * 13)


# ---- as JSON -----------------------------------------------------------------------------------


def score_json(score: Score) -> dict[str, Any]:
    """The figures of one score, without its answers."""
    low, high = score.interval
    return {
        "task": score.task.name,
        "group": score.task.group,
        "skill": score.task.skill,
        "effort": score.effort.value,
        "right": score.right,
        "of": score.of,
        "asked": score.asked,
        "interval": [round(low, 5), round(high, 5)],
        "reasoning_tokens": round(score.reasoning_tokens, 2),
        "answer_tokens": round(score.answer_tokens, 2),
        "repaired": round(score.repaired, 5),
        "cut": round(score.cut, 5),
        "seconds": round(score.seconds, 2),
        "variants": {
            variant: {"right": right, "of": of}
            for variant, (right, of) in score.by_variant().items()
        },
    }


# ---- as files ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A run as it is written down."""

    suite: Suite
    plan: Plan
    model: str
    about: dict[str, Any]
    """Version, weights, kernels, machine: what else the figures depend on."""
    scores: Sequence[Score]
    interrupted: bool = False

    def write(self, folder: Path) -> list[Path]:
        """Writes the files and gives their paths; the picture only where matplotlib is."""
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / "eval.png"
        drawn = bool(self.scores) and draw(self.scores, picture)
        texts = {
            folder / "eval.json": json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n",
            folder / "eval.md": self.markdown(picture.name if drawn else None),
        }
        for path, text in texts.items():
            part = path.with_name(f"{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)  # a full disk leaves no half of a file under the name
        return [*texts, picture] if drawn else [*texts]

    def to_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite.name,
            "model": self.model,
            **self.about,
            "seed": self.plan.seed,
            "count": self.plan.count,
            "max_tokens": self.plan.max_tokens,
            "efforts": [effort.value for effort in self.plan.efforts],
            "interrupted": self.interrupted,
            "notes": {task.name: task.note() for task in self._tasks() if task.note is not None},
            "scores": [
                score_json(score) | {"examples": [asdict(o) for o in score.outcomes]}
                for score in self.scores
            ],
        }

    def markdown(self, picture: str | None = None) -> str:
        lines = [f"# {self.model} on the suite {self.suite.name}", ""]
        if self.interrupted:
            lines += ["**Interrupted: these are the figures of a part of the run.**", ""]
        facts = self.about | {"seed": self.plan.seed, "max_tokens": self.plan.max_tokens}
        lines += ["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
        lines += [
            "Greedy. Share of right answers with Wilson's 95 % interval, and the mean number of "
            "reasoning tokens.",
            "",
            *self._summary(),
            "",
        ]
        if picture is not None:
            lines += [f"![accuracy and reasoning by effort]({picture})", ""]
        for task in self._tasks():
            note = f" {task.note()}" if task.note is not None else ""
            lines.append(f"- **{task.skill}** (`{task.name}`): {task.description}{note}")
        lines += ["", "## By kind of example", "", *self._variants(), ""]
        lines += ["## All figures", "", *self._figures(), ""]
        return "\n".join(lines)

    def _tasks(self) -> list[Task]:
        found: dict[str, Task] = {score.task.name: score.task for score in self.scores}
        return list(found.values())

    def _efforts(self) -> list[Effort]:
        return [e for e in self.plan.efforts if any(score.effort is e for score in self.scores)]

    def _score(self, task: Task, effort: Effort) -> Score | None:
        matching = (s for s in self.scores if s.task.name == task.name and s.effort is effort)
        return next(matching, None)

    def _summary(self) -> list[str]:
        """One row per skill, one column per effort, headings per group."""
        efforts = self._efforts()
        lines = _head("skill", *efforts)
        group = ""
        for task in self._tasks():
            if task.group != group:
                group = task.group
                lines.append(f"| **{group}** |{' |' * len(efforts)}")
            cells = [_cell(self._score(task, effort)) for effort in efforts]
            lines.append(f"| {task.skill} | {' | '.join(cells)} |")
        return lines

    def _variants(self) -> list[str]:
        efforts = self._efforts()
        lines = _head("skill", "kind", *efforts)
        for task in self._tasks():
            scores = {effort: self._score(task, effort) for effort in efforts}
            found = {effort: s.by_variant() for effort, s in scores.items() if s is not None}
            kinds = sorted({kind for counts in found.values() for kind in counts})
            for kind in kinds if len(kinds) > 1 else []:
                counts = (found.get(effort, {}).get(kind) for effort in efforts)
                cells = ["" if c is None else f"{c[0]} of {c[1]}" for c in counts]
                lines.append(f"| {task.skill} | {kind} | {' | '.join(cells)} |")
        return lines

    def _figures(self) -> list[str]:
        lines = _head(
            "task", "effort", "right", "share", "95 % interval", "reasoning tokens",
            "answer tokens", "Harmony repaired", "cut by length",
        )  # fmt: skip
        for s in self.scores:
            low, high = s.interval
            lines.append(
                f"| {s.task.name} | {s.effort} | {s.right} of {s.of} | {s.right / s.of:.1%} "
                f"| {low:.1%} – {high:.1%} | {s.reasoning_tokens:.1f} | {s.answer_tokens:.1f} "
                f"| {s.repaired:.1%} | {s.cut:.1%} |"
            )
        return lines


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    low, high = score.interval
    return (
        f"{score.right / score.of:.0%} ({100 * low:.0f}–{100 * high:.0f}), "
        f"{score.reasoning_tokens:.0f} tokens"
    )


# ---- as a picture ------------------------------------------------------------------------------


def draw(scores: Iterable[Score], path: Path) -> bool:
    """Accuracy above and reasoning tokens below, by effort: a column per group, a line per task.
    False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    groups: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        groups.setdefault(score.task.group, {}).setdefault(score.task.name, []).append(score)
    figure = Figure(figsize=(1 + 2.6 * len(groups), 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(groups), squeeze=False, sharex=True)
    for column, (group, tasks) in enumerate(groups.items()):
        accuracy, reasoning = panels[0, column], panels[1, column]
        for i, (name, found) in enumerate(tasks.items()):
            efforts = [score.effort.value for score in found]
            style = {"marker": "os^vD*Pp<>"[i % 10], "label": name, "alpha": 0.8}
            accuracy.plot(efforts, [100 * s.right / s.of for s in found], **style)
            reasoning.plot(efforts, [s.reasoning_tokens for s in found], **style)
        accuracy.set_title(group)
        accuracy.set_ylim(-3, 103)
        reasoning.set_ylim(bottom=0)
        reasoning.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1))
        for axes in (accuracy, reasoning):
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("right (%)")
    panels[1, 0].set_ylabel("reasoning (mean tokens)")
    part = path.with_name(f"{path.name}.part")
    figure.savefig(part, dpi=120, format="png")
    part.replace(path)
    return True
