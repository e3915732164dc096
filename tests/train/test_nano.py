"""The pipeline end to end on a small recipe: it learns, resumes bit for bit, stops when it must,
and exports the model that it trained."""

from __future__ import annotations

import itertools
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ossia
from ossia.errors import TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.reference import ReferenceKernels
from ossia.kernels.torch import TorchKernels
from ossia.model.checkpoint import open_checkpoint
from ossia.model.transformer import Architecture as ModelArchitecture
from ossia.model.transformer import forward, prepare_weights
from ossia.train import loop
from ossia.train.loop import Progress, Trainer, load_checkpoint
from ossia.train.nano import NanoRun, batches_at, train_nano
from ossia.train.parameters import Parameters
from ossia.train.recipe import Architecture, NanoRecipe, Schedule

SMALL = NanoRecipe(
    steps=40,
    batch_tokens=512,
    dtype="float32",
    architecture=Architecture(
        hidden_size=64, num_hidden_layers=2, num_local_experts=4, vocab_size=512
    ),
    schedule=Schedule(warmup_steps=5),
    tokenizer_lessons=300,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    reports = []
    run = train_nano(SMALL, tmp_path_factory.mktemp("nano") / "run", report=reports.append)
    return run, reports


def test_the_loss_falls(trained):
    _, reports = trained
    losses = [report.loss for report in reports]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_reports_say_what_happened(trained):
    _, reports = trained
    assert [report.step for report in reports] == list(range(1, 41))
    assert [report.rounded for report in reports].index(True) == 31  # 40 % into the last 16 steps
    rates = [report.learning_rate for report in reports]
    assert rates[0] < rates[4] == max(rates) and rates[-1] < 0.1 * max(rates)
    for report in reports:
        low, high = report.expert_shares
        assert 0 <= low <= 1 <= high <= 4


def test_a_resumed_run_takes_the_same_steps(trained, tmp_path):
    """Interrupted by Ctrl-C after step 13, then resumed; and never interrupted: the same bits."""

    def interrupt(report):
        if report.step == 13:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    assert train_nano(SMALL, folder, report=interrupt) is None
    assert load_checkpoint(NanoRun(folder).checkpoint)["progress"]["step"] == 13
    resumed = train_nano(NanoRecipe(), folder, resume=True)  # its own recipe counts
    assert resumed is not None
    run, _ = trained
    ours, theirs = (load_checkpoint(r.checkpoint)["parameters"] for r in (run, resumed))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert (run.model / "model.safetensors").read_bytes() == (
        resumed.model / "model.safetensors"
    ).read_bytes()


def test_the_exported_model_is_the_trained_one(trained):
    """Training forward on rounded weights = inference forward on the file."""
    run, _ = trained
    tokenizer = Tokenizer.load(run.tokenizer)
    parameters = Parameters.initial(SMALL.architecture.config(), SMALL.seed)
    trainer = Trainer(
        parameters,
        optimization=SMALL.optimization,
        schedule=SMALL.schedule,
        dtype=torch.float32,
    )
    trainer.restore(run.checkpoint)
    inputs = batches_at(SMALL, tokenizer, Progress(step=999))[0].inputs
    architecture = ModelArchitecture.of(parameters.config)

    def logits(kernels, source):
        weights = prepare_weights(architecture, kernels, source)
        return kernels.to_host(forward(architecture, kernels, weights, inputs))

    checkpoint = open_checkpoint(run.model)
    expected = logits(TorchKernels(), parameters.source(rounded=True))
    for kernels in (TorchKernels(), ReferenceKernels()):
        found = logits(kernels, checkpoint.part)
        difference = np.abs(found - expected).max()
        print(f"{kernels.name}: largest difference of logits {difference:.2g}")
        assert difference < (1e-6 if kernels.name == "torch" else 1e-3)
    unrounded = logits(TorchKernels(), parameters.source())
    assert np.abs(unrounded - expected).max() > 1e-3  # the comparison can fail


def test_the_exported_folder(trained):
    run, _ = trained
    config = json.loads((run.model / "config.json").read_text())
    generation = json.loads((run.model / "generation_config.json").read_text())
    card = json.loads((run.model / "ossia.json").read_text())
    tokenizer = Tokenizer.load(run.model)
    control = tokenizer.control
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert config["vocab_size"] == tokenizer.vocab_size == 512
    assert config["max_position_embeddings"] == 1024
    assert generation["do_sample"] is False
    assert sorted(generation["eos_token_id"]) == sorted(
        (control.return_, control.endoftext, control.call)
    )
    assert card["model_identity"] == "You are nano, the tiny model built into Ossia."
    assert (run.model / "tokenizer_config.json").exists()


def test_the_exported_model_chats(trained):
    run, _ = trained
    with ossia.load(run.model) as llm:
        sampling = replace(llm.default_sampling, max_tokens=20)
        turn = llm.chat("What is 2 + 3?", sampling=sampling)
    assert sampling.temperature == 0
    assert turn.usage.completion_tokens <= 20


def test_the_record(trained):
    run, reports = trained
    values = json.loads((run.folder / "run.json").read_text())
    assert values["losses"] == [round(report.loss, 5) for report in reports]
    assert values["tokens"] == sum(report.tokens for report in reports)
    assert NanoRecipe.from_json(values["recipe"]) == SMALL
    assert "| steps | 40 |" in (run.folder / "record.md").read_text()
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def trainer_for(recipe):
    return Trainer(
        Parameters.initial(recipe.architecture.config(), recipe.seed),
        optimization=recipe.optimization,
        schedule=recipe.schedule,
        dtype=torch.float32,
    )


def test_a_loss_that_is_not_finite_stops_and_names_the_step(trained):
    run, _ = trained
    tokenizer = Tokenizer.load(run.tokenizer)
    trainer = trainer_for(SMALL)

    def spoil(report):
        if report.step == 3:
            with torch.no_grad():
                trainer.parameters.tensors["head.weight"][0, 0] = float("nan")

    with pytest.raises(TrainingError, match="Step 4: the loss is not finite"):
        trainer.run(lambda p: batches_at(SMALL, tokenizer, p), steps=10, report=spoil)


def test_a_diverging_loss_stops(trained):
    run, _ = trained
    tokenizer = Tokenizer.load(run.tokenizer)
    wild = replace(SMALL.optimization, matrix_lr=30.0, other_lr=30.0)
    trainer = trainer_for(replace(SMALL, optimization=wild))
    with pytest.raises(TrainingError, match="has diverged"):
        trainer.run(lambda p: batches_at(SMALL, tokenizer, p), steps=40)


def test_the_clock_ends_a_run(trained, monkeypatch):
    """Every look at the clock takes a tenth of a second, of which a step needs three."""
    run, _ = trained
    tokenizer = Tokenizer.load(run.tokenizer)
    ticks = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 10))
    trainer = trainer_for(SMALL)
    assert trainer.run(lambda p: batches_at(SMALL, tokenizer, p), seconds=10.0)
    progress = trainer.progress
    assert progress.step == progress.total
    assert progress.decay_from == 20  # 6 of 10 seconds at 0.3 a step
    # The remaining 4 seconds, had rounded steps not been planned as costlier, hold 13 steps.
    assert progress.total == 20 + int(4 / 0.3 / (1 + 0.6 * 0.15))
    assert progress.seconds == pytest.approx(0.3 * progress.step)


def test_refuses_a_folder_in_use_and_a_missing_or_foreign_checkpoint(trained, tmp_path):
    run, _ = trained
    with pytest.raises(TrainingError, match="holds a run already"):
        train_nano(SMALL, run.folder)
    with pytest.raises(TrainingError, match="no checkpoint to resume"):
        train_nano(SMALL, tmp_path / "none", resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        train_nano(SMALL, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="dtype must be"):
        train_nano(replace(SMALL, dtype="int8"), tmp_path / "other")
