"""Both forms of a random model hold the same values. What GGUF holds is decoded by the package
`gguf` itself; what safetensors hold, by the published formulas in numpy.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import random_model
from random_model import ModelFiles, RandomTensors, ensure_gguf, shape_config

from ossia.errors import UsageError
from ossia.kernels.interface import Part
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.model.checkpoint import open_checkpoint
from ossia.model.writer import write_checkpoint
from random_models import tiny_config

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def values(tensor):
    """In float64; MXFP4 straight from the published formula."""
    if not isinstance(tensor, Mxfp4Tensor):
        return tensor.astype(np.float64)
    nibbles = np.stack([tensor.blocks & 15, tensor.blocks >> 4], axis=-1)
    scaled = E2M1[nibbles] * np.exp2(tensor.scales.astype(float) - 127)[..., None, None]
    return scaled.reshape(tensor.shape)


# -- The random tensors ------------------------------------------------------------------------


def test_shapes_have_the_published_numbers_of_parameters():
    assert shape_config("20b").num_parameters() == 20_914_757_184
    assert shape_config("120b").num_parameters() == 116_829_156_672


def test_layers_shorten_the_model_and_keep_their_kind():
    config = shape_config("20b", 3)
    assert config.num_hidden_layers == 3
    assert config.sliding_layers == (True, False, True)


@pytest.mark.parametrize(("shape", "layers"), [("7b", None), ("20b", 0), ("20b", 25)])
def test_shapes_that_do_not_exist_are_refused(shape, layers):
    with pytest.raises(UsageError, match=r"takes .* got"):
        shape_config(shape, layers)


def test_the_same_tensors_come_again():
    config = tiny_config()
    first = RandomTensors(config).part(Part.ATTENTION, 1)["q"]
    assert (first == RandomTensors(config).part(Part.ATTENTION, 1)["q"]).all()
    assert (first != RandomTensors(config).part(Part.ATTENTION, 2)["q"]).any()
    assert (first != RandomTensors(config, seed=1).part(Part.ATTENTION, 1)["q"]).any()


def test_a_product_with_unit_activations_has_about_unit_variance():
    config = tiny_config(hidden_size=2880, intermediate_size=64, num_local_experts=2)
    tensors = RandomTensors(config)
    moe, attention = tensors.part(Part.MOE, 0), tensors.part(Part.ATTENTION, 0)
    assert set(np.unique(moe["gate_up"].scales)) == {118, 119, 120, 121}
    assert 2880 * values(moe["gate_up"]).var() == pytest.approx(1.03, abs=0.03)
    assert 2880 * values(moe["router"]).var() == pytest.approx(1, abs=0.05)
    assert 2880 * values(attention["q"]).var() == pytest.approx(1, abs=0.02)
    assert values(tensors.part(Part.EMBEDDING, None)["weight"]).std() == pytest.approx(1, abs=0.01)
    assert values(moe["norm"]).mean() == pytest.approx(1, abs=0.01)


def test_drawing_in_pieces_leaves_nothing_undrawn(monkeypatch):
    monkeypatch.setattr(random_model, "_CHUNK", 100)
    weight = RandomTensors(tiny_config()).part(Part.HEAD, None)["weight"]
    assert weight.dtype == ml_dtypes.bfloat16
    assert values(weight).std() == pytest.approx(1 / 8, rel=0.05)
    assert len(np.unique(weight[-1])) > 10


def test_a_missing_interpreter_is_one_sentence(tmp_path):
    files = ModelFiles(tmp_path, "20b", 1)
    with pytest.raises(UsageError, match="cannot be run"):
        ensure_gguf(files, str(tmp_path / "no-python"))


# -- Both forms --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    # In several files, and experts of another width than the model.
    config = tiny_config(num_hidden_layers=2, hidden_size=64, intermediate_size=96)
    write_checkpoint(folder, config, RandomTensors(config).part, max_shard_bytes=100_000)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def gguf_file(checkpoint):
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    from gguf_model import write_gguf

    path = checkpoint.with_suffix(".gguf")
    write_gguf(checkpoint, path, progress=lambda done, total: None)
    return path


@pytest.fixture(scope="module")
def gguf_tensors(gguf_file):
    """Decoded by gguf, by name, with the kind of each."""
    import gguf

    tensors = gguf.GGUFReader(gguf_file).tensors
    return {
        tensor.name: (tensor.tensor_type.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in tensors
    }


def test_experts_are_the_same_bit_for_bit(checkpoint, gguf_tensors):
    opened = open_checkpoint(checkpoint)
    for layer in range(2):
        moe = opened.part(Part.MOE, layer)
        gate_up = values(moe["gate_up"])
        for name, expected in (
            ("gate", gate_up[:, 0::2]),
            ("up", gate_up[:, 1::2]),
            ("down", values(moe["down"])),
        ):
            kind, found = gguf_tensors[f"blk.{layer}.ffn_{name}_exps.weight"]
            assert kind == "MXFP4"
            assert (found == expected).all()


def test_matrices_are_the_same_within_the_error_of_q8_0(checkpoint, gguf_tensors):
    opened = open_checkpoint(checkpoint)
    matrices = {
        "token_embd.weight": opened.part(Part.EMBEDDING, None)["weight"],
        "output.weight": opened.part(Part.HEAD, None)["weight"],
    }
    for layer in range(2):
        attention = opened.part(Part.ATTENTION, layer)
        for name, key in (("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v"), ("attn_output", "o")):
            matrices[f"blk.{layer}.{name}.weight"] = attention[key]
    for name, tensor in matrices.items():
        kind, found = gguf_tensors[name]
        assert kind == "Q8_0"
        expected = values(tensor)
        blocks = expected.reshape(*expected.shape[:-1], -1, 32)
        # Half a step of the 127 in a block, and what float16 takes from the block's scale.
        step = np.abs(blocks).max(axis=-1, keepdims=True) / 127
        error = np.abs(found.reshape(blocks.shape) - blocks)
        assert (error <= step * (0.5 + 127 * 2.0**-11)).all()


def test_everything_else_is_the_same_in_float32(checkpoint, gguf_tensors):
    opened = open_checkpoint(checkpoint)
    expected = {"output_norm.weight": opened.part(Part.HEAD, None)["norm"]}
    for layer in range(2):
        attention, moe = opened.part(Part.ATTENTION, layer), opened.part(Part.MOE, layer)
        expected |= {
            f"blk.{layer}.{name}": tensor
            for name, tensor in {
                "attn_norm.weight": attention["norm"],
                "attn_q.bias": attention["q_bias"],
                "attn_k.bias": attention["k_bias"],
                "attn_v.bias": attention["v_bias"],
                "attn_output.bias": attention["o_bias"],
                "attn_sinks.weight": attention["sinks"],
                "post_attention_norm.weight": moe["norm"],
                "ffn_gate_inp.weight": moe["router"],
                "ffn_gate_inp.bias": moe["router_bias"],
                "ffn_gate_exps.bias": moe["gate_up_bias"][:, 0::2],
                "ffn_up_exps.bias": moe["gate_up_bias"][:, 1::2],
                "ffn_down_exps.bias": moe["down_bias"],
            }.items()
        }
    floats = {name: data for name, (kind, data) in gguf_tensors.items() if kind == "F32"}
    assert floats.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (floats[name] == values(tensor)).all(), name


def test_the_metadata_are_those_of_the_architecture(gguf_file):
    import gguf

    fields = gguf.GGUFReader(gguf_file).fields
    expected = {
        "general.architecture": "gpt-oss",
        "gpt-oss.block_count": 2,
        "gpt-oss.context_length": 131072,
        "gpt-oss.embedding_length": 64,
        "gpt-oss.expert_feed_forward_length": 96,
        "gpt-oss.attention.head_count": 4,
        "gpt-oss.attention.head_count_kv": 2,
        "gpt-oss.attention.key_length": 64,
        "gpt-oss.attention.value_length": 64,
        "gpt-oss.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "gpt-oss.attention.sliding_window": 128,
        "gpt-oss.expert_count": 8,
        "gpt-oss.expert_used_count": 4,
        "gpt-oss.rope.freq_base": 150000.0,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": 32.0,
        "gpt-oss.rope.scaling.original_context_length": 4096,
        "tokenizer.ggml.model": "gpt2",
    }
    assert {name: fields[name].contents() for name in expected} == expected
    assert len(set(fields["tokenizer.ggml.tokens"].contents())) == 301


def test_a_disk_without_room_is_refused_before_writing(checkpoint, gguf_file, monkeypatch, capsys):
    import gguf_model

    monkeypatch.setattr(gguf_model.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    target = checkpoint.parent / "other.gguf"
    monkeypatch.setattr(sys, "argv", ["gguf_model.py", str(checkpoint), str(target)])
    assert gguf_model.main() == 1
    assert "the disk has 0 left" in capsys.readouterr().err
    assert not list(checkpoint.parent.glob("*other*"))


def test_a_failure_on_the_way_leaves_nothing_behind(checkpoint, gguf_file, monkeypatch):
    import gguf_model

    def full(done, total):
        raise OSError("no space left")

    target = checkpoint.parent / "other.gguf"
    with pytest.raises(OSError, match="no space left"):
        gguf_model.write_gguf(checkpoint, target, progress=full)
    assert not list(checkpoint.parent.glob("*other*"))


def test_a_checkpoint_without_experts_in_mxfp4_is_refused(tmp_path, monkeypatch, capsys, gguf_file):
    import gguf_model

    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
    target = tmp_path / "model.gguf"
    monkeypatch.setattr(sys, "argv", ["gguf_model.py", str(tmp_path), str(target)])
    assert gguf_model.main() == 1
    assert "expected 'model.embed_tokens.weight'" in capsys.readouterr().err
