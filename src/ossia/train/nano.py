"""Training nano, the embedded model: tokenizer, lessons, training, export, in one folder.

OUT/tokenizer/      tokenizer.json, made from the lessons' own text
OUT/checkpoint.pt   everything that the rest of the run depends on
OUT/run.json, record.md, loss.png
OUT/model/          the exported model, in the Hugging Face layout
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ossia.errors import TrainingError
from ossia.harmony.render import render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.train.curriculum.lessons import Mix, draw_lesson, lessons
from ossia.train.curriculum.talk import IDENTITY
from ossia.train.data import Batch, pack
from ossia.train.export import export_model
from ossia.train.loop import Progress, StepReport, Trainer, fastest_dtype, load_checkpoint
from ossia.train.parameters import Parameters
from ossia.train.recipe import NanoRecipe
from ossia.train.record import RunRecord
from ossia.train.tokenizer import byte_tokenizer, save_tokenizer, train_tokenizer

DESCRIPTION = (
    "nano, the tiny model built into Ossia: five million parameters, trained in minutes on two CPU "
    "cores. It does small sums and products, and can be wrong; for a real assistant run "
    "`ossia pull openai/gpt-oss-20b` (13.8 GB)."
)
TOKENIZER_SEED = 7
"""Apart from the recipe's seed: runs that differ in that alone share a vocabulary."""
EXPORT_SHARE = 0.02
"""Of the minutes, kept for writing the model and the record."""

Report = Callable[[StepReport], None]


@dataclass(frozen=True)
class NanoRun:
    """The files of one run."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def model(self) -> Path:
        return self.folder / "model"


def train_nano(
    recipe: NanoRecipe,
    folder: Path,
    *,
    resume: bool = False,
    report: Report = lambda _: None,
) -> NanoRun | None:
    """Train, and export to `folder`/model; None when Ctrl-C stopped it, to be resumed.

    With `resume`, the run in `folder` goes on under its own recipe, whatever `recipe` says. Raises
    TrainingError for a folder in use, a checkpoint that is none, or a loss that is not finite.
    """
    run, started = NanoRun(folder), time.monotonic()
    if resume:
        extra = load_checkpoint(run.checkpoint)["extra"]
        recipe, dtype = NanoRecipe.from_json(extra["recipe"]), _dtype(extra["dtype"])
    elif run.checkpoint.exists() or run.model.exists():
        raise TrainingError(
            f"{folder} holds a run already; go on with it (--resume) or name another (--out)."
        )
    else:
        dtype = _dtype(fastest_dtype() if recipe.dtype == "auto" else recipe.dtype)
        run.tokenizer.mkdir(parents=True, exist_ok=True)
        make_tokenizer(recipe, run.tokenizer)
    tokenizer = Tokenizer.load(run.tokenizer)
    trainer = Trainer(
        Parameters.initial(recipe.architecture.config(), recipe.seed),
        optimization=recipe.optimization,
        schedule=recipe.schedule,
        dtype=dtype,
    )
    if resume:
        trainer.restore(run.checkpoint)

    else:
        trainer.progress.seconds = time.monotonic() - started

    def save() -> None:
        extra = {"recipe": recipe.to_json(), "dtype": _name(dtype)}
        trainer.save(run.checkpoint, extra)

    finished = trainer.run(
        lambda progress: batches_at(recipe, tokenizer, progress),
        steps=recipe.steps,
        seconds=None if recipe.steps is not None else recipe.minutes * 60 * (1 - EXPORT_SHARE),
        report=report,
        save=save,
    )
    RunRecord(recipe, trainer.progress, _name(dtype)).write(folder)
    if not finished:
        return None
    shutil.rmtree(run.model, ignore_errors=True)
    export_model(
        trainer.parameters,
        run.model,
        tokenizer_folder=run.tokenizer,
        model_identity=IDENTITY,
        description=DESCRIPTION,
    )
    return run


def batches_at(recipe: NanoRecipe, tokenizer: Tokenizer, progress: Progress) -> list[Batch]:
    """The lessons of one step, one batch for each shard: a function of the recipe, the step, and
    whether the decay is on."""
    decaying = progress.decay_from is not None and progress.step >= progress.decay_from
    mix = recipe.late if decaying else recipe.early
    rng = random.Random(f"{recipe.seed}:{progress.step}")
    examples = (
        render_for_training(tokenizer, draw_lesson(rng, mix).conversation)
        for _ in itertools.count()
    )
    return [pack(examples, recipe.batch_tokens // recipe.shards) for _ in range(recipe.shards)]


def make_tokenizer(recipe: NanoRecipe, folder: Path) -> None:
    """Learn the vocabulary from lessons as they will be rendered."""
    save_tokenizer(byte_tokenizer(), folder)
    texts = _rendered_texts(Tokenizer.load(folder), recipe.late, recipe.tokenizer_lessons)
    trained = train_tokenizer(texts, recipe.architecture.vocab_size)
    save_tokenizer(trained, folder)


def _rendered_texts(tokenizer: Tokenizer, mix: Mix, count: int) -> Iterator[str]:
    """The pieces of text between the control tokens of rendered lessons."""
    for lesson in itertools.islice(lessons(TOKENIZER_SEED, mix), count):
        ids = render_for_training(tokenizer, lesson.conversation).token_ids
        for is_control, piece in itertools.groupby(ids, tokenizer.is_control):
            if not is_control:
                yield tokenizer.decode(list(piece))


def _dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in dtypes:
        raise TrainingError(f"dtype must be auto, float32 or bfloat16; got {name!r}.")
    return dtypes[name]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
