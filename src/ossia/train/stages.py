"""The stages of a run, in one folder; each may run alone, and finds there what the ones before it
left.

OUT/recipe.json         the recipe, with the number of steps that it came to
OUT/tokenizer/          tokenizer.json, learnt from the curriculum's own text
OUT/data/               a sample of the curriculum and the filter's report
OUT/checkpoint.pt       everything that the rest of the run depends on
OUT/pretrain.pt, sft.pt, quantize.pt     the same at the end of each stage
OUT/run.json, record.md, loss.png
OUT/model/              the exported model, in the Hugging Face layout
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch

from ossia.errors import TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.loading import load_tokenizer
from ossia.model.checkpoint import open_checkpoint
from ossia.model.hub import resolve_model
from ossia.train.curriculum.lessons import draw
from ossia.train.data import encode
from ossia.train.distributed import ALONE, World
from ossia.train.export import Fidelity, export_model
from ossia.train.files import replacing
from ossia.train.filter import FilterReport
from ossia.train.loop import StepReport, Trainer, fastest_dtype, load_checkpoint
from ossia.train.parameters import Parameters
from ossia.train.recipe import Architecture, Recipe, Stage
from ossia.train.record import RunRecord
from ossia.train.source import Source, write_sample
from ossia.train.tokenizer import byte_tokenizer, save_tokenizer, train_tokenizer

TOKENIZER_SEED = 7
"""Apart from the recipe's seed: runs that differ in that alone share a vocabulary."""

TIMED_STEPS = 6
"""Steps that are taken, and forgotten, to find out how many fit into a number of minutes."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Report = Callable[[StepReport], None]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def end_of(self, stage: Stage) -> Path:
        return self.folder / f"{stage.value}.pt"

    @property
    def model(self) -> Path:
        return self.folder / "model"


def _once(method: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
    """Of a run's method: the first process runs it, all get its result."""

    @functools.wraps(method)
    def run_once(self: Run, *args: P.args, **options: P.kwargs) -> R:
        return self.world.first(lambda: method(self, *args, **options))

    return run_once


class Run:
    """One run of one recipe in one folder. Where several processes share it, each has one and calls
    the same methods in the same order."""

    def __init__(self, folder: RunFolder, recipe: Recipe, dtype: str, world: World = ALONE) -> None:
        world.check_shards(recipe.shards)
        self.folder, self.recipe, self.dtype, self.world = folder, recipe, dtype, world

    # ---- beginning -----------------------------------------------------------------------------

    @classmethod
    def begin(cls, recipe: Recipe, folder: Path, *, world: World = ALONE) -> Run:
        """A new run in `folder`, which must hold none. Raises TrainingError."""
        dtype = recipe.dtype
        if dtype == "auto":
            dtype = "bfloat16" if world.device.type == "cuda" else world.first(fastest_dtype)
        run = cls(RunFolder(folder), recipe, dtype, world)
        run._make_folder()
        return run

    @classmethod
    def reopen(cls, folder: Path, *, world: World = ALONE) -> Run:
        """The run that is in `folder`, under its own recipe. Raises TrainingError."""
        place = RunFolder(folder)
        try:
            values = json.loads(place.recipe.read_text("utf-8"))
            recipe = Recipe.from_json(values["recipe"], source=str(place.recipe))
            dtype = values["dtype"]
        except FileNotFoundError:
            raise TrainingError(
                f"{folder}: there is no run here to go on with; expected recipe.json, which "
                "`ossia train` writes when a run begins."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{place.recipe}: this is not the recipe of a run.") from error
        return cls(place, recipe, dtype, world)

    def fit_into(self, minutes: float, *, stages: tuple[Stage, ...] = tuple(Stage)) -> None:
        """Scale the stages' steps to about so much time on this machine, by timing a few."""
        tokenizer = self._load_tokenizer()
        trainer = self._trainer_of_all()
        source = Source(self.recipe, Stage.SFT, tokenizer)
        trainer.progress.enter(Stage.SFT)
        seconds: list[float] = []
        for step in range(TIMED_STEPS):
            started = time.monotonic()
            trainer.step(self.recipe.sft, source.batches_at(step))
            seconds.append(time.monotonic() - started)
        middle = sorted(seconds)[len(seconds) // 2]
        per_token = middle / self.recipe.sft.batch_tokens
        tokens = sum(self.recipe.stage(s).steps * self.recipe.stage(s).batch_tokens for s in stages)
        factor = minutes * 60 / (per_token * tokens)
        self.recipe = self.world.first(lambda: self.recipe.scaled(factor))
        self.world.first(self._write_recipe)

    @_once
    def continue_from(self, model: str | Path) -> None:
        """Begin with a model that exists, with its sizes and vocabulary, in place of the first
        stages; its name as for `--model`."""
        checkpoint = open_checkpoint(resolve_model(str(model)))
        found = Architecture.of(checkpoint.config)
        expected = replace(
            self.recipe.architecture, max_position_embeddings=found.max_position_embeddings
        )
        if found != expected:
            raise TrainingError(
                f"{model} is not of the recipe's architecture: expected {expected}, got {found}. "
                "Change the recipe's [architecture]."
            )
        load_tokenizer(checkpoint.folder, None)
        self.folder.tokenizer.mkdir(exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(checkpoint.folder / name, self.folder.tokenizer / name)
        parameters = Parameters.of_checkpoint(checkpoint, self.recipe.architecture.config())
        trainer = self._trainer(parameters)
        trainer.progress.enter(Stage.PRETRAIN)
        trainer.save(self.folder.end_of(Stage.PRETRAIN), self._extra())

    # ---- the stages ----------------------------------------------------------------------------

    @_once
    def make_tokenizer(self) -> None:
        """Learn the vocabulary from the curriculum as it will be rendered."""
        recipe, folder = self.recipe, self.folder.tokenizer
        unfinished = folder.with_name("tokenizer.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        save_tokenizer(byte_tokenizer(), unfinished)
        texts = _rendered_texts(Tokenizer.load(unfinished), recipe)
        save_tokenizer(train_tokenizer(texts, recipe.architecture.vocab_size), unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)

    @_once
    def make_data(self) -> FilterReport:
        """A sample of what the stages will read, and what the filter dropped of it."""
        return write_sample(self.recipe, self.folder.data)

    def train(self, stage: Stage, *, resume: bool = False, report: Report = lambda _: None) -> bool:
        """One stage, from the end of the one before it, or from where it was interrupted. False
        when Ctrl-C stopped it. Raises TrainingError, also when the stage before was not run."""
        tokenizer = self._load_tokenizer()
        trainer = self._trainer_of_all()
        start = self._start_of(stage, resume)
        if start is not None:
            trainer.restore(start)
        finished = trainer.run(
            stage,
            self.recipe.stage(stage),
            Source(self.recipe, stage, tokenizer).batches_at,
            report=report if self.world.is_first else lambda _: None,
            save=lambda: trainer.save(self.folder.checkpoint, self._extra()),
        )
        self._end(stage, trainer, finished)
        return finished

    @_once
    def _end(self, stage: Stage, trainer: Trainer, finished: bool) -> None:
        if finished:
            with replacing(self.folder.end_of(stage)) as (path,):
                shutil.copyfile(self.folder.checkpoint, path)
        self._record(trainer)

    @_once
    def export(self) -> Fidelity:
        """The model folder, from the end of the last stage; how near it is to what was trained."""
        stage = Stage.QUANTIZE
        if not self.folder.end_of(stage).exists():
            raise TrainingError(
                f"{self.folder.folder}: there is no {self.folder.end_of(stage).name} to export; "
                f"run `ossia train {stage} --out {self.folder.folder}` first."
            )
        trainer = self._trainer()
        trainer.restore(self.folder.end_of(stage))
        shutil.rmtree(self.folder.model, ignore_errors=True)
        unseen = self.recipe.stage(stage).steps  # the step after the last
        sample = Source(self.recipe, stage, self._load_tokenizer()).batches_at(unseen)[0]
        fidelity = export_model(
            trainer.parameters,
            self.folder.model,
            tokenizer_folder=self.folder.tokenizer,
            model_identity=self.recipe.identity,
            description=self.recipe.description,
            sample=sample.inputs,
        )
        self._record(trainer, fidelity)
        return fidelity

    # What is there the first process says, for it may be about to write it.

    @_once
    def finished(self, stage: Stage) -> bool:
        return self.folder.end_of(stage).exists()

    @_once
    def misses(self, path: Path) -> bool:
        return not path.exists()

    # ---- parts ---------------------------------------------------------------------------------

    @_once
    def _make_folder(self) -> None:
        place, folder = self.folder, self.folder.folder
        if place.recipe.exists() or place.checkpoint.exists() or place.model.exists():
            raise TrainingError(
                f"{folder} holds a run already; go on with it (--resume) or name another (--out)."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{folder}: the run's folder cannot be made ({error.strerror}); name another "
                "(--out)."
            ) from error
        self._write_recipe()

    @_once
    def _start_of(self, stage: Stage, resume: bool) -> Path | None:
        """The checkpoint that a stage begins with; None for new weights."""
        stages = list(Stage)
        if self.folder.end_of(stage).exists():
            raise TrainingError(
                f"{self.folder.folder}: {stage} is finished; to train it again, move "
                f"{self.folder.end_of(stage).name} away."
            )
        if self.folder.checkpoint.exists():
            reached = load_checkpoint(self.folder.checkpoint)["progress"]
            if reached["stage"] == stage and not resume:
                raise TrainingError(
                    f"{self.folder.folder}: {stage} was interrupted after step {reached['step']}; "
                    "go on with it (--resume), or move checkpoint.pt away."
                )
            if reached["stage"] == stage:
                return self.folder.checkpoint
        if stage is stages[0]:
            return None
        before = stages[stages.index(stage) - 1]
        if not self.folder.end_of(before).exists():
            raise TrainingError(
                f"{self.folder.folder}: {stage} begins where {before} ends, and there is no "
                f"{self.folder.end_of(before).name}; run `ossia train {before} --out "
                f"{self.folder.folder}` first."
            )
        return self.folder.end_of(before)

    def _trainer(self, parameters: Parameters | None = None) -> Trainer:
        """Of this process alone."""
        return Trainer(
            parameters or self._new_parameters(),
            optimization=self.recipe.optimization,
            dtype=DTYPES[self.dtype],
        )

    def _trainer_of_all(self) -> Trainer:
        if not self.world.launched:
            return self._trainer()
        from ossia.train.sharded import ShardedTrainer  # importing FSDP takes a second

        return ShardedTrainer(
            self._new_parameters(),
            optimization=self.recipe.optimization,
            dtype=DTYPES[self.dtype],
            world=self.world,
        )

    def _new_parameters(self) -> Parameters:
        return Parameters.initial(self.recipe.architecture.config(), self.recipe.seed)

    def _load_tokenizer(self) -> Tokenizer:
        if not (self.folder.tokenizer / "tokenizer.json").exists():
            raise TrainingError(
                f"{self.folder.folder}: there is no tokenizer yet; run `ossia train tokenizer "
                f"--out {self.folder.folder}` first."
            )
        return Tokenizer.load(self.folder.tokenizer)

    def _extra(self) -> dict[str, object]:
        return {"recipe": self.recipe.to_json(), "dtype": self.dtype}

    def _write_recipe(self) -> None:
        text = json.dumps(self._extra(), indent=1, ensure_ascii=False)
        with replacing(self.folder.recipe) as (path,):
            path.write_text(text + "\n", "utf-8")

    def _record(self, trainer: Trainer, fidelity: Fidelity | None = None) -> None:
        record = RunRecord(self.recipe, trainer.progress, self.dtype, fidelity)
        record.write(self.folder.folder)


def train_all(
    run: Run, *, resume: bool = False, report: Report = lambda _: None
) -> Fidelity | None:
    """Every stage that is not finished, in order, then the export; None when Ctrl-C stopped it."""
    if run.misses(run.folder.tokenizer / "tokenizer.json"):
        run.make_tokenizer()
    if run.misses(run.folder.data):
        run.make_data()
    for stage in Stage:
        if run.finished(stage):
            continue
        if not run.train(stage, resume=resume, report=report):
            return None
    return run.export()


def _rendered_texts(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[str]:
    """The pieces of text between the control tokens of what the stages will read."""
    rng = random.Random(TOKENIZER_SEED)
    for stage in itertools.islice(itertools.cycle(Stage), recipe.tokenizer_texts):
        part = recipe.stage(stage)
        item = draw(rng, part.mix, full_system=part.full_system)
        ids = encode(tokenizer, item).token_ids
        for is_control, piece in itertools.groupby(ids, tokenizer.is_control):
            if not is_control:
                yield tokenizer.decode(list(piece))
