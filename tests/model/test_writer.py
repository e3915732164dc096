"""Writing checkpoints: bit for bit where nothing is converted, whole or not at all."""

import json
import resource
import signal

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from checkpoints import (
    TINY,
    hugging_face_tensors,
    part_source,
    random_checkpoint,
    random_tensors,
    same_values,
)
from ossia.errors import CheckpointError, UnsupportedError
from ossia.kernels.interface import Part
from ossia.kernels.mxfp4 import decode, encode
from ossia.model.checkpoint import open_checkpoint
from ossia.model.config import GenerationConfig
from ossia.model.names import Layout, parts
from ossia.model.writer import write_checkpoint


def stored_bytes(folder):
    """dtype, shape and bytes of every tensor, read by the safetensors library."""
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        for name, tensor in load_file(path).items():
            assert name not in result
            result[name] = (types[name], tensor.shape, tensor.tobytes())
    return result


def write_again(source, folder, **options):
    checkpoint = open_checkpoint(source)
    return write_checkpoint(
        folder, checkpoint.config, checkpoint.part, generation=checkpoint.generation, **options
    )


@pytest.mark.parametrize("max_shard_bytes", [10**9, 40_000])
@pytest.mark.parametrize("layout", [Layout.HF_MXFP4, Layout.HF_BF16])
def test_untouched_tensors_keep_their_bytes(tmp_path, layout, max_shard_bytes):
    source = random_checkpoint(tmp_path / "a", layout=layout, shards=2)
    copy = write_again(source, tmp_path / "b", layout=layout, max_shard_bytes=max_shard_bytes)
    assert stored_bytes(copy) == stored_bytes(source)
    first, second = open_checkpoint(source), open_checkpoint(copy)
    assert (first.config, first.generation) == (second.config, second.generation)
    assert second.layout is layout


def test_nan_payloads_and_negative_zeros_survive(tmp_path):
    tensors = random_tensors()
    odd = np.array([0x7FC1, 0xFFFF, 0x8000, 0x0001], np.uint16).view(ml_dtypes.bfloat16)
    tensors["attention", 0]["sinks"] = odd
    folder = write_checkpoint(tmp_path / "m", TINY, part_source(tensors))
    assert stored_bytes(folder)["model.layers.0.self_attn.sinks"][2] == odd.tobytes()


def test_float32_stays_float32_beside_bfloat16(tmp_path):
    tensors = random_tensors()
    tensors["head", None]["norm"] = tensors["head", None]["norm"].astype(np.float32)
    folder = write_checkpoint(tmp_path / "m", TINY, part_source(tensors))
    assert stored_bytes(folder)["model.norm.weight"][0] == "F32"
    assert stored_bytes(folder)["lm_head.weight"][0] == "BF16"


@pytest.mark.parametrize("target", [Layout.HF_MXFP4, Layout.HF_BF16])
@pytest.mark.parametrize("source", Layout)
def test_converts_between_layouts(tmp_path, source, target):
    """Into the very bytes that the published names and the codec alone would give; only MXFP4 made
    from floats may choose other scales, for the same values."""
    checkpoint = random_checkpoint(tmp_path / "a", layout=source)
    written = write_again(checkpoint, tmp_path / "b", layout=target)
    expected = random_checkpoint(tmp_path / "c", layout=target)
    if (source, target) == (Layout.HF_BF16, Layout.HF_MXFP4):
        ours, theirs = open_checkpoint(written), open_checkpoint(expected)
        for part, layer in parts(TINY):
            for name, tensor in ours.part(part, layer).items():
                assert same_values(tensor, theirs.part(part, layer)[name])
    else:
        assert stored_bytes(written) == stored_bytes(expected)


def test_encodes_float_experts(tmp_path):
    """float32 experts that are no MXFP4 values come back within the format's precision."""
    tensors = random_tensors(dtype=np.float32)
    rng = np.random.default_rng(1)
    floats = rng.standard_normal(tensors["moe", 0]["down"].shape, np.float32)
    tensors["moe", 0]["down"] = floats
    folder = write_checkpoint(tmp_path / "m", TINY, part_source(tensors))
    written = decode(open_checkpoint(folder).part(Part.MOE, 0)["down"])
    largest = np.abs(floats.reshape(-1, 32)).max(axis=1, keepdims=True)
    assert (np.abs(written - floats).reshape(-1, 32) <= largest / 4).all()
    assert 0 < np.abs(written - floats).mean() < 0.1


def test_shards_and_index(tmp_path):
    limit = 40_000
    folder = write_checkpoint(
        tmp_path / "m", TINY, part_source(random_tensors()), max_shard_bytes=limit
    )
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    count = len(files)
    assert count > 3
    assert files == [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = {}
    for file in files:
        for name, tensor in load_file(folder / file).items():
            assert index["weight_map"].pop(name) == file
            sizes.setdefault(file, []).append(tensor.nbytes)
    assert index["weight_map"] == {}
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    assert all(sum(each) <= limit or len(each) == 1 for each in sizes.values())
    assert sum(len(each) == 1 and each[0] > limit for each in sizes.values()) == 0
    tiny = write_checkpoint(tmp_path / "n", TINY, part_source(random_tensors()), max_shard_bytes=1)
    assert len(list(tiny.glob("*.safetensors"))) == len(stored_bytes(tiny))


def test_the_header_leaves_little_room(tmp_path):
    folder = write_checkpoint(tmp_path / "m", TINY, part_source(random_tensors()))
    path = folder / "model.safetensors"
    overhead = path.stat().st_size - sum(len(data) for _, _, data in stored_bytes(folder).values())
    assert overhead < 120 * len(stored_bytes(folder))
    with path.open("rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0


@pytest.mark.parametrize("layout", [Layout.HF_BF16, Layout.HF_MXFP4])
def test_transformers_loads_what_it_writes(tmp_path, layout):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = write_checkpoint(
        tmp_path / "m", TINY, part_source(random_tensors()), layout=layout, max_shard_bytes=60_000
    )
    options = {}
    if layout is Layout.HF_MXFP4:
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model, report = transformers.GptOssForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.bfloat16, **options
    )
    assert not any(report.values()), report
    expected = hugging_face_tensors(random_tensors(), mxfp4=False)
    state = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name].float().numpy(), tensor.astype(np.float32))


def test_files_beside_the_weights(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    generation = GenerationConfig(eos_token_ids=(9,), do_sample=False)
    folder = write_checkpoint(
        tmp_path / "deep" / "er" / "m",
        TINY,
        part_source(random_tensors()),
        generation=generation,
        beside=[tmp_path / "tokenizer.json"],
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert open_checkpoint(folder).generation.eos_token_ids == (9,)
    with pytest.raises(CheckpointError, match=r"absent\.json: expected a file to copy"):
        write_checkpoint(tmp_path / "n", TINY, part_source({}), beside=[tmp_path / "absent.json"])


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "m").mkdir()
    seen = []
    write_checkpoint(
        tmp_path / "m", TINY, part_source(random_tensors()), progress=lambda *at: seen.append(at)
    )
    open_checkpoint(tmp_path / "m")
    assert seen == [(n, 6) for n in range(1, 7)]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").touch()
    with pytest.raises(CheckpointError, match="already there; name a folder"):
        write_checkpoint(tmp_path / "m", TINY, part_source(random_tensors()))


def assert_nothing_left(folder):
    assert [path.name for path in folder.iterdir()] == []


def failing(error):
    tensors = random_tensors()

    def source(part, layer):
        if (part, layer) == (Part.MOE, 1):
            raise error
        return tensors[part.value, layer]

    return source


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), MemoryError()])
def test_an_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        write_checkpoint(tmp_path / "m", TINY, failing(error))
    assert_nothing_left(tmp_path)


def test_a_full_disk_is_one_sentence(tmp_path):
    """The file size limit fails a write in mid-shard, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            write_checkpoint(tmp_path / "m", TINY, part_source(random_tensors()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(caught.value) == f"{tmp_path / 'm'}: cannot be written (File too large)."
    assert_nothing_left(tmp_path)


def test_a_disk_too_small_is_told_before_any_work(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(CheckpointError, match=r"needs [\d,]+ bytes, but the disk has 1,000"):
        write_checkpoint(tmp_path / "m", TINY, failing(AssertionError("work began")))
    assert_nothing_left(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"m: cannot be written \(Not a directory\)"):
        write_checkpoint(tmp_path / "file" / "m", TINY, part_source(random_tensors()))


@pytest.mark.parametrize(
    ("part", "name", "change", "says"),
    [
        (
            "head",
            "norm",
            None,
            r"head: expected the tensors \['norm', 'weight'\], got \['weight'\]",
        ),
        ("moe", "router", lambda t: t.T, r"moe of layer 0: expected router of shape \[4, 64\]"),
        ("moe", "router", lambda t: t.astype(np.float16), "router in float32 or bfloat16, got flo"),
        ("moe", "down", lambda t: decode(t) * np.nan, "down_proj_blocks.*holds NaN"),
    ],
)
def test_refuses_tensors_that_do_not_fit(tmp_path, part, name, change, says):
    tensors = random_tensors()
    group = tensors[part, None if part == "head" else 0]
    tensor = group.pop(name)
    if change is not None:
        group[name] = change(tensor)
    with pytest.raises(CheckpointError, match=says):
        write_checkpoint(tmp_path / "m", TINY, part_source(tensors))
    assert_nothing_left(tmp_path)


def test_refuses_mxfp4_outside_the_experts_and_the_original_layout(tmp_path):
    tensors = random_tensors()
    tensors["head", None]["weight"] = encode(tensors["head", None]["weight"])
    with pytest.raises(CheckpointError, match=r'"lm_head\.weight": only experts'):
        write_checkpoint(tmp_path / "m", TINY, part_source(tensors))
    with pytest.raises(UnsupportedError, match="Hugging Face layout only"):
        write_checkpoint(tmp_path / "m", TINY, part_source(tensors), layout=Layout.ORIGINAL)
