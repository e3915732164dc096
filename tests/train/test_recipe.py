"""Recipes: read from TOML with every type checked, and refused with the key named."""

from __future__ import annotations

import dataclasses

import pytest

from ossia.errors import TrainingError
from ossia.model.config import ModelConfig
from ossia.train.recipe import Architecture, Recipe, Stage, load_recipe

MINIMAL = """
[pretrain]
steps = 1
mix = { copy = 1.0 }
[sft]
steps = 2
mix = { sum = 1, talk = 0.5 }
[quantize]
steps = 3
mix = { sum = 1 }
"""


def read(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path)


def test_the_built_in_recipe_is_nano_as_the_issue_describes_it():
    recipe = load_recipe("nano")
    assert recipe.architecture == Architecture(192, 6, 4, 1, 16, 64, 2048, 2048)
    config = recipe.architecture.config()
    assert (config.head_dim, config.num_experts_per_tok, config.sliding_window) == (64, 4, 128)
    assert config.sliding_layers == (True, False) * 3
    assert isinstance(config, ModelConfig) and Architecture.of(config) == recipe.architecture


def test_defaults_and_values(tmp_path):
    recipe = read(tmp_path, MINIMAL)
    assert [recipe.stage(stage).steps for stage in Stage] == [1, 2, 3]
    assert recipe.sft.mix == {"sum": 1.0, "talk": 0.5}
    assert recipe.optimization.adam_betas == (0.9, 0.95)


def test_json_and_back(tmp_path):
    for recipe in (load_recipe("nano"), read(tmp_path, MINIMAL)):
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_scaled_keeps_the_proportions(tmp_path):
    recipe = load_recipe("nano")
    half = recipe.scaled(0.5)
    for stage in Stage:
        assert half.stage(stage).steps == round(recipe.stage(stage).steps / 2)
    assert [recipe.scaled(1e-9).stage(stage).steps for stage in Stage] == [1, 1, 1]
    assert half.tokens == pytest.approx(recipe.tokens / 2, rel=0.01)


def test_files_are_relative_to_the_recipe(tmp_path):
    recipe = read(tmp_path, MINIMAL.replace("steps = 2", 'steps = 2\nfiles = ["mine.jsonl"]'))
    assert recipe.sft.files == (str(tmp_path / "mine.jsonl"),)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steps = 2", 'steps = "many"', "sft.steps: expected a whole number, got 'many'"),
        ("steps = 2", "steps = true", "sft.steps: expected a whole number, got True"),
        ("steps = 2", "steps = 0", "sft.steps: expected 1 or more, got 0"),
        ("steps = 2", "step = 2", "no sft.step (did you mean steps?)"),
        ("steps = 2\n", "", "sft.steps is missing"),
        ("[quantize]", "[quantise]", "no quantise (did you mean quantize?)"),
        ("sum = 1, ", "summ = 1, ", "no source of text 'summ' (did you mean sum?)"),
        ("sum = 1, talk = 0.5", "sum = 0", "one of them above 0"),
        ("sum = 1, talk = 0.5", "sum = -1", "shares of 0 and more"),
        ("[pretrain]", 'dtype = "int4"\n[pretrain]', "expected auto, float32 or bfloat16"),
        ("[pretrain]", "architecture = 3\n[pretrain]", "architecture: expected a table, got 3"),
        ("[sft]", "full_system = 2\n[sft]", "pretrain.full_system: expected a share from 0 to 1"),
        ("[sft]", "[architecture]\nhidden_size = 100\n[sft]", "a multiple of 32"),
        ("[sft]", "[architecture]\nnum_key_value_heads = 3\n[sft]", "to be a multiple of"),
        ("[sft]", "[optimization]\nadam_betas = [0.9]\n[sft]", "adam_betas: expected a list of 2"),
        ("[sft]", "[sft", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, told):
    assert old in MINIMAL
    with pytest.raises(TrainingError) as raised:
        read(tmp_path, MINIMAL.replace(old, new, 1))
    assert told in str(raised.value)
    assert "recipe.toml" in str(raised.value)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(TrainingError, match="one of: nano"):
        load_recipe("no-such-recipe")


def test_recipes_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("nano").seed = 3  # type: ignore[misc]
