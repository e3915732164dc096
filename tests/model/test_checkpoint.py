"""Opening checkpoints of every layout, and naming the file and the tensor of everything wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import (
    TINY,
    hugging_face_tensors,
    original_tensors,
    random_checkpoint,
    random_tensors,
    same_values,
    save_shards,
    write_json,
)
from ossia.errors import CheckpointError, ConfigError, ModelNotFoundError
from ossia.kernels.interface import Part, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.model.checkpoint import open_checkpoint, survey
from ossia.model.config import GenerationConfig, ModelConfig
from ossia.model.names import Layout, checkpoint_bytes, expected_tensors, parts

INDEX = "model.safetensors.index.json"
Q_WEIGHT = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", Layout)
def test_every_layout_gives_the_same_parts(tmp_path, layout, shards, use_mmap):
    random_checkpoint(tmp_path, layout=layout, shards=shards)
    checkpoint = open_checkpoint(tmp_path, use_mmap=use_mmap)
    assert checkpoint.layout is layout
    assert checkpoint.folder == tmp_path
    assert checkpoint.total_bytes == checkpoint_bytes(TINY, layout)
    original = layout is Layout.ORIGINAL
    unsaid = {"eos_token_ids": (), "pad_token_id": None} if original else {}
    assert checkpoint.config == dataclasses.replace(TINY, **unsaid)
    expected = random_tensors()
    for part, layer in parts(TINY):
        tensors = checkpoint.part(part, layer)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        assert shapes == part_shapes(part, TINY.dims())
        for name, tensor in tensors.items():
            assert same_values(tensor, expected[part.value, layer][name]), (part, layer, name)


@pytest.mark.parametrize("layout", Layout)
def test_parts_are_read_only_views_of_the_files(tmp_path, layout):
    checkpoint = open_checkpoint(random_checkpoint(tmp_path, layout=layout))
    maps = {id(file): file._bytes for file in checkpoint.files.values()}
    for part, layer in parts(TINY):
        for tensor in checkpoint.part(part, layer).values():
            pieces = [tensor]
            if isinstance(tensor, Mxfp4Tensor):
                pieces = [tensor.blocks, tensor.scales]
            for piece in pieces:
                assert not piece.flags.writeable
                assert any(np.may_share_memory(piece, mapped) for mapped in maps.values())


def test_generation_defaults(tmp_path):
    random_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path).generation == GenerationConfig(
        eos_token_ids=(5, 6), pad_token_id=7, do_sample=False
    )
    (tmp_path / "generation_config.json").unlink()
    assert open_checkpoint(tmp_path).generation == GenerationConfig(
        eos_token_ids=(5, 6), pad_token_id=7
    )


def test_the_published_sizes():
    """Against the index of the published checkpoint and the figures of its two parts."""
    small = ModelConfig.from_json(
        TINY.to_json(mxfp4=True)
        | {
            "num_hidden_layers": 24,
            "layer_types": None,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "experts_per_token": 4,
            "vocab_size": 201088,
        },
        "config.json",
    )
    large = dataclasses.replace(
        small, num_hidden_layers=36, sliding_layers=(True, False) * 18, num_local_experts=128
    )
    for layout in (Layout.HF_MXFP4, Layout.ORIGINAL):
        assert checkpoint_bytes(small, layout) == 13_761_264_768
        assert checkpoint_bytes(large, layout) == 65_248_815_744
    assert checkpoint_bytes(small, Layout.HF_BF16) == 2 * 20_914_757_184
    for config in (small, large):
        elements = (np.prod(t.shape) for t in expected_tensors(config, Layout.HF_BF16).values())
        assert sum(map(int, elements)) == config.num_parameters()
    published = expected_tensors(small, Layout.HF_MXFP4)
    assert len(published) == 3 + 24 * 19
    gate_up = published["model.layers.23.mlp.experts.gate_up_proj_blocks"]
    assert gate_up.shape == (32, 5760, 90, 16)


def test_original_inside_a_folder(tmp_path):
    random_checkpoint(tmp_path / "original", layout="original")
    write_json(tmp_path / "original" / "dtypes.json", {"embedding.weight": "BF16"})
    (tmp_path / "README.md").touch()
    assert open_checkpoint(tmp_path).folder == tmp_path / "original"
    assert open_checkpoint(tmp_path / "original").folder == tmp_path / "original"


def test_the_hugging_face_files_go_before_original(tmp_path):
    random_checkpoint(tmp_path)
    random_checkpoint(tmp_path / "original", layout="original")
    assert open_checkpoint(tmp_path).layout is Layout.HF_MXFP4


def test_an_index_beside_original_shards(tmp_path):
    random_checkpoint(tmp_path, layout="original", shards=2)
    stored = original_tensors(random_tensors())
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    save_shards(tmp_path, stored, 3, "model--{:05}-of-{:05}.safetensors", index=True)
    assert len(open_checkpoint(tmp_path).part(Part.EMBEDDING, None)) == 1


def test_float32_norms_among_bfloat16(tmp_path):
    random_checkpoint(tmp_path)
    change(tmp_path, "model.norm.weight", lambda norm: norm.astype(np.float32))
    assert open_checkpoint(tmp_path).part(Part.HEAD, None)["norm"].dtype == np.float32


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_transformers_saves(tmp_path, dtype, shards):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**TINY.to_json(mxfp4=False))
    model = transformers.GptOssForCausalLM(config).to(getattr(torch, dtype))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path, **({"max_shard_size": "60KB"} if shards else {}))
    assert (tmp_path / INDEX).exists() == shards

    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout is Layout.HF_BF16
    assert checkpoint.config == TINY
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    attention, moe = checkpoint.part(Part.ATTENTION, 0), checkpoint.part(Part.MOE, 1)
    assert attention["q"].dtype == moe["down"].dtype == np.dtype(dtype)
    experts = "model.layers.1.mlp.experts."
    for tensor, theirs in (
        (checkpoint.part(Part.EMBEDDING, None)["weight"], state["model.embed_tokens.weight"]),
        (checkpoint.part(Part.HEAD, None)["weight"], state["lm_head.weight"]),
        (attention["k"], state["model.layers.0.self_attn.k_proj.weight"]),
        (attention["sinks"], state["model.layers.0.self_attn.sinks"]),
        (moe["norm"], state["model.layers.1.post_attention_layernorm.weight"]),
        (moe["gate_up"], state[f"{experts}gate_up_proj"].transpose(0, 2, 1)),
        (moe["down"], state[f"{experts}down_proj"].transpose(0, 2, 1)),
        (moe["down_bias"], state[f"{experts}down_proj_bias"]),
    ):
        np.testing.assert_array_equal(tensor.astype(np.float32), theirs)


# -- What is wrong ---------------------------------------------------------------------------------


def change(folder, name, edit):
    """Rewrite the file that holds the tensor: `edit` gives another one, or None for none."""
    for path in folder.glob("*.safetensors"):
        stored = load_file(path)
        if name in stored:
            edited = edit(stored.pop(name))
            save_file(stored | ({} if edited is None else {name: edited}), path)
            return path
    raise AssertionError(name)


def add(path, **tensors):
    save_file(load_file(path) | tensors, path)


def edit_json(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    write_json(path, values)


def refusal(folder, error=CheckpointError):
    """The first problem, as a user reads it."""
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("shards", [1, 2])
def test_a_missing_tensor(tmp_path, layout, shards):
    random_checkpoint(tmp_path, layout=layout, shards=shards)
    name = (
        "block.1.mlp.gate.bias" if layout is Layout.ORIGINAL else "model.layers.1.mlp.router.bias"
    )
    path = change(tmp_path, name, lambda _: None)
    if layout is Layout.ORIGINAL and shards == 2:
        assert refusal(tmp_path).startswith(f'{tmp_path}: tensor "{name}" is missing')
    else:
        assert refusal(tmp_path).startswith(f'{path.name}: tensor "{name}" is missing')
    assert len(survey(tmp_path).problems) == 1


def test_each_missing_tensor_is_found(tmp_path):
    """Take every single one away in turn: none is superfluous, none goes unnoticed."""
    for layout in Layout:
        source = random_checkpoint(tmp_path / layout.value, layout=layout)
        path = source / "model.safetensors"
        stored = load_file(path)
        for name in stored:
            save_file({other: tensor for other, tensor in stored.items() if other != name}, path)
            problems = [str(problem) for problem in survey(source).problems]
            assert len(problems) == 1 and f'"{name}" is missing' in problems[0]


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("model.layers.2.input_layernorm.weight", "a gpt-oss model of 2 layers; remove it"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "ossia computes its own"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "merge it into the model first"),
    ],
)
def test_an_extra_tensor(tmp_path, extra, says):
    path = random_checkpoint(tmp_path) / "model.safetensors"
    add(path, **{extra: np.ones(64, np.float32)})
    message = refusal(tmp_path)
    assert message.startswith(f'model.safetensors: tensor "{extra}"')
    assert says in message


def test_a_misshapen_tensor(tmp_path):
    random_checkpoint(tmp_path)
    change(tmp_path, Q_WEIGHT, lambda q: np.ascontiguousarray(q.T))
    message = refusal(tmp_path)
    assert message.startswith(f'model.safetensors: tensor "{Q_WEIGHT}" has the shape [64, 128], ')
    assert "config.json asks for [128, 64]" in message


def test_a_dequantised_expert_not_transposed(tmp_path):
    random_checkpoint(tmp_path, layout="hf-bf16")
    name = "model.layers.0.mlp.experts.down_proj"
    change(tmp_path, name, lambda w: np.ascontiguousarray(w.transpose(0, 2, 1)))
    assert f'"{name}" has the shape [4, 64, 96]' in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [
        (Q_WEIGHT, np.float16, "is F16, expected BF16 or F32; convert it."),
        (Q_WEIGHT, np.float64, "is F64, expected BF16 or F32"),
        ("model.layers.0.mlp.experts.down_proj_scales", np.int8, "is I8, expected U8"),
    ],
)
def test_a_mistyped_tensor(tmp_path, name, dtype, says):
    random_checkpoint(tmp_path)
    change(tmp_path, name, lambda tensor: tensor.astype(dtype))
    assert refusal(tmp_path).startswith(f'model.safetensors: tensor "{name}" {says}')


def test_a_truncated_file(tmp_path):
    path = random_checkpoint(tmp_path, shards=3) / "model-00002-of-00003.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert refusal(tmp_path).startswith('model-00002-of-00003.safetensors: tensor "')
    assert "truncated" in refusal(tmp_path)
    with path.open("r+b") as file:
        file.truncate(100)
    assert "it is truncated or something else" in refusal(tmp_path)
    assert len(survey(tmp_path).problems) == 1  # not also a hundred missing tensors


def test_overlapping_tensors(tmp_path):
    path = random_checkpoint(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first, second = sorted(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )[:2]
    begin, end = header[second]["data_offsets"]
    header[second]["data_offsets"] = [begin - 2, end - 2]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert refusal(tmp_path).startswith(
        f'model.safetensors: tensor "{second}" overlaps tensor "{first}"'
    )


def test_a_missing_shard(tmp_path):
    random_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    assert refusal(tmp_path).startswith(
        f"model-00003-of-00003.safetensors: the file is missing, though {INDEX} names it for "
    )
    assert len(survey(tmp_path).problems) == 1


def test_a_missing_original_shard(tmp_path):
    random_checkpoint(tmp_path, layout="original", shards=3)
    (tmp_path / "model--00002-of-00003.safetensors").unlink()
    assert "shard 00002 of 3 is missing" in refusal(tmp_path)
    assert len(survey(tmp_path).problems) == 1


def test_a_missing_index(tmp_path):
    random_checkpoint(tmp_path, shards=3)
    (tmp_path / INDEX).unlink()
    assert refusal(tmp_path).startswith(f"{INDEX}: the file is missing")


def test_a_superfluous_file(tmp_path):
    random_checkpoint(tmp_path, shards=3)
    shutil.copy(tmp_path / "model-00002-of-00003.safetensors", tmp_path / "old.safetensors")
    assert refusal(tmp_path).startswith("old.safetensors: the file does not belong to the chec")


def test_a_tensor_in_two_shards(tmp_path):
    random_checkpoint(tmp_path, shards=2)
    name = "lm_head.weight"
    first, second = sorted(tmp_path.glob("*.safetensors"))
    tensors = load_file(first) | load_file(second)
    add(second if name in load_file(first) else first, **{name: tensors[name]})
    messages = [str(problem) for problem in survey(tmp_path).problems]
    assert any(f'"{name}" is also in model-0000' in message for message in messages)


def test_index_and_shards_disagree(tmp_path):
    random_checkpoint(tmp_path, shards=2)
    index = tmp_path / INDEX
    name = "model.norm.weight"
    told = json.loads(index.read_text())["weight_map"][name]

    def with_weight_map(edit):
        edit_json(index, lambda values: edit(values["weight_map"]))
        return [str(problem) for problem in survey(tmp_path).problems]

    assert with_weight_map(lambda m: m.pop(name)) == [
        f'{tmp_path / told}: tensor "{name}" is not in {INDEX}; fetch the checkpoint again.'
    ]
    other = next(p.name for p in sorted(tmp_path.glob("*.safetensors")) if p.name != told)
    [message] = with_weight_map(lambda m: m.update({name: other}))
    assert f'{told}: tensor "{name}" is here, but {INDEX} says {other}' in message
    [message] = with_weight_map(lambda m: m.update({name: told, "ghost": told}))
    assert f'{told}: tensor "ghost" is missing, though {INDEX} says it is here' in message


def test_a_tensor_that_neither_index_nor_shards_have(tmp_path):
    random_checkpoint(tmp_path, shards=2)
    path = change(tmp_path, Q_WEIGHT, lambda _: None)
    edit_json(tmp_path / INDEX, lambda values: values["weight_map"].pop(Q_WEIGHT))
    assert refusal(tmp_path).startswith(f'{INDEX}: tensor "{Q_WEIGHT}" is missing')
    path.unlink()  # also where it may have been in a file that is missing itself
    messages = [str(problem) for problem in survey(tmp_path).problems]
    assert f'"{Q_WEIGHT}" is missing' in messages[-1] and len(messages) == 2


def test_a_wrong_total_size(tmp_path):
    random_checkpoint(tmp_path, shards=2)
    edit_json(tmp_path / INDEX, lambda values: values["metadata"].update(total_size=1))
    expected = checkpoint_bytes(TINY, Layout.HF_MXFP4)
    assert f"{INDEX}: metadata.total_size must be {expected}" in refusal(tmp_path)
    edit_json(tmp_path / INDEX, lambda values: values.pop("metadata"))
    open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "file", [1, None, "../model.safetensors", "/etc/passwd", "..", "", "a\0.safetensors", "\ud800"]
)
def test_an_index_that_points_elsewhere(tmp_path, file):
    random_checkpoint(tmp_path, shards=2)
    edit_json(tmp_path / INDEX, lambda values: values["weight_map"].update({Q_WEIGHT: file}))
    assert refusal(tmp_path).startswith(f"{INDEX}: weight_map must map tensors to names of files")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": {}}}']
)
def test_an_index_that_is_none(tmp_path, text):
    random_checkpoint(tmp_path, shards=2)
    (tmp_path / INDEX).write_text(text)
    assert refusal(tmp_path).startswith(f"{INDEX}: ")


@pytest.mark.parametrize(
    ("layout", "edit", "says"),
    [
        ("hf-mxfp4", {"num_hidden_layers": 1, "layer_types": None}, "gpt-oss model of 1 layers"),
        ("hf-mxfp4", {"num_hidden_layers": 3, "layer_types": None}, "layers.2.* is missing"),
        ("hf-mxfp4", {"vocab_size": 300}, r"has the shape \[256, 64\], but config.json asks"),
        ("hf-mxfp4", {"num_local_experts": 8}, "router.*has the shape|experts.*has the shape"),
        ("hf-mxfp4", {"num_key_value_heads": 1}, "k_proj.*has the shape|v_proj.*has the shape"),
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path, layout, edit, says):
    random_checkpoint(tmp_path, layout=layout)
    edit_json(tmp_path / "config.json", lambda values: values.update(edit))
    messages = [str(problem) for problem in survey(tmp_path).problems]
    assert any(re.search(says, message) for message in messages)
    with pytest.raises(CheckpointError, match=r"more: `ossia inspect"):
        open_checkpoint(tmp_path)


def test_a_config_of_the_other_layout(tmp_path):
    random_checkpoint(tmp_path, layout="original")
    write_json(tmp_path / "config.json", TINY.to_json(mxfp4=True))
    says = "config.json: it has the Hugging Face form, but the tensors beside it have names of Open"
    assert refusal(tmp_path, ConfigError).startswith(says)
    assert len(survey(tmp_path).problems) == 1
    (tmp_path / "model.safetensors").unlink()
    save_shards(tmp_path, hugging_face_tensors(random_tensors(), mxfp4=False), 1)
    says = (
        "config.json: it declares an MXFP4 quantization_config, but the experts beside it are deq"
    )
    assert refusal(tmp_path, ConfigError).startswith(says)
    save_shards(tmp_path, hugging_face_tensors(random_tensors(), mxfp4=True), 1)
    write_json(tmp_path / "config.json", TINY.to_json(mxfp4=False))
    says = "config.json: it lacks an MXFP4 quantization_config, but the experts beside it are MXFP4"
    assert refusal(tmp_path, ConfigError).startswith(says)


def test_mxfp4_needs_multiples_of_32(tmp_path):
    random_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", lambda values: values.update(intermediate_size=95))
    says = "config.json: intermediate_size must be a multiple of 32 where the experts are MXFP4"
    assert refusal(tmp_path, ConfigError).startswith(says)


def test_unreadable_configurations(tmp_path):
    random_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    assert refusal(tmp_path, ConfigError).startswith("generation_config.json: top_p must be")
    (tmp_path / "config.json").write_text("{")
    assert refusal(tmp_path, ConfigError).startswith("config.json: expected a JSON object, but")
    (tmp_path / "config.json").unlink()
    assert refusal(tmp_path, ConfigError).startswith("config.json: the file is missing")
    random_checkpoint(tmp_path / "o", layout="original", shards=2)
    (tmp_path / "o" / "config.json").unlink()
    assert refusal(tmp_path / "o", ConfigError).startswith("config.json: the file is missing")
    assert len(survey(tmp_path / "o").problems) == 1


def test_no_weights_at_all(tmp_path):
    random_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert refusal(tmp_path).startswith("model.safetensors: the file is missing")
    assert len(survey(tmp_path).problems) == 1


def test_every_problem_is_found(tmp_path):
    path = random_checkpoint(tmp_path) / "model.safetensors"
    change(tmp_path, Q_WEIGHT, lambda q: q[:-1].copy())
    change(tmp_path, "model.norm.weight", lambda _: None)
    change(tmp_path, "lm_head.weight", lambda w: w.astype(np.float16))
    add(path, odd=np.zeros(1, np.float32))
    messages = [str(problem) for problem in survey(tmp_path).problems]
    for name in (Q_WEIGHT, "model.norm.weight", "lm_head.weight", "odd"):
        assert sum(f'"{name}"' in message for message in messages) == 1
    assert len(messages) == 4
    assert "(3 more: `ossia inspect" in refusal(tmp_path)


def test_names_that_are_no_checkpoint(tmp_path):
    with pytest.raises(ModelNotFoundError, match="there is no such folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match=r"holds neither config\.json nor"):
        open_checkpoint(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="got a file"):
        open_checkpoint(tmp_path / "file")


def test_truncation_while_mapped_is_a_sigbus_and_without_mmap_an_error(tmp_path):
    """What docs/checkpoints.md warns of is so."""
    program = """
import os, sys
from ossia.errors import CheckpointError
from ossia.model.checkpoint import open_checkpoint
from ossia.kernels.interface import Part
folder, mapped = sys.argv[1], sys.argv[2] == "mmap"
checkpoint = open_checkpoint(folder, use_mmap=mapped)
os.truncate(folder + "/model.safetensors", 4096)
try:
    for layer in range(2):
        for tensor in checkpoint.part(Part.ATTENTION, layer).values():
            tensor.sum()
except CheckpointError as error:
    print(error)
"""
    results = {}
    for mode in ("mmap", "memory"):
        random_checkpoint(tmp_path / mode)
        results[mode] = subprocess.run(
            [sys.executable, "-c", program, tmp_path / mode, mode], capture_output=True, text=True
        )
    assert results["mmap"].returncode == -signal.SIGBUS
    assert results["memory"].returncode == 0
    assert "the file was truncated within tensor" in results["memory"].stdout


def test_a_file_swapped_while_opening(tmp_path, monkeypatch):
    random_checkpoint(tmp_path)
    found = survey(tmp_path)
    os.truncate(tmp_path / "model.safetensors", found.headers[0].file_size - 1)
    monkeypatch.setattr("ossia.model.checkpoint.survey", lambda path: found)
    assert refusal(tmp_path).startswith("model.safetensors: the file changed while it was opened")
