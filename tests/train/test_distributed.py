"""Two processes that share a run take the steps that one process takes; they stop, fail and write
as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

import training_processes
from ossia.errors import TrainingError
from ossia.train.distributed import ALONE, World, join
from ossia.train.loop import load_checkpoint
from ossia.train.recipe import Stage, load_recipe
from ossia.train.stages import Run, train_all

RECIPE = """
name = "small"
identity = "You are a test."
dtype = "float32"
shards = 2
tokenizer_texts = 200
sample_texts = 5
architecture = {hidden_size = 64, num_hidden_layers = 2, num_local_experts = 8, vocab_size = 512}
pretrain = {steps = 6, batch_tokens = 512, warmup_steps = 2, mix = {digits = 1.0, copy = 1.0}}
sft = {steps = 4, batch_tokens = 512, rate_to = 0.5, mix = {sum = 1.0, talk = 1.0}}
quantize = {steps = 4, batch_tokens = 512, rate_to = 0.0, mix = {sum = 1.0, talk = 1.0}}
"""
VARIANTS = {
    "bfloat16": ('dtype = "float32"', 'dtype = "bfloat16"'),
    "four_shards": ("shards = 2", "shards = 4"),
}
SECONDS = 300
"""Until a test takes processes for hanging; they need about ten on an idle machine."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The whole run, in one process."""
    run = begin(RECIPE, tmp_path_factory.mktemp("alone"))
    run.make_tokenizer()
    run.make_data()
    assert train_all(run) is not None
    return run


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory):
    """The folder in which two processes took all scenarios; what they say came of them."""
    folder = tmp_path_factory.mktemp("together")
    interrupt_at(begin_with(alone, folder / "go_on"), 6 + 2)
    for name in ("stop", "spoil", "fill_disk"):
        begin_with(alone, folder / name)
    (folder / "fill_disk" / "checkpoint.pt.partial").symlink_to("/dev/full")
    for name, (old, new) in VARIANTS.items():
        begin_with(alone, folder / "stage" / name, RECIPE.replace(old, new))
    processes = spawn(training_processes.main, (folder, free_port()), nprocs=2, join=False)
    assert processes is not None
    while not processes.join(timeout=SECONDS):
        pass
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def begin(text: str, folder: Path) -> Run:
    recipe = folder.with_name(f"{folder.name}.toml")
    recipe.write_text(text)
    return Run.begin(load_recipe(recipe), folder)


def begin_with(run: Run, folder: Path, text: str = RECIPE) -> Run:
    """A run with the vocabulary of another."""
    folder.mkdir(parents=True)
    again = begin(text, folder)
    for path in (run.folder.tokenizer, run.folder.data):
        shutil.copytree(path, folder / path.name)
    return again


def interrupt_at(run: Run, at: int) -> None:
    seen = []

    def interrupt(report):
        seen.append(report)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)

    assert train_all(run, report=interrupt) is None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def state_at(folder: Path, stage: Stage) -> dict[str, Any]:
    """What a stage ended with, without the time that it took."""
    state = load_checkpoint(folder / f"{stage}.pt")
    del state["progress"]["seconds"]
    return state


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def same_model(one: Path, other: Path) -> bool:
    files = (folder / "model" / "model.safetensors" for folder in (one, other))
    return len({path.read_bytes() for path in files}) == 1


# ---- the same steps ----------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_trains_the_model_that_one_process_trains(alone, tmp_path):
    """All stages by the command: parameters, optimizers, losses, expert shares and the exported
    file, bit for bit; and only one process speaks."""
    recipe, out = tmp_path / "small.toml", tmp_path / "run"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "ossia"]
    command += ["train", "nano", "--recipe", str(recipe), "--out", str(out)]
    done = subprocess.run(
        command,
        env={**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""},
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for stage in Stage:
        ours, theirs = state_at(alone.folder.folder, stage), state_at(out, stage)
        assert same(ours, theirs), stage
    assert same_model(alone.folder.folder, out)
    assert done.stdout.count("The model is in") == 1
    assert done.stderr.count("Learning the vocabulary") == 1
    assert done.stderr.count("pretrain 1/6") == 1


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began(alone, together):
    folder, outcomes = together
    (tokens, steps), (_, others) = (outcome["go_on"] for outcome in outcomes)
    assert tokens > 0 and (steps, others) == (2 + 4, 0)  # the first alone reports
    for stage in (Stage.SFT, Stage.QUANTIZE):
        assert same(state_at(alone.folder.folder, stage), state_at(folder / "go_on", stage))
    assert same_model(alone.folder.folder, folder / "go_on")


@pytest.mark.slow
def test_ctrl_c_in_one_stops_both_after_the_same_step_and_one_goes_on(alone, together):
    folder, outcomes = together
    assert [outcome["stop"] for outcome in outcomes] == [False, False]
    saved = load_checkpoint(folder / "stop" / "checkpoint.pt")
    assert saved["progress"]["step"] == 3
    run = Run.reopen(folder / "stop")
    assert train_all(run, resume=True) is not None
    for stage in Stage:
        assert same(state_at(alone.folder.folder, stage), state_at(folder / "stop", stage))


@pytest.mark.slow
def test_products_in_bfloat16(alone, together, tmp_path):
    ours, theirs = first_stages("bfloat16", alone, together, tmp_path)
    assert same(ours, theirs)


@pytest.mark.slow
def test_several_shards_for_each_process(alone, together, tmp_path):
    """Gradients are added in another order than one process adds them; the matrices' updates are
    rounded to bfloat16, so that the last bit of a gradient may become the seventh of an update."""
    ours, theirs = first_stages("four_shards", alone, together, tmp_path)
    losses = (state["progress"]["losses"] for state in (ours, theirs))
    differences = [abs(one - other) / one for one, other in zip(*losses, strict=True)]
    print(f"relative differences of the losses: {differences}")
    assert differences[0] == 0  # before any update
    assert max(differences[:2]) < 1e-6
    assert max(differences) < 1e-4
    assert not same(ours, theirs)  # else this test has become one of equality


def first_stages(variant, alone, together, tmp_path):
    """The end of the first stage: by one process, and by two."""
    folder, outcomes = together
    assert [outcome["stage"] for outcome in outcomes] == [None, None]
    run = begin_with(alone, tmp_path / "run", RECIPE.replace(*VARIANTS[variant]))
    assert run.train(Stage.PRETRAIN)
    places = (run.folder.folder, folder / "stage" / variant)
    return [state_at(place, Stage.PRETRAIN) for place in places]


# ---- failing as one ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_stops_both(together):
    _, outcomes = together
    assert outcomes[0]["spoil"] == outcomes[1]["spoil"]
    assert "Step 2 of pretrain: the loss is not finite" in outcomes[0]["spoil"]


@pytest.mark.slow
def test_a_full_disk_ends_both_with_its_sentence(together):
    folder, outcomes = together
    assert outcomes[0]["fill_disk"] == outcomes[1]["fill_disk"]
    assert "checkpoint.pt cannot be written" in outcomes[0]["fill_disk"]
    assert not (folder / "fill_disk" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_shards_that_cannot_be_shared_evenly(together):
    folder, outcomes = together
    for outcome in outcomes:
        assert "2 processes cannot share the recipe's 3 shards evenly" in outcome["misfit"]
    assert not (folder / "misfit").exists()


@pytest.mark.slow
def test_what_fails_in_one_alone_is_told_there_and_ends_the_other(together):
    _, outcomes = together
    assert outcomes[0]["end"] == "SystemExit: 1"
    assert outcomes[1]["end"] == "OSError: a disk of its own is gone"


# ---- one process -------------------------------------------------------------------------------


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with join() as world:
        assert world == ALONE and world.is_first
        assert world.first(lambda: 7) == 7
        assert world.any(False, True) == (False, True)
        assert world.sum([1.5, 2.0]) == [1.5, 2.0]


@pytest.mark.parametrize(("size", "shards"), [(1, 1), (1, 3), (2, 4), (4, 4)])
def test_shards_that_can(size, shards):
    World(size=size).check_shards(shards)


@pytest.mark.parametrize(("size", "shards"), [(2, 1), (2, 3), (4, 2)])
def test_shards_that_cannot(size, shards):
    with pytest.raises(TrainingError, match=f"{size} processes.*divide {shards}.*nproc-per-node"):
        World(size=size).check_shards(shards)


def test_processes_that_cannot_find_one_another(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(TrainingError, match=r"cannot find one another.*torchrun"), join():
        pass
