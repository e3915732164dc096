"""What each of two processes does in tests/train/test_distributed.py: one scenario after another in
folders that the test has prepared; what came of each goes into a file of JSON."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

from ossia.errors import OssiaError
from ossia.train.distributed import World, join
from ossia.train.recipe import Recipe, Stage
from ossia.train.source import Source
from ossia.train.stages import Run, train_all


def main(rank: int, folder: Path, port: int) -> None:
    """Of process `rank` of two; torch.multiprocessing.spawn calls it."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
    }
    outcomes: dict[str, object] = {}
    try:
        with join() as world:
            for scenario in (go_on, stop, spoil, fill_disk, misfit, stage, fail_alone):
                name = scenario.__name__
                try:
                    outcomes[name] = scenario(folder / name, world)
                except OssiaError as error:
                    outcomes[name] = str(error)
    except (SystemExit, OSError) as error:
        outcomes["end"] = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))


def go_on(folder: Path, world: World) -> object:
    """With what one process began."""
    reports = []
    run = Run.reopen(folder, world=world)
    fidelity = train_all(run, resume=True, report=reports.append)
    assert fidelity is not None
    return [fidelity.tokens, len(reports)]


def stop(folder: Path, world: World) -> object:
    """Ctrl-C reaches the second process alone, while it draws the batches of its third step."""
    batches_at = Source.batches_at

    def interrupted(self: Source, step: int):
        if step == 2 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return batches_at(self, step)

    Source.batches_at = interrupted
    try:
        return Run.reopen(folder, world=world).train(Stage.PRETRAIN)
    finally:
        Source.batches_at = batches_at


def spoil(folder: Path, world: World) -> object:
    """The second process reads what is no number."""
    batches_at = Source.batches_at

    def spoiled(self: Source, step: int):
        shards = batches_at(self, step)
        if step == 1 and world.rank == 1:
            shards[1].weights_R[0] = float("nan")
        return shards

    Source.batches_at = spoiled
    try:
        return Run.reopen(folder, world=world).train(Stage.PRETRAIN)
    finally:
        Source.batches_at = batches_at


def fill_disk(folder: Path, world: World) -> object:
    return Run.reopen(folder, world=world).train(Stage.PRETRAIN)


def misfit(folder: Path, world: World) -> object:
    """Three shards for two processes."""
    values = json.loads((folder.parent / "go_on" / "recipe.json").read_text())["recipe"]
    Run.begin(replace(Recipe.from_json(values), shards=3), folder, world=world)
    return None


def stage(folder: Path, world: World) -> object:
    """The first stage of every run that is in a folder of `folder`."""
    for recipe in sorted(folder.glob("*/recipe.json")):
        Run.reopen(recipe.parent, world=world).train(Stage.PRETRAIN)
    return None


def fail_alone(folder: Path, world: World) -> object:
    """The second process fails while the first waits for it. The last scenario: it ends both."""
    if world.rank == 1:
        raise OSError("a disk of its own is gone")
    world.any(False)
    return None
