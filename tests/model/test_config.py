"""config.json and generation_config.json in all their forms, against transformers' own reading."""

import dataclasses
import json
import math

import pytest

from ossia.errors import ConfigError
from ossia.model.config import (
    GenerationConfig,
    ModelConfig,
    RopeConfig,
    is_mxfp4,
    is_original_form,
    unrecognised_keys,
)
from ossia.model.json_fields import parse_object, read_object
from ossia.model.rope import yarn


def published(layers=24, experts=32):
    """config.json of gpt-oss-20b (or, with 36 and 128, of 120b) as it lies on the hub."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "num_local_experts": experts,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": 201088,
    }


def original():
    """config.json of gpt-oss-20b's original/ folder."""
    return {
        "num_hidden_layers": 24,
        "num_experts": 32,
        "experts_per_token": 4,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "swiglu_limit": 7.0,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }


GPT_OSS_20B = ModelConfig(
    num_hidden_layers=24,
    hidden_size=2880,
    intermediate_size=2880,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201088,
    sliding_window=128,
    sliding_layers=(True, False) * 12,
    max_position_embeddings=131072,
    eos_token_ids=(200002,),
    pad_token_id=199999,
)
TINY = dataclasses.replace(
    GPT_OSS_20B,
    num_hidden_layers=3,
    sliding_layers=(False, True, True),
    vocab_size=200,
    eos_token_ids=(7, 9),
    pad_token_id=3,
    swiglu_alpha=1.5,
    swiglu_limit=5.0,
    rms_norm_eps=1e-6,
    sliding_window=64,
    rope=RopeConfig(10000.0, 8.0, 16.0, 2.0, 1024, truncate=True),
)


def test_reads_the_published_form():
    assert ModelConfig.from_json(published(), "config.json") == GPT_OSS_20B
    assert is_mxfp4(published())
    assert unrecognised_keys(published(), "config.json") == []


def test_reads_the_original_form():
    expected = dataclasses.replace(GPT_OSS_20B, eos_token_ids=(), pad_token_id=None)
    assert ModelConfig.from_json(original(), "config.json") == expected
    assert is_original_form(original())
    assert unrecognised_keys(original() | {"new": 1}, "config.json") == ["new"]


def test_reads_the_form_of_transformers_5():
    values = published()
    del values["rope_scaling"], values["rope_theta"]
    values["rope_parameters"] = published()["rope_scaling"] | {"rope_theta": 150000.0}
    assert ModelConfig.from_json(values, "config.json") == GPT_OSS_20B


def test_reads_what_transformers_writes(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.GptOssConfig(
        num_hidden_layers=5, num_local_experts=16, eos_token_id=[4, 5], pad_token_id=6
    ).save_pretrained(tmp_path)
    values = read_object(tmp_path / "config.json", ConfigError)
    assert ModelConfig.from_json(values, "config.json") == dataclasses.replace(
        GPT_OSS_20B,
        num_hidden_layers=5,
        num_local_experts=16,
        sliding_layers=(True, False, True, False, True),
        eos_token_ids=(4, 5),
        pad_token_id=6,
    )
    assert not is_mxfp4(values)
    assert unrecognised_keys(values, "config.json") == []


@pytest.mark.parametrize("config", [GPT_OSS_20B, TINY])
@pytest.mark.parametrize("mxfp4", [True, False])
def test_what_it_writes_reads_back(config, mxfp4):
    values = json.loads(json.dumps(config.to_json(mxfp4=mxfp4)))
    assert ModelConfig.from_json(values, "config.json") == config
    assert is_mxfp4(values) == mxfp4


def test_writes_the_published_keys():
    assert set(GPT_OSS_20B.to_json(mxfp4=True)) == {*published(), "swiglu_alpha"}
    differing = {
        key: value
        for key, value in published().items()
        if GPT_OSS_20B.to_json(mxfp4=True)[key] != value
    }
    assert differing == {"transformers_version": "4.55.0.dev0"}


@pytest.mark.parametrize(
    "config", [GPT_OSS_20B, TINY, dataclasses.replace(TINY, rope=RopeConfig(5000.0, 1.0))]
)
def test_transformers_understands_what_it_writes(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    (tmp_path / "config.json").write_text(json.dumps(config.to_json(mxfp4=False)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.GptOssConfig)
    unlike = ("sliding_layers", "rope", "eos_token_ids")
    for name in (f.name for f in dataclasses.fields(ModelConfig) if f.name not in unlike):
        assert getattr(theirs, name) == getattr(config, name), name
    assert [kind == "sliding_attention" for kind in theirs.layer_types] == [*config.sliding_layers]
    inv_freq, concentration = rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    ours = yarn(config.rope, config.head_dim)
    assert concentration == pytest.approx(ours.concentration, rel=1e-12)
    assert inv_freq.tolist() == pytest.approx(ours.inv_freq, rel=1e-5)


def test_counts_parameters_and_bytes():
    """The figures that OpenAI and the published index give."""
    small = ModelConfig.from_json(published(), "config.json")
    assert small.num_parameters() == 20_914_757_184
    assert small.num_active_parameters() == 3_608_307_264
    assert small.kv_bytes_per_token() == 49_152
    large = ModelConfig.from_json(published(36, 128), "config.json")
    assert large.num_parameters() == 116_829_156_672
    assert large.num_active_parameters() == 5_132_849_472
    assert large.kv_bytes_per_token() == 73_728


def test_a_sliding_layer_keeps_its_window():
    window_only = 12 * 128 * 2 * 512 * 2  # layers · tokens · K and V · kv width · bytes
    assert GPT_OSS_20B.kv_cache_bytes(131072) == 3 * 2**30 + window_only
    assert GPT_OSS_20B.kv_cache_bytes(100, itemsize=4) == 100 * 2 * 49_152


@pytest.mark.parametrize(
    "path, value, says",
    [
        ("model_type", "llama", 'model_type must be "gpt_oss".*got "llama"'),
        ("architectures", ["LlamaForCausalLM"], "architectures must be"),
        ("hidden_size", None, "hidden_size is missing, expected an integer"),
        ("hidden_size", "2880", 'hidden_size must be an integer.*got "2880"'),
        ("hidden_size", 2880.0, "hidden_size must be an integer.*got 2880.0"),
        ("hidden_size", True, "hidden_size must be an integer.*got true"),
        ("hidden_size", 0, "hidden_size must be an integer from 1"),
        ("vocab_size", 2**40, "vocab_size must be an integer"),
        ("num_hidden_layers", 10**9, "num_hidden_layers must be .* to 10000"),
        ("num_hidden_layers", 23, "layer_types must be 23 entries"),
        ("layer_types", ["full_attention", "chunked_attention"] * 12, "layer_types must be"),
        ("layer_types", "full_attention", "layer_types must be"),
        ("layer_types", [{}] * 24, "layer_types must be"),
        ("num_key_value_heads", 7, r"a divisor of num_attention_heads \(64\), got 7"),
        ("head_dim", 63, "head_dim must be even"),
        ("num_experts_per_tok", 5, "experts_per_token must be 5, as num_experts_per_tok says"),
        ("num_local_experts", 3, r"num_experts_per_tok must be at most num_local_experts \(3\)"),
        ("num_experts", 33, "num_experts must be 32"),
        ("rms_norm_eps", 0, "rms_norm_eps must be a number above 0"),
        ("rms_norm_eps", 10**400, "rms_norm_eps must be a number"),
        ("swiglu_limit", "7", "swiglu_limit must be a number"),
        ("tie_word_embeddings", True, "tie_word_embeddings must be false"),
        ("hidden_act", "gelu", 'hidden_act must be "silu"'),
        ("attention_bias", False, "attention_bias must be true"),
        ("attention_bias", 1, "attention_bias must be true"),
        ("sliding_window", None, "sliding_window is missing"),
        ("eos_token_id", 201088, "eos_token_id must be a token id below"),
        ("eos_token_id", [1, "2"], "eos_token_id must be a token id below"),
        ("pad_token_id", -1, "pad_token_id must be an integer from 0"),
        ("initial_context_length", 2048, "initial_context_length must be 4096"),
        ("quantization_config", "mxfp4", "quantization_config must be an object"),
        ("quantization_config.quant_method", "bitsandbytes", 'quant_method must be "mxfp4"'),
        ("rope_theta", None, "rope_scaling.rope_theta is missing"),
        ("rope_theta", 1, "rope_theta must be a number above 1"),
        ("rope_scaling", None, "rope_parameters is missing, expected an object, or rope_scaling"),
        ("rope_scaling", [], "rope_scaling must be an object"),
        ("rope_scaling.rope_type", "llama3", 'rope_type must be "yarn" or "default"'),
        ("rope_scaling.rope_type", None, "rope_scaling.rope_type is missing"),
        ("rope_scaling.factor", 0.5, "rope_scaling.factor must be a number of at least 1"),
        ("rope_scaling.truncate", 0, "rope_scaling.truncate must be true or false"),
        ("rope_scaling.attention_factor", 1.0, "rope_scaling.attention_factor must be absent"),
        ("rope_scaling.mscale", 1.0, "rope_scaling.mscale must be absent"),
        ("rope_scaling.\ud800\n", 1.0, r'rope_scaling."\\ud800\\n" must be absent'),
        ("rope_parameters", {"rope_type": "default"}, "rope_scaling must be absent, or equal"),
        (
            "rope_parameters",
            {"rope_type": "default", "rope_theta": 9.0},
            "rope_theta must be 9, as inside rope_parameters",
        ),
    ],
)
def test_refuses(path, value, says):
    values = published()
    *outer, key = path.split(".")
    place = values[outer[0]] if outer else values
    if value is None:
        del place[key]
    else:
        place[key] = value
    with pytest.raises(ConfigError, match=says) as caught:
        ModelConfig.from_json(values, "folder/config.json")
    message = str(caught.value)
    assert message.startswith("folder/config.json: ")
    assert message.isascii() and "\n" not in message


@pytest.mark.parametrize("name", [name for name in original() if name != "swiglu_limit"])
def test_the_original_form_needs_every_field(name):
    values = original()
    del values[name]
    says = f"{name} is missing|expected the config.json of a gpt-oss model"
    with pytest.raises(ConfigError, match=says):
        ModelConfig.from_json(values, "config.json")


def test_refuses_an_original_context_beyond_all_bounds():
    with pytest.raises(ConfigError, match="rope_scaling_factor must be"):
        ModelConfig.from_json(original() | {"rope_scaling_factor": 1e12}, "config.json")


def test_refuses_what_is_no_model_configuration():
    with pytest.raises(ConfigError, match=r"expected the config\.json of a gpt-oss"):
        ModelConfig.from_json({"a": 1}, "config.json")


def test_plain_rope():
    values = published() | {"rope_scaling": {"rope_type": "default"}, "rope_theta": 10000}
    values["initial_context_length"] = 131072
    rope = ModelConfig.from_json(values, "config.json").rope
    assert yarn(rope, 64).concentration == 1.0
    assert yarn(rope, 64).inv_freq[1] == pytest.approx(10000 ** (-1 / 32))


def test_layer_types_default_to_even_layers_sliding():
    values = published()
    del values["layer_types"]
    assert ModelConfig.from_json(values, "config.json") == GPT_OSS_20B


def test_names_keys_that_it_does_not_know():
    values = published() | {"unsloth_version": "1", "partial_rotary_factor": 0.5}
    names = unrecognised_keys(values, "config.json")
    assert names == ["unsloth_version", "partial_rotary_factor"]


PUBLISHED_GENERATION = {
    "bos_token_id": 199998,
    "do_sample": True,
    "eos_token_id": [200002, 199999, 200012],
    "pad_token_id": 199999,
    "transformers_version": "4.55.0.dev0",
}


def test_generation_config():
    generation = GenerationConfig.from_json(PUBLISHED_GENERATION, "g.json", GPT_OSS_20B)
    assert generation == GenerationConfig(
        eos_token_ids=(200002, 199999, 200012), pad_token_id=199999, bos_token_id=199998
    )
    again = GenerationConfig.from_json(generation.to_json(), "g.json", GPT_OSS_20B)
    assert again == generation
    assert {*PUBLISHED_GENERATION} - {*generation.to_json()} == {"transformers_version"}


def test_generation_config_defaults_to_the_model_config():
    expected = GenerationConfig(eos_token_ids=(200002,), pad_token_id=199999)
    assert GenerationConfig.from_json({}, "g.json", GPT_OSS_20B) == expected
    assert GenerationConfig.of(GPT_OSS_20B) == expected


def test_transformers_reads_the_generation_config(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = GenerationConfig(
        eos_token_ids=(2, 3), pad_token_id=1, temperature=0.6, top_p=0.9, top_k=40, min_p=0.05
    )
    (tmp_path / "generation_config.json").write_text(json.dumps(ours.to_json()))
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert theirs.eos_token_id == [2, 3]
    assert theirs.temperature == 0.6
    assert (theirs.do_sample, theirs.top_p, theirs.top_k, theirs.min_p) == (True, 0.9, 40, 0.05)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"eos_token_id": "x"}, "eos_token_id must be a token id"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"top_p": 0}, "top_p must be a number above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be a number above 0 and at most 1"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"do_sample": "yes"}, "do_sample must be true or false"),
        ({"min_p": 2}, "min_p must be a number of at least 0 and at most 1"),
    ],
)
def test_generation_config_refuses(values, says):
    with pytest.raises(ConfigError, match=f"^g.json: {says}"):
        GenerationConfig.from_json(values, "g.json", GPT_OSS_20B)


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "expected a JSON object, but Expecting value"),
        (b"[1]", r"expected a JSON object, got \[1\]"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the key "a" is given twice'),
        (b'{"a": {"b": 1, "b": 1}}', 'the key "b" is given twice'),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": "\xff"}', "expected JSON in UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected a JSON object, but Exceeds the limit"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    ],
)
def test_json_is_read_strictly(data, says):
    with pytest.raises(ConfigError, match=f"^f.json: .*{says}"):
        parse_object(data, "f.json", ConfigError)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="the file is missing"):
        read_object(tmp_path / "config.json", ConfigError)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        read_object(tmp_path, ConfigError)
    large = tmp_path / "config.json"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="at most 16 MiB"):
        read_object(large, ConfigError)


def test_yarn_constants_survive():
    """The published check values, through config.json."""
    rope = yarn(ModelConfig.from_json(published(), "config.json").rope, 64)
    assert rope.concentration == 0.1 * math.log(32) + 1
    assert rope.inv_freq[8] == pytest.approx(0.0508132748, rel=1e-9)
    assert rope.inv_freq[17] == pytest.approx(0.0001293187, rel=1e-6)
