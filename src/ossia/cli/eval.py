"""`ossia eval`: what a model gets right, on examples with known answers.

Rows are printed as they come, so that Ctrl-C leaves what has been measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia import __version__
from ossia.cli import options, terminal
from ossia.errors import UsageError

if TYPE_CHECKING:
    from ossia.evals.run import Plan, Progress, Score
    from ossia.evals.task import Suite, Task
    from ossia.harmony.messages import Effort
    from ossia.loading import OpenedModel

_HASHED_BYTES = 10**9
"""Weights up to this size are told by their hash; larger ones would take too long to read."""


def evaluate(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="What to ask: nano.")],
    model: options.ModelOption = "nano",
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="A,B", help="Of the suite. Default: all; see --list."),
    ] = None,
    efforts: Annotated[
        str | None,
        typer.Option("--efforts", metavar="A,B", help="Of low,medium,high. Default: all."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", help="Examples of each task, where it has so many."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the examples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write eval.json, eval.md and eval.png there."),
    ] = None,
    show_failures: Annotated[
        int,
        typer.Option("--show-failures", metavar="N", min=0, help="Wrong answers under each row."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
    list_tasks: Annotated[
        bool, typer.Option("--list", help="Say what the tasks are, and stop.")
    ] = False,
    max_tokens: options.MaxTokensOption = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Examples in flight at once.")
    ] = None,
    kernels: options.KernelsOption = "auto",
    threads: options.ThreadsOption = None,
    exact: options.ExactOption = False,
) -> None:
    """Ask a model examples with known answers, greedily, and print what it gets right.

    Examples are drawn by the seed; those of the suite nano hold pairs of numbers and names that
    nano's training never sees.
    """
    from ossia.evals.tasks import find_suite

    found = find_suite(suite)
    if list_tasks:
        _print_tasks(found)
        return
    plan = _plan(count=count, seed=seed, efforts=efforts, max_tokens=max_tokens, batch=batch)
    chosen_tasks = found.select(_names(tasks))
    chosen = options.ModelOptions(model=model, kernels=kernels, threads=threads, exact=exact)
    _require_folder(out)
    run = _Run(found, plan, as_json=as_json, show_failures=show_failures)
    interrupted = False
    try:
        run.measure(chosen, chosen_tasks)
    except KeyboardInterrupt:
        interrupted = True
    run.end(out, interrupted=interrupted)
    if interrupted:
        raise typer.Exit(130)


def _plan(*, efforts: str | None, **numbers: int | None) -> Plan:
    from ossia.evals.run import Plan

    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if efforts is not None:
        given["efforts"] = _efforts(efforts)
    return Plan(**given)


def _efforts(text: str) -> tuple[Effort, ...]:
    from ossia.harmony.messages import Effort

    names = _names(text)
    unknown = [name for name in names if name not in [effort.value for effort in Effort]]
    if unknown or not names:
        raise UsageError(f"--efforts takes low, medium, high, separated by commas; got {text!r}.")
    return tuple(effort for effort in Effort if effort.value in names)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _require_folder(out: Path | None) -> None:
    """Before the work, not after it."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out takes a folder, but {out} is a file; name another place.")
    out.mkdir(parents=True, exist_ok=True)


def _print_tasks(suite: Suite) -> None:
    print(f"{suite.name}: {suite.description}")
    for task in suite.tasks:
        print(f"\n{task.name}: {task.skill}\n    {task.description}")


class _Run:
    """Prints rows as they come, and gathers them for the files."""

    def __init__(self, suite: Suite, plan: Plan, *, as_json: bool, show_failures: int) -> None:
        self._suite, self._plan = suite, plan
        self._as_json, self._show_failures = as_json, show_failures
        self._scores: list[Score] = []
        self._about: dict[str, Any] = {"ossia": __version__}
        self._model = ""
        self._group = ""
        self._line = _ProgressLine()

    def measure(self, chosen: options.ModelOptions, tasks: Sequence[Task]) -> None:
        from ossia.engine.config import EngineConfig
        from ossia.evals.run import run_tasks

        batch = self._plan.batch
        engine = EngineConfig(
            max_num_seqs=batch, max_num_batched_tokens=max(1024, batch), max_queue=batch
        )
        opened = chosen.open(engine=engine)
        self._begin(opened)
        with options.load_model(opened, quiet=self._as_json) as llm:
            for score in run_tasks(llm, tasks, self._plan, progress=self._line.show):
                self._line.clear()
                self._print(score)

    def _begin(self, opened: OpenedModel) -> None:
        from ossia.cli.doctor import settings_text
        from ossia.cli.machine import Machine

        self._model = opened.name
        machine = Machine.describe()
        self._about |= {
            "kernels": f"{opened.kernels.name}{settings_text(opened.kernels)}",
            "machine": f"{machine.processor}, {machine.cores} cores",
            "weights_sha256": _weights_sha256(opened),
        }
        if not self._as_json:
            print(f"{opened.name} ({self._about['kernels']}), suite {self._suite.name}: ", end="")
            print(f"greedy, seed {self._plan.seed}; reasoning and answer in mean tokens")

    def _print(self, score: Score) -> None:
        from ossia.evals import report

        self._scores.append(score)
        if self._as_json:
            print(json.dumps(report.score_json(score), ensure_ascii=False), flush=True)
            return
        if score.task.group != self._group:
            self._group = score.task.group
            print(f"\n{self._group}")
            print(report.HEAD)
        print(report.row(score), flush=True)
        wrong = report.failures(score, self._show_failures)
        if wrong:
            print()
            terminal.write(wrong)
            print("\n", flush=True)

    def end(self, out: Path | None, *, interrupted: bool) -> None:
        """Notes, files, and whether this is all."""
        from ossia.evals.report import Report

        self._line.clear()
        report = Report(
            self._suite, self._plan, self._model, self._about, self._scores, interrupted
        )
        if self._as_json:
            summary = {key: value for key, value in report.to_json().items() if key != "scores"}
            print(json.dumps(summary, ensure_ascii=False), flush=True)
        else:
            for note in dict.fromkeys(s.task.note() for s in self._scores if s.task.note):
                print(f"\n{note}")
        if interrupted:
            print(
                f"Interrupted: what stands above is partial, {len(self._scores)} rows.",
                file=sys.stderr,
            )
        if out is not None and self._scores:
            written = report.write(out)
            print(f"Written: {', '.join(map(str, written))}", file=sys.stderr)
            if not any(path.suffix == ".png" for path in written):
                print(
                    "No picture was drawn, for matplotlib is not installed; it comes with "
                    "`pip install 'ossia[train]'`.",
                    file=sys.stderr,
                )


def _weights_sha256(opened: OpenedModel) -> str | None:
    """Of the files of weights in the order of their names; None for large ones."""
    if opened.checkpoint.total_bytes > _HASHED_BYTES:
        return None
    import hashlib  # two milliseconds, which `ossia --help` need not spend

    digest = hashlib.sha256()
    for path in sorted(opened.checkpoint.folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _ProgressLine:
    """One line on stderr, rewritten a few times a second; in a log, one every ten seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._every = 0.3 if self._tty else 10.0
        self._shown = time.monotonic()

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        per_second = progress.done / max(progress.seconds, 1e-9)
        left = (progress.total - progress.done) / per_second
        line = (
            f"{progress.task.name}, {progress.effort}: {progress.done:,} of {progress.total:,} "
            f"examples, {per_second:.1f} a second, {progress.tokens / progress.seconds:,.0f} "
            f"tokens/s, about {left:.0f} s left"
        )
        if self._tty:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
