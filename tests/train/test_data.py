"""Packing: every example whole in one shard, its targets beside it, and the shards of like cost."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from ossia.harmony.render import TrainingExample
from ossia.train.data import pack


def examples(seed):
    """Endless; the ids of an example are its own, so that it is found again."""
    rng, first = random.Random(seed), 0
    while True:
        length = rng.choice((20, 50, 120, 400))
        ids = range(first, first + length)
        weights = (0, *rng.choices((0, 1), k=length - 2), 1)
        yield TrainingExample(tuple(ids), weights)
        first += length


def taken(seed, tokens):
    size, found = 0, []
    for example in examples(seed):
        found.append(example)
        size += len(example.token_ids) - 1
        if size >= tokens:
            return found
    raise AssertionError


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_shards_hold_each_example_once_and_whole(shards):
    expected = {example.token_ids[:-1]: example for example in taken(1, 3000)}
    batches = pack(examples(1), 3000, shards=shards)
    assert len(batches) == shards
    for batch in batches:
        bounds = batch.inputs.cu_seqlens_S1
        rows = list(batch.inputs.logit_rows)
        for begin, end in itertools.pairwise(bounds):
            example = expected.pop(tuple(int(i) for i in batch.inputs.ids_T[begin:end]))
            learnt = [i for i, weight in enumerate(example.loss_weights[1:]) if weight]
            mine = [r for r, row in enumerate(rows) if begin <= row < end]
            assert [rows[r] - begin for r in mine] == learnt
            assert list(batch.targets_R[mine]) == [example.token_ids[i + 1] for i in learnt]
            assert (batch.weights_R[mine] == 1).all()
    assert not expected


def test_the_shards_are_of_like_cost():
    for seed in range(20):
        sizes = [
            sum(n * (1 + n / 1000) for n in np.diff(batch.inputs.cu_seqlens_S1))
            for batch in pack(examples(seed), 6000, shards=2)
        ]
        assert max(sizes) / min(sizes) < 1.1


def test_every_shard_gets_an_example():
    assert all(batch.inputs.num_tokens for batch in pack(examples(3), 1, shards=4))
