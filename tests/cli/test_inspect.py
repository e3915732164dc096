"""`ossia inspect`: figures by arithmetic, every problem, any terminal."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import TINY, random_checkpoint
from ossia.cli.main import run


def inspect_json(capsys, *arguments):
    code = run(["inspect", *map(str, arguments), "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return code, json.loads(lines[0])


@pytest.mark.parametrize("layout", ["hf-mxfp4", "hf-bf16", "original"])
def test_describes_a_checkpoint(tmp_path, capsys, layout):
    random_checkpoint(tmp_path, layout=layout, shards=2)
    code, report = inspect_json(capsys, tmp_path)
    assert code == 0
    assert report["layout"] == layout
    assert report["problems"] == report["unrecognised_keys"] == []
    assert report["config"]["hidden_size"] == TINY.hidden_size
    assert report["parameters"]["total"] == TINY.num_parameters()
    stored = {}
    for path in tmp_path.glob("*.safetensors"):
        stored |= load_file(path)
    assert {tensor["name"]: tensor["bytes"] for tensor in report["tensors"]} == {
        name: tensor.nbytes for name, tensor in stored.items()
    }
    assert sum(file["tensors"] for file in report["files"]) == len(stored)
    weights = sum(tensor.nbytes for tensor in stored.values())
    memory = report["memory"]
    assert memory["context"] == TINY.max_position_embeddings
    assert memory["bfloat16"]["total"] == weights + memory["bfloat16"]["kv_cache"]
    packed = sum(t.nbytes for t in stored.values() if t.dtype == np.uint8)
    assert memory["float32"]["total"] == (
        packed + 2 * (weights - packed) + 2 * memory["bfloat16"]["kv_cache"]
    )
    embedding = TINY.vocab_size * TINY.hidden_size * 2
    assert memory["bfloat16"]["embedding"] == embedding


def test_the_cache_at_a_context(tmp_path, capsys):
    random_checkpoint(tmp_path)
    _, report = inspect_json(capsys, tmp_path, "--context", "100")
    per_layer_and_token = 2 * TINY.num_key_value_heads * TINY.head_dim * 2
    assert report["memory"]["bfloat16"]["kv_cache"] == (100 + 8) * per_layer_and_token


def test_shows_a_table(tmp_path, capsys):
    random_checkpoint(tmp_path)
    assert run(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    q_proj = next(line for line in out.splitlines() if ".q_proj.weight" in line)
    assert q_proj.split() == [
        "model.layers.*.self_attn.q_proj.weight", "BF16", "[128,", "64]", "2", "32.77", "kB",
    ]  # fmt: skip
    assert f"{TINY.num_parameters():,} parameters" in out
    assert "Nothing is wrong with it." in out
    assert "\x1b" not in out


def test_lists_every_problem(tmp_path, capsys):
    path = random_checkpoint(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    code, report = inspect_json(capsys, tmp_path)
    assert code == 1
    assert len(report["problems"]) == 2
    assert run(["inspect", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    for problem in report["problems"]:
        assert f"- {problem}\n" in out


def test_a_broken_config_hides_nothing_else(tmp_path, capsys):
    random_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    code, report = inspect_json(capsys, tmp_path)
    assert (code, report["config"], len(report["problems"])) == (1, None, 1)
    assert len(report["tensors"]) == 41
    assert run(["inspect", str(tmp_path)]) == 1


def test_keys_that_ossia_does_not_know_are_a_note(tmp_path, capsys):
    random_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"soft_cap\n": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["inspect", str(tmp_path)]) == 0
    assert (
        "note: config.json has soft_cap\\n, which ossia does not know." in capsys.readouterr().out
    )


def test_a_single_file(tmp_path, capsys):
    path = tmp_path / "any.safetensors"
    save_file({"a\x1b[31m": np.ones((2, 3), np.float16), "[b]": np.ones(4)}, path, {"k": "v"})
    code, report = inspect_json(capsys, path)
    assert code == 0
    assert report["metadata"] == {"k": "v"}
    assert sum(tensor["bytes"] for tensor in report["tensors"]) == 12 + 32
    assert math.prod(report["tensors"][0]["shape"]) in (4, 6)
    assert run(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "[b]" in out and "a\\u001b[31m" in out
    path.write_bytes(path.read_bytes()[:-1])
    code, report = inspect_json(capsys, path)
    assert code == 1 and "truncated" in report["problems"][0]


def test_what_cannot_be_inspected_is_one_sentence(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for argument in (tmp_path / "absent", tmp_path / "x.safetensors", "openai/absent"):
        assert run(["inspect", str(argument)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
