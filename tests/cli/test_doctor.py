"""`ossia doctor`: a healthy model passes, and whatever is broken is named with its mend."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from checkpoints import TINY, hugging_face_tensors, random_tensors, save_shards, write_json
from ossia.cli.main import run
from ossia.cli.options import size
from ossia.engine.machine_memory import MachineMemory
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.mxfp4 import encode
from ossia.kernels.reference import ReferenceKernels
from support import trained_tokenizer_json, write_tokenizer_json


def write_model(folder, begins_with):
    """A model whose most probable first token is `begins_with`: attention and experts add nothing,
    so that the last token of the prompt alone decides, through one row of the head.
    """
    folder.mkdir()
    write_tokenizer_json(folder, trained_tokenizer_json())
    tokenizer = Tokenizer.load(folder)
    config = replace(TINY, vocab_size=tokenizer.vocab_size, eos_token_ids=(), pad_token_id=None)
    tensors = random_tensors(config)
    zero = np.zeros(1, ml_dtypes.bfloat16)
    for (part, _), group in tensors.items():
        if part == "attention":
            group["o"], group["o_bias"] = group["o"] * zero, group["o_bias"] * zero
        elif part == "moe":
            group["down"] = encode(np.zeros(group["down"].shape, np.float32))
            group["down_bias"] = group["down_bias"] * zero
    last = tokenizer.encode("assistant")[-1]
    head = tensors["head", None]["weight"] * zero
    head[tokenizer.encode_with_controls(begins_with)[0]] = tensors["embedding", None]["weight"][
        last
    ]
    tensors["head", None] = {"norm": head[0] * zero + np.ones_like(zero), "weight": head}
    write_json(folder / "config.json", config.to_json(mxfp4=True))
    save_shards(folder, hugging_face_tensors(tensors, mxfp4=True), 1)
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "healthy", "<|channel|>")


def examine(capsys, model, *options):
    """Exit code of the command, and its findings by status."""
    code = run(["doctor", "--json", "--model", str(model), *options])
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] == (code == 0)
    by_status = {"ok": [], "note": [], "problem": []}
    for finding in report["findings"]:
        by_status[finding["status"]].append(finding)
    return code, by_status


def test_a_healthy_model(healthy, capsys):
    code, found = examine(capsys, healthy)
    assert code == 0, found["problem"]
    assert not found["problem"]
    topics = {finding["topic"] for finding in found["ok"]}
    assert topics >= {"system", "processor", "memory", "kernels", "self-test", "model", "tokenizer"}
    texts = " / ".join(finding["text"] for finding in found["ok"])
    assert "native is used" in texts and "native passes 6 checks" in texts
    assert 'it begins its turn with "<|channel|>"' in texts


def test_for_people(healthy, capsys):
    assert run(["doctor", "--model", str(healthy)]) == 0
    out = capsys.readouterr().out
    assert "native passes 6 checks" in out and "and 3 in int8" in out
    assert out.endswith("Nothing is wrong.\n")


def test_a_recipient_may_come_first(tmp_path, capsys):
    folder = write_model(tmp_path / "model", " to")
    assert examine(capsys, folder)[0] == 0


def test_a_model_that_speaks_no_harmony(tmp_path, capsys):
    folder = write_model(tmp_path / "model", "<|start|>")
    code, found = examine(capsys, folder)
    assert code == 1
    (problem,) = found["problem"]
    assert 'would begin its turn with "<|start|>"' in problem["text"]
    assert "weights are damaged" in problem["mend"]


def test_not_a_number(healthy, tmp_path, capsys):
    folder = write_model(tmp_path / "model", "<|channel|>")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    begin, end = header["model.norm.weight"]["data_offsets"]
    data[8 + header_size + begin : 8 + header_size + end] = b"\xff\x7f" * ((end - begin) // 2)
    path.write_bytes(data)
    code, found = examine(capsys, folder)
    assert code == 1
    (problem,) = found["problem"]
    assert "forward pass failed" in problem["text"]
    assert "fetch both again" in problem["mend"]


def test_every_problem_of_a_checkpoint_is_named(tmp_path, capsys):
    folder = write_model(tmp_path / "model", "<|channel|>")
    tensors = hugging_face_tensors(random_tensors(TINY), mxfp4=True)
    del tensors["model.norm.weight"], tensors["model.layers.1.self_attn.sinks"]
    save_shards(folder, tensors, 1)  # and of another vocabulary
    code, found = examine(capsys, folder)
    assert code == 1
    texts = [finding["text"] for finding in found["problem"]]
    for name in ("model.norm.weight", "layers.1.self_attn.sinks", "lm_head.weight"):
        assert any(name in text for text in texts), name


def test_a_missing_tokenizer(tmp_path, capsys):
    folder = write_model(tmp_path / "model", "<|channel|>")
    (folder / "tokenizer.json").unlink()
    code, found = examine(capsys, folder)
    assert code == 1
    (problem,) = found["problem"]
    assert problem["topic"] == "tokenizer"
    assert "no tokenizer.json beside the weights" in problem["text"]


def test_a_model_that_is_not_there(tmp_path, capsys):
    code, found = examine(capsys, tmp_path / "nowhere")
    assert code == 1
    assert "no such folder" in found["problem"][0]["text"]
    assert any(finding["topic"] == "self-test" for finding in found["ok"])  # the rest is examined


def test_kernels_that_compute_something_else(healthy, capsys, monkeypatch):
    right = ReferenceKernels.moe
    monkeypatch.setattr(
        ReferenceKernels, "moe", lambda self, x, weight: right(self, x, weight) * 1.01
    )
    code, found = examine(capsys, healthy, "--kernels", "reference")
    assert code == 1
    failed = [finding for finding in found["problem"] if finding["topic"] == "self-test"]
    assert failed
    assert "reference, whole sequences without a cache: off by" in failed[0]["text"]
    assert "take others with --kernels" in failed[0]["mend"]


def test_native_kernels_whose_int8_is_wrong(healthy, capsys, monkeypatch):
    """The exact path is right: only what is quantised differs."""
    from ossia.kernels.native import NativeKernels

    right = NativeKernels.logits

    def wrong(self, x, weight, rows):
        return right(self, x, weight, rows if self.exact else np.zeros_like(rows))

    monkeypatch.setattr(NativeKernels, "logits", wrong)
    code, found = examine(capsys, healthy)
    assert code == 1
    failed = [finding for finding in found["problem"] if finding["topic"] == "self-test"]
    assert failed and all("native, int8" in finding["text"] for finding in failed)
    assert examine(capsys, healthy, "--exact")[0] == 0


def test_the_settings_of_native_are_named(healthy, capsys):
    options = ("--threads", "1", "--dense-dtype", "bf16", "--instruction-set", "scalar")
    code, found = examine(capsys, healthy, *options)
    assert code == 0
    texts = [finding["text"] for finding in found["ok"]]
    assert any("scalar, 1 thread, int8, dense tensors bf16" in text for text in texts)
    code, found = examine(capsys, healthy, "--exact")
    assert any(", exact" in finding["text"] for finding in found["ok"])
    assert not any("in int8" in finding["text"] for finding in found["ok"])


def test_numerics_of_nano(capsys):
    code, found = examine(capsys, "nano", "--numerics")
    assert code == 0
    (finding,) = [finding for finding in found["ok"] if finding["topic"] == "numerics"]
    assert "16 lessons of its kind" in finding["text"]
    share = float(re.search(r"top-1 agreement ([\d.]+)%", finding["text"])[1])
    assert 98 < share <= 100


def test_numerics_of_random_weights_mean_nothing(healthy, capsys):
    code, found = examine(capsys, healthy, "--numerics")
    assert code == 0
    assert any("mean nothing" in finding["text"] for finding in found["note"])


@pytest.mark.parametrize("options", [["--exact"], ["--kernels", "reference"]])
def test_numerics_where_nothing_is_quantised(healthy, capsys, options):
    code, found = examine(capsys, healthy, "--numerics", *options)
    assert code == 0
    assert any("nothing is quantised" in finding["text"] for finding in found["ok"])


def test_too_little_memory(healthy, capsys, monkeypatch):
    machine = MachineMemory.describe()
    limited = replace(machine, limit=100_000)
    monkeypatch.setattr(MachineMemory, "describe", lambda root=None: limited)
    code, found = examine(capsys, healthy)
    assert code == 1
    (problem,) = found["problem"]
    assert problem["topic"] == "memory"
    assert "this process may use 0.1 MB" in problem["text"]
    crowded = replace(machine, available=100_000)
    monkeypatch.setattr(MachineMemory, "describe", lambda root=None: crowded)
    code, found = examine(capsys, healthy)
    assert code == 0
    assert "100.0 kB are free now" in found["note"][0]["text"]


def test_unknown_kernels_are_wrong_usage(capsys):
    assert run(["doctor", "--kernels", "cuda"]) == 2
    assert "cuda" in capsys.readouterr().err


def test_a_large_model_on_the_reference_kernels(healthy, capsys, monkeypatch):
    monkeypatch.setattr("ossia.kernels.choose.LARGEST_REFERENCE_BYTES", 1000)
    code, found = examine(capsys, healthy, "--kernels", "reference")
    assert code == 1
    assert "--kernels native" in found["problem"][0]["text"]
    assert examine(capsys, healthy, "--kernels", "reference", "--allow-slow")[0] == 0
    # Left to choose without the native ones, it takes what can run the model.
    monkeypatch.setattr("ossia.kernels.choose.is_available", lambda name: name != "native")
    code, found = examine(capsys, healthy)
    assert code == 0
    assert any("torch is used" in finding["text"] for finding in found["ok"])


def test_sizes():
    assert [size(n) for n in (None, 999, 5_000_000, 13_761_264_768)] == [
        "an unknown amount",
        "1.0 kB",
        "5.0 MB",
        "13.8 GB",
    ]
