"""`ossia train`: the pipeline that made the embedded model, as a whole and stage by stage."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import options, train_check
from ossia.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from ossia.train.distributed import World
    from ossia.train.filter import FilterReport
    from ossia.train.loop import StepReport
    from ossia.train.stages import Run

app = typer.Typer(
    name="train",
    help="Train a model: nano from nothing, or on from what is there; all stages, or one.",
    no_args_is_help=True,
)
app.command()(train_check.check)

OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Checkpoints, record and model go here.")
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="nano, or a TOML file; what a run in DIR began with when left out.",
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in DIR where it was interrupted.")
]
DEFAULT_OUT = Path("nano-run")


@app.command()
def nano(
    out: OutOption = DEFAULT_OUT,
    recipe: RecipeOption = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.1,
            help="Scale the recipe's steps to about so much time on this machine.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the weights and the lessons.")
    ] = None,
    continue_from: Annotated[
        str | None,
        typer.Option(
            "--continue", metavar="MODEL", help="Begin with a model: nano (built in), or a folder."
        ),
    ] = None,
    resume: ResumeOption = False,
) -> None:
    """Train a model through all stages: tokenizer, data, pretrain, sft, quantize, export.

    Without --recipe it is nano, from nothing. Ctrl-C saves after the step in progress; --resume
    goes on from there. The model lands in DIR/model. On several devices: torchrun
    --nproc-per-node N -m ossia train nano.
    """
    with _processes() as world:
        from ossia.train.recipe import Stage
        from ossia.train.stages import Run, train_all

        if resume:
            given = {"--minutes": minutes, "--seed": seed, "--continue": continue_from}
            _refuse_with_resume({**given, "--recipe": recipe})
            run = Run.reopen(out, world=world)
        else:
            run = Run.begin(_recipe(recipe or "nano", seed), out, world=world)
            if continue_from is not None:
                run.continue_from(continue_from)
            else:
                if world.is_first:
                    _say("Learning the vocabulary …")
                run.make_tokenizer()
            if minutes is not None:
                run.fit_into(minutes, stages=tuple(s for s in Stage if not run.finished(s)))
        fidelity = train_all(run, resume=resume, report=_ProgressLine())
    if fidelity is None:
        _stopped("nano", run)
    if not world.is_first:
        return
    print(f"The model is in {run.folder.model}; try: ossia chat --model {run.folder.model}")
    _print_fidelity(run)
    print(f"What it gets right on problems held out: ossia eval nano --model {run.folder.model}")


@app.command()
def tokenizer(out: OutOption = DEFAULT_OUT, recipe: RecipeOption = None) -> None:
    """Learn the vocabulary from the curriculum's own text: DIR/tokenizer."""
    with _processes() as world:
        run = _open(out, recipe, world)
        run.make_tokenizer()
    if world.is_first:
        print(f"{run.folder.tokenizer}: {run.recipe.architecture.vocab_size} tokens")


@app.command()
def data(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="JSON Lines of conversations to filter."),
    ] = None,
    out: OutOption = DEFAULT_OUT,
    recipe: RecipeOption = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="cbrn|duplicates|MODULE:CALLABLE",
            help="Of the filter, for FILEs; may be given several times. Default: cbrn.",
        ),
    ] = None,
) -> None:
    """Filter data and report what was dropped: your FILEs into DIR/kept.jsonl; without FILEs, a
    sample of what the stages will read into DIR/data.
    """
    with _processes() as world:
        if files:
            report = world.first(partial(_filter, files, out, rules or ["cbrn"]))
            where = out
        else:
            if rules:
                raise UsageError("--rule goes with FILEs; a recipe names its own rules (filters).")
            run = _open(out, recipe, world)
            report, where = run.make_data(), run.folder.data
    if world.is_first:
        print(report.to_markdown())
        print(f"Written to {where}.")


@app.command()
def pretrain(
    out: OutOption = DEFAULT_OUT, recipe: RecipeOption = None, resume: ResumeOption = False
) -> None:
    """The first stage of training: induction, on documents."""
    _train("pretrain", out, recipe, resume)


@app.command()
def sft(
    out: OutOption = DEFAULT_OUT, recipe: RecipeOption = None, resume: ResumeOption = False
) -> None:
    """Supervised fine-tuning on conversations, from the end of pretrain."""
    _train("sft", out, recipe, resume)


@app.command()
def quantize(
    out: OutOption = DEFAULT_OUT, recipe: RecipeOption = None, resume: ResumeOption = False
) -> None:
    """The last stage: training on weights rounded as the export writes them."""
    _train("quantize", out, recipe, resume)


@app.command()
def export(out: OutOption = DEFAULT_OUT) -> None:
    """Write the model folder from the end of quantize: DIR/model."""
    with _processes() as world:
        run = _open(out, None, world)
        run.export()
    if world.is_first:
        print(f"The model is in {run.folder.model}; try: ossia chat --model {run.folder.model}")
        _print_fidelity(run)


def _filter(files: list[Path], out: Path, rules: list[str]) -> FilterReport:
    from ossia.train.filter import run_filter
    from ossia.train.source import rules_named

    chosen = rules_named(rules)
    return options.with_progress(
        "filtering",
        lambda progress: run_filter(files, out, chosen, progress or (lambda done, total: None)),
    )


def _train(stage: str, out: Path, recipe: str | None, resume: bool) -> None:
    with _processes() as world:
        from ossia.train.recipe import Stage

        run, which = _open(out, recipe, world), Stage(stage)
        finished = run.train(which, resume=resume, report=_ProgressLine())
    if not finished:
        _stopped(stage, run)
    if world.is_first:
        print(f"{stage} is finished: {run.folder.end_of(which)}")


def _processes() -> AbstractContextManager[World]:
    """Those that torchrun started, or this one alone."""
    _require_torch()
    from ossia.train.distributed import join

    return join()


def _open(out: Path, recipe: str | None, world: World) -> Run:
    """The run in the folder, or a new one."""
    from ossia.train.stages import Run, RunFolder

    if not world.first(RunFolder(out).recipe.exists):
        return Run.begin(_recipe(recipe or "nano", None), out, world=world)
    run = Run.reopen(out, world=world)
    if recipe is not None and _recipe(recipe, None) != run.recipe:
        raise UsageError(
            f"{out} holds a run of another recipe than {recipe}; leave --recipe out to go on with "
            "it, or name another folder (--out)."
        )
    return run


def _recipe(name: str, seed: int | None):
    from dataclasses import replace

    from ossia.train.recipe import load_recipe

    recipe = load_recipe(name)
    return recipe if seed is None else replace(recipe, seed=seed)


def _require_torch() -> None:
    try:
        import ossia.train.stages  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Training needs the package {error.name}; install it with "
            "`pip install 'ossia[train]'`."
        ) from error


def _refuse_with_resume(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(
            f"--resume goes on under the run's own recipe; leave {' and '.join(given)} out."
        )


def _stopped(command: str, run: Run) -> None:
    if run.world.is_first:
        _say("")
        out = run.folder.folder
        print(f"Stopped and saved. Go on with: ossia train {command} --resume --out {out}")
    raise typer.Exit(130)


def _print_fidelity(run: Run) -> None:
    import json

    found = json.loads((run.folder.folder / "run.json").read_text())["fidelity"]
    print(
        f"Exported against trained, {found['tokens']} tokens: KL {found['kl_rounded']:.2g} nats a "
        f"token (before rounding {found['kl_unrounded']:.2g}), largest difference of a logit "
        f"{found['largest_difference']:.2g}."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _ProgressLine:
    """One line on stderr, rewritten a few times a second; in a log, one every ten seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._every = 0.3 if self._tty else 10.0
        self._shown = 0.0
        self._tokens = 0
        self._seconds = 0.0
        self._steps = 0

    def __call__(self, step: StepReport) -> None:
        self._steps += 1
        self._tokens += step.tokens
        self._seconds += step.seconds
        now = time.monotonic()
        last = step.step == step.total
        if now - self._shown < self._every and not last:
            return
        self._shown = now
        low, high = step.expert_shares
        speed = self._tokens / self._seconds
        left = (step.total - step.step) * self._seconds / self._steps
        line = (
            f"{step.stage} {step.step}/{step.total}  loss {step.loss:.4f}  "
            f"lr {step.learning_rate:.4f}  {speed:,.0f} tokens/s  experts {low:.2f}–{high:.2f}  "
            f"{left / 60:.0f} min left"
        )
        self._tokens, self._seconds, self._steps = 0, 0.0, 0
        print(
            f"\r\033[K{line}" if self._tty else line,
            end="\n" if last or not self._tty else "",
            file=sys.stderr,
            flush=True,
        )
