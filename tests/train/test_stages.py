"""The stages end to end on a small recipe: each learns, resumes bit for bit, stops when it must,
and what is exported is the model that was trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import ossia
from ossia.errors import OssiaError, TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.reference import ReferenceKernels
from ossia.kernels.torch import TorchKernels
from ossia.model.checkpoint import open_checkpoint
from ossia.model.transformer import Architecture as ModelArchitecture
from ossia.model.transformer import forward, prepare_weights
from ossia.train import stages
from ossia.train.loop import Progress, Trainer, learning_rate_factor, load_checkpoint
from ossia.train.parameters import Parameters
from ossia.train.recipe import Architecture, Recipe, Stage, StageRecipe
from ossia.train.source import Source
from ossia.train.stages import Run, RunFolder, train_all

DOCUMENTS = {"digits": 1.0, "copy": 1.0}
LESSONS = {"sum": 1.0, "talk": 1.0}
SMALL = Recipe(
    pretrain=StageRecipe(12, DOCUMENTS, batch_tokens=512, warmup_steps=3),
    sft=StageRecipe(16, LESSONS, batch_tokens=512, rate_to=0.5, full_system=0.2),
    quantize=StageRecipe(8, LESSONS, batch_tokens=512, rate_from=0.5, rate_to=0.0),
    identity="You are a test.",
    description="A test.",
    dtype="float32",
    architecture=Architecture(
        hidden_size=64, num_hidden_layers=2, num_local_experts=4, vocab_size=512
    ),
    tokenizer_texts=300,
    sample_texts=60,
)
STEPS = 12 + 16 + 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    reports = []
    run = Run.begin(SMALL, tmp_path_factory.mktemp("run") / "run")
    fidelity = train_all(run, report=reports.append)
    return run, reports, fidelity


def copy_of(run, tmp_path, *, without=()):
    """The run's folder, as it was before some of its files came to be."""
    folder = tmp_path / "copy"
    shutil.copytree(run.folder.folder, folder)
    for name in without:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


# ---- what a run does ---------------------------------------------------------------------------


def test_the_loss_falls_in_every_stage(trained):
    _, reports, _ = trained
    assert [report.stage for report in reports] == ["pretrain"] * 12 + ["sft"] * 16 + [
        "quantize"
    ] * 8
    losses = [report.loss for report in reports]
    assert np.mean(losses[8:12]) < 0.8 * losses[0]
    assert np.mean(losses[24:28]) < 0.8 * losses[12]
    assert np.mean(losses[-4:]) < np.mean(losses[24:28])


def test_reports_say_what_happened(trained):
    _, reports, _ = trained
    rates = [report.learning_rate / SMALL.optimization.matrix_lr for report in reports]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[12:28] == pytest.approx([1 - 0.5 * i / 16 for i in range(16)])
    assert rates[28:] == pytest.approx([0.5 - 0.5 * i / 8 for i in range(8)])
    for report in reports:
        low, high = report.expert_shares
        assert 0 <= low <= 1 <= high <= 4
        assert np.isfinite(report.gradient_norm) and report.gradient_norm > 0


def test_the_stages_one_by_one_are_the_whole_run(trained, tmp_path):
    run, _, _ = trained
    alone = Run.begin(SMALL, tmp_path / "alone")
    alone.make_tokenizer()
    for stage in Stage:
        alone = Run.reopen(tmp_path / "alone")
        assert alone.train(stage)
    alone.export()
    assert same_model(run, alone)


@pytest.mark.parametrize("at", [5, 12 + 7, 12 + 16 + 3])
def test_a_resumed_run_takes_the_same_steps(trained, tmp_path, at):
    """Interrupted by Ctrl-C in a stage, then resumed; and never interrupted: the same bits."""
    run, _, _ = trained
    seen = []

    def interrupt(report):
        seen.append(report)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)

    interrupted = Run.begin(SMALL, tmp_path / "run")
    assert train_all(interrupted, report=interrupt) is None
    assert len(seen) == at
    resumed = Run.reopen(tmp_path / "run")
    assert train_all(resumed, resume=True, report=seen.append) is not None
    assert len(seen) == STEPS
    ours, theirs = (load_checkpoint(r.folder.end_of(Stage.QUANTIZE)) for r in (run, resumed))
    for name, value in ours["parameters"].items():
        assert torch.equal(value, theirs["parameters"][name]), name
    assert ours["progress"]["losses"] == theirs["progress"]["losses"]
    assert same_model(run, resumed)


def same_model(one, other):
    files = (r.folder.model / "model.safetensors" for r in (one, other))
    return len({path.read_bytes() for path in files}) == 1


def test_another_seed_gives_another_model(trained, tmp_path):
    run, _, _ = trained
    other = Run.begin(replace(SMALL, seed=1), tmp_path / "run")
    train_all(other)
    assert not same_model(run, other)


# ---- what a run leaves -------------------------------------------------------------------------


def test_the_exported_model_is_the_trained_one(trained):
    """Training forward on rounded weights = inference forward on the file."""
    run, _, fidelity = trained
    trainer = trainer_for(SMALL)
    trainer.restore(run.folder.end_of(Stage.QUANTIZE))
    parameters = trainer.parameters
    tokenizer = Tokenizer.load(run.folder.tokenizer)
    inputs = Source(SMALL, Stage.QUANTIZE, tokenizer).batches_at(999)[0].inputs
    architecture = ModelArchitecture.of(parameters.config)

    def logits(kernels, source):
        weights = prepare_weights(architecture, kernels, source)
        return kernels.to_host(forward(architecture, kernels, weights, inputs))

    checkpoint = open_checkpoint(run.folder.model)
    expected = logits(TorchKernels(), parameters.source(rounded=True))
    for kernels in (TorchKernels(), ReferenceKernels()):
        found = logits(kernels, checkpoint.part)
        difference = np.abs(found - expected).max()
        print(f"{kernels.name}: largest difference of logits {difference:.2g}")
        assert difference < (1e-6 if kernels.name == "torch" else 1e-3)
    unrounded = logits(TorchKernels(), parameters.source())
    assert np.abs(unrounded - expected).max() > 1e-3  # the comparison can fail
    assert fidelity.kl_rounded < 1e-6 < fidelity.kl_unrounded
    assert fidelity.largest_difference < 1e-5


def test_the_exported_folder(trained):
    run, _, _ = trained
    config = json.loads((run.folder.model / "config.json").read_text())
    generation = json.loads((run.folder.model / "generation_config.json").read_text())
    card = json.loads((run.folder.model / "ossia.json").read_text())
    tokenizer = Tokenizer.load(run.folder.model)
    control = tokenizer.control
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert config["vocab_size"] == tokenizer.vocab_size == 512
    assert config["max_position_embeddings"] == 2048
    assert generation["do_sample"] is False
    assert sorted(generation["eos_token_id"]) == sorted(
        (control.return_, control.endoftext, control.call)
    )
    assert card == {"model_identity": "You are a test.", "description": "A test."}
    assert (run.folder.model / "tokenizer_config.json").exists()


def test_the_exported_model_chats(trained):
    run, _, _ = trained
    with ossia.load(run.folder.model) as llm:
        sampling = replace(llm.default_sampling, max_tokens=20)
        turn = llm.chat("What is 2 + 3?", sampling=sampling)
    assert sampling.temperature == 0
    assert turn.usage.completion_tokens <= 20


def test_the_record(trained):
    run, reports, fidelity = trained
    values = json.loads((run.folder.folder / "run.json").read_text())
    assert values["losses"] == [round(report.loss, 5) for report in reports]
    assert values["tokens"] == sum(report.tokens for report in reports)
    assert values["stages"] == {"pretrain": 0, "sft": 12, "quantize": 28}
    assert values["fidelity"]["kl_rounded"] == fidelity.kl_rounded
    assert Recipe.from_json(values["recipe"]) == SMALL
    record = (run.folder.folder / "record.md").read_text()
    assert f"| steps | {STEPS} |" in record and "KL" in record
    assert (run.folder.folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_data_stage_leaves_a_sample_and_the_filters_report(trained):
    run, _, _ = trained
    report = json.loads((run.folder.data / "filter.json").read_text())
    kept = [
        json.loads(line)
        for stage in Stage
        for line in (run.folder.data / f"{stage}.jsonl").read_text("utf-8").splitlines()
    ]
    assert report["kept"] == len(kept) and report["read"] == 3 * 60
    assert {tuple(item) for item in kept} == {("text",), ("messages",)}
    assert "|" in (run.folder.data / "filter.md").read_text()


def test_the_filter_drops_texts_before_they_are_learnt(trained, monkeypatch, tmp_path):
    run, _, _ = trained
    (tmp_path / "own_rules.py").write_text(
        "def no_digits(text):\n    return '7' if '7' in text else None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tokenizer = Tokenizer.load(run.folder.tokenizer)
    for filters, expected in (((), True), (("own_rules:no_digits",), False)):
        source = Source(replace(SMALL, filters=filters), Stage.PRETRAIN, tokenizer)
        text = tokenizer.decode([int(i) for i in source.batches_at(0)[0].inputs.ids_T])
        assert ("7" in text) is expected


# ---- going on with a model ---------------------------------------------------------------------


def test_continue_begins_with_a_models_weights(trained, tmp_path):
    run, _, _ = trained
    again = Run.begin(SMALL, tmp_path / "again")
    again.continue_from(run.folder.model)
    assert again.finished(Stage.PRETRAIN)
    found = load_checkpoint(again.folder.end_of(Stage.PRETRAIN))["parameters"]
    trainer = trainer_for(SMALL)
    trainer.restore(run.folder.end_of(Stage.QUANTIZE))
    rounded = trainer.parameters.source(rounded=True)
    for part, layer in (("moe", 1), ("attention", 0)):
        from ossia.kernels.interface import Part

        for name, value in rounded(Part(part), layer).items():
            assert torch.equal(found[f"{part}.{layer}.{name}"], value), name
    assert Tokenizer.load(again.folder.tokenizer).vocab_size == 512
    reports = []
    assert train_all(again, report=reports.append) is not None
    assert reports[0].stage == "sft"
    assert reports[0].loss < trained[1][12].loss


def test_continue_refuses_another_architecture(trained, tmp_path):
    run, _, _ = trained
    wider = replace(SMALL, architecture=replace(SMALL.architecture, hidden_size=96))
    with pytest.raises(TrainingError, match="hidden_size=96"):
        Run.begin(wider, tmp_path / "run").continue_from(run.folder.model)
    with pytest.raises(OssiaError, match="no such folder"):
        Run.begin(SMALL, tmp_path / "other").continue_from(tmp_path / "nowhere")


# ---- own data ----------------------------------------------------------------------------------


def test_a_stage_learns_from_files(trained, tmp_path):
    run, _, _ = trained
    line = {
        "messages": [
            {"role": "user", "content": "Say kelo."},
            {"role": "assistant", "thinking": "They want kelo.", "content": "kelo"},
        ]
    }
    mine = tmp_path / "mine.jsonl"
    mine.write_text((json.dumps(line) + "\n") * 3)
    sft = replace(SMALL.sft, files=(str(mine),), files_share=1.0)
    tokenizer = Tokenizer.load(run.folder.tokenizer)
    source = Source(replace(SMALL, sft=sft), Stage.SFT, tokenizer)
    batch = source.batches_at(0)[0]
    text = tokenizer.decode([int(i) for i in batch.inputs.ids_T])
    assert text.count("Say kelo.") == len(batch.inputs.cu_seqlens_S1) - 1
    mine.write_text(json.dumps(line) + "\n" + '{"messages": [{"role": "sage"}]}\n')
    with pytest.raises(TrainingError, match=r"mine\.jsonl.*2"):
        Source(replace(SMALL, sft=sft), Stage.SFT, tokenizer)


# ---- what stops a run --------------------------------------------------------------------------


def trainer_for(recipe):
    return Trainer(
        Parameters.initial(recipe.architecture.config(), recipe.seed),
        optimization=recipe.optimization,
        dtype=torch.float32,
    )


def source_of(run):
    return Source(SMALL, Stage.PRETRAIN, Tokenizer.load(run.folder.tokenizer))


def test_a_loss_that_is_not_finite_stops_and_names_the_step(trained):
    trainer = trainer_for(SMALL)

    def spoil(report):
        if report.step == 3:
            with torch.no_grad():
                trainer.parameters.tensors["head.weight"][0, 0] = float("nan")

    with pytest.raises(TrainingError, match="Step 4 of pretrain: the loss is not finite"):
        trainer.run(Stage.PRETRAIN, SMALL.pretrain, source_of(trained[0]).batches_at, report=spoil)


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(trained, monkeypatch):
    trainer = trainer_for(SMALL)
    before = {key: value.clone() for key, value in trainer.parameters.tensors.items()}
    gradients = trainer._gradients

    def spoiled(*args, **options):
        part = gradients(*args, **options)
        part.gradients[0][0] = float("inf")
        return part

    monkeypatch.setattr(trainer, "_gradients", spoiled)
    with pytest.raises(TrainingError, match="Step 1 of pretrain: the gradient is not finite"):
        trainer.run(Stage.PRETRAIN, SMALL.pretrain, source_of(trained[0]).batches_at)
    for key, value in trainer.parameters.tensors.items():
        assert torch.equal(value, before[key])


def test_a_diverging_loss_stops(trained):
    wild = replace(SMALL.optimization, matrix_lr=30.0, other_lr=30.0)
    trainer = trainer_for(replace(SMALL, optimization=wild))
    with pytest.raises(TrainingError, match=r"Step \d+ of pretrain: the loss has diverged"):
        trainer.run(
            Stage.PRETRAIN, replace(SMALL.pretrain, steps=60), source_of(trained[0]).batches_at
        )


def test_the_last_checkpoint_stays_when_a_run_stops(trained, tmp_path):
    trainer = trainer_for(SMALL)
    path = tmp_path / "checkpoint.pt"
    trainer.progress.enter(Stage.PRETRAIN)
    trainer.save(path, {})

    def spoil(report):
        with torch.no_grad():
            trainer.parameters.tensors["head.weight"].fill_(float("nan"))

    with pytest.raises(TrainingError):
        trainer.run(Stage.PRETRAIN, SMALL.pretrain, source_of(trained[0]).batches_at, report=spoil)
    assert torch.isfinite(load_checkpoint(path)["parameters"]["head.weight"]).all()


def test_a_full_disk_is_a_sentence_and_leaves_the_last_checkpoint(tmp_path):
    trainer = trainer_for(SMALL)
    path = tmp_path / "checkpoint.pt"
    trainer.save(path, {})
    before = path.read_bytes()
    (tmp_path / "checkpoint.pt.partial").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot be written.*make room"):
        trainer.save(path, {})
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt"]


def test_rates():
    recipe = StageRecipe(10, DOCUMENTS, warmup_steps=2, rate_from=1.0, rate_to=0.2)
    found = [learning_rate_factor(recipe, step) for step in range(10)]
    assert found == pytest.approx([0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    assert Progress().first_loss == float("inf")


def test_one_hard_batch_is_no_divergence(trained):
    """Late in a run the loss of single steps is up to twice that of others."""
    trainer = trainer_for(SMALL)
    trainer.progress = Progress("pretrain", 40, losses=[0.2] * 40, begins={"pretrain": 0})
    trainer._check(SMALL.pretrain, 0.9, 1.0)
    assert trainer.progress.recent_loss(0.9) == pytest.approx(0.27)
    trainer.progress.losses += [0.9] * 8
    with pytest.raises(TrainingError, match=r"diverged \(0.83 after 0.2 at"):
        trainer._check(SMALL.pretrain, 0.9, 1.0)


# ---- wrong order, wrong folders ----------------------------------------------------------------


def test_a_stage_names_the_one_that_has_to_come_first(trained, tmp_path):
    fresh = Run.begin(SMALL, tmp_path / "fresh")
    with pytest.raises(TrainingError, match="ossia train tokenizer"):
        fresh.train(Stage.PRETRAIN)
    fresh.make_tokenizer()
    with pytest.raises(TrainingError, match="ossia train pretrain"):
        fresh.train(Stage.SFT)
    with pytest.raises(TrainingError, match="ossia train quantize"):
        fresh.export()


def test_nothing_finished_or_interrupted_is_trained_over(trained, tmp_path):
    run, _, _ = trained
    with pytest.raises(TrainingError, match=r"sft is finished.*sft\.pt"):
        run.train(Stage.SFT)
    folder = copy_of(run, tmp_path, without=["quantize.pt", "model"])
    with pytest.raises(TrainingError, match=r"quantize was interrupted after step 8.*--resume"):
        Run.reopen(folder).train(Stage.QUANTIZE)


def test_refuses_a_folder_in_use_and_a_missing_or_foreign_checkpoint(trained, tmp_path):
    run, _, _ = trained
    with pytest.raises(TrainingError, match="holds a run already"):
        Run.begin(SMALL, run.folder.folder)
    with pytest.raises(TrainingError, match="no run here to go on with"):
        Run.reopen(tmp_path / "none")
    folder = copy_of(run, tmp_path, without=["quantize.pt"])
    RunFolder(folder).checkpoint.write_bytes(b"something else")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        Run.reopen(folder).train(Stage.QUANTIZE, resume=True)
    RunFolder(folder).recipe.write_text("{}")
    with pytest.raises(TrainingError, match="not the recipe of a run"):
        Run.reopen(folder)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be made"):
        Run.begin(SMALL, tmp_path / "file" / "run")


def test_a_checkpoint_of_another_architecture_is_refused(trained):
    other = replace(SMALL, architecture=replace(SMALL.architecture, hidden_size=96))
    with pytest.raises(TrainingError, match="another architecture"):
        trainer_for(other).restore(trained[0].folder.checkpoint)


def test_a_checkpoint_of_another_version_is_refused(trained, tmp_path):
    state = torch.load(trained[0].folder.checkpoint, weights_only=True)
    torch.save({**state, "format": 0}, tmp_path / "old.pt")
    with pytest.raises(TrainingError, match=r"format 0, expected \d"):
        load_checkpoint(tmp_path / "old.pt")


def test_steps_are_scaled_to_the_minutes(trained, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000))
    run = Run.begin(SMALL, tmp_path / "run")
    run.make_tokenizer()
    monkeypatch.setattr(stages.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(Trainer, "step", lambda *_: None)
    run.fit_into(2.0)  # a step takes one second by this clock: 120 of 36 steps' length
    assert [run.recipe.stage(s).steps for s in Stage] == [40, 53, 27]
    assert Run.reopen(tmp_path / "run").recipe == run.recipe
