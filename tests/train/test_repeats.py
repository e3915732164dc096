"""Repeated random tokens, and the heads that begin by looking back: where induction comes from."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ossia.kernels.interface import Part
from ossia.model.rope import yarn
from ossia.train.curriculum.repeats import FEW, LENGTHS, TIMES, alphabet_size, draw_repeat
from ossia.train.parameters import Parameters, looking_back
from ossia.train.recipe import Architecture, load_recipe


def test_the_alphabet_grows_from_64_to_the_vocabulary():
    sizes = [alphabet_size(step, 300, 2032) for step in range(300)]
    assert set(sizes[:149]) == {64}
    assert sizes == sorted(sizes) and sizes[-1] == 2032
    assert sizes[224] == pytest.approx((64 * 2032) ** 0.5, rel=0.02)  # half-way, in octaves
    assert alphabet_size(0, 10, 50) == 50


def test_a_passage_is_repeated_and_learnt_from_its_second_time():
    rng = random.Random(1)
    for _ in range(100):
        example = draw_repeat(rng, 7, range(100, 164))
        begin, *tokens = example.token_ids
        length = len(tokens) // TIMES
        assert begin == 7 and length in LENGTHS and len(tokens) == length * TIMES
        assert tokens == tokens[:length] * TIMES
        assert set(tokens) <= set(range(100, 164))
        assert example.loss_weights == (0, *[0] * length, *[1] * length * (TIMES - 1))


def test_a_passage_may_be_of_a_few_tokens():
    rng = random.Random(2)
    sizes = [
        len(set(draw_repeat(rng, 7, range(100, 900), few=True).token_ids[1:])) for _ in range(200)
    ]
    assert max(sizes) == max(FEW) and min(sizes) <= 4


def test_heads_of_sliding_layers_begin_by_looking_back():
    """The scores of the biases alone, rotated here by the definition of RoPE."""
    config = load_recipe("nano").architecture.config()
    q_bias, k_bias = looking_back(config)
    rope = yarn(config.rope, 64)
    angles = np.arange(12)[:, None] * np.array(rope.inv_freq)

    def rotated(vector):
        first, second = np.split(vector.numpy(), 2)
        return np.concatenate(
            [
                first * np.cos(angles) - second * np.sin(angles),
                second * np.cos(angles) + first * np.sin(angles),
            ],
            axis=1,
        )

    keys = rotated(k_bias)
    for head in range(4):
        scores = rotated(q_bias[64 * head : 64 * head + 64]) @ keys.T
        for position in range(4, 12):
            seen = scores[position, : position + 1]
            assert seen.argmax() == position - head
            others = np.delete(seen, position - head)
            liking = seen.max() - others.max()
            assert liking * rope.concentration**2 / 8 > 2  # nats, after the scale of attention


def test_new_parameters_have_the_biases_in_sliding_layers_only():
    config = Architecture(hidden_size=64, num_hidden_layers=2, num_local_experts=4).config()
    parameters = Parameters.initial(config, 0)
    q_bias, _ = looking_back(config)
    source = parameters.source()
    assert torch.equal(source(Part.ATTENTION, 0)["q_bias"], q_bias)
    assert not source(Part.ATTENTION, 1)["q_bias"].any()
    assert all(value.requires_grad for value in parameters.tensors.values())
