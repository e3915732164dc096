"""`ossia train`: the pipeline that made the embedded model, at a size anyone can run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.errors import MissingDependencyError

if TYPE_CHECKING:
    from ossia.train.loop import StepReport

app = typer.Typer(name="train", help="Train the tiny model from scratch.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps the commands' names even while there is only one of them."""


@app.command()
def nano(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Checkpoint, record and model go here.")
    ] = Path("nano-run"),
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, help="Wall-clock time for everything.")
    ] = 15.0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Take so many steps instead: repeatable anywhere."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights and the lessons.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in DIR under its own recipe.")
    ] = False,
) -> None:
    """Train nano from nothing: tokenizer, lessons, training, export to DIR/model.

    Ctrl-C saves after the step in progress; --resume goes on from there.
    """
    try:
        from ossia.train.nano import train_nano
        from ossia.train.recipe import NanoRecipe
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Training needs the package {error.name}; install it with "
            "`pip install 'ossia[train]'`."
        ) from error
    recipe = NanoRecipe(minutes=minutes, steps=steps, seed=seed)
    run = train_nano(recipe, out, resume=resume, report=_ProgressLine())
    print(file=sys.stderr)
    if run is None:
        print(f"Stopped and saved. Go on with: ossia train nano --resume --out {out}")
        raise typer.Exit(130)
    print(f"The model is in {run.model}; try: ossia chat --model {run.model}")
    print(f"What it gets right on held-out problems: ossia train measure {run.model}")


@app.command()
def measure(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A nano: built in, or DIR.")
    ] = "nano",
    count: Annotated[int, typer.Option("--count", min=1, help="Problems of each skill.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Of the problems.")] = 0,
    kernels: Annotated[str, typer.Option("--kernels", help="auto, reference or torch.")] = "auto",
) -> None:
    """Ask a nano held-out problems, as `ossia chat` would, and print what it gets right."""
    from ossia.train.measure import measure

    print("effort   skill        right    of   share   95 % interval   mean reasoning")
    measure(
        model,
        count=count,
        seed=seed,
        kernels=kernels,
        report=lambda effort, name, score: print(
            f"{effort:<8} {name:<11} {score.right:>6} {score.of:>5}  {score.right / score.of:>6.1%}"
            f"   {score.interval[0]:>5.1%} – {score.interval[1]:>6.1%}"
            f"   {score.reasoning_characters:>5.0f} characters",
            flush=True,
        ),
    )


class _ProgressLine:
    """One line on stderr, rewritten a few times a second; in a log, one every ten seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._every = 0.3 if self._tty else 10.0
        self._shown = 0.0
        self._tokens = 0
        self._seconds = 0.0

    def __call__(self, step: StepReport) -> None:
        self._tokens += step.tokens
        self._seconds += step.seconds
        now = time.monotonic()
        if now - self._shown < self._every and step.step != step.total:
            return
        self._shown = now
        low, high = step.expert_shares
        line = (
            f"step {step.step}/{step.total or '?'}  loss {step.loss:.4f}  "
            f"lr {step.learning_rate:.4f}  {self._tokens / self._seconds:,.0f} tokens/s  "
            f"experts {low:.2f}–{high:.2f}{'  rounded' if step.rounded else ''}"
        )
        self._tokens, self._seconds = 0, 0.0
        print(
            f"\r\033[K{line}" if self._tty else line,
            end="" if self._tty else "\n",
            file=sys.stderr,
            flush=True,
        )
