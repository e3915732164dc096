"""YaRN against transformers' own tables and against figures worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from ossia.model.config import RopeConfig
from ossia.model.rope import yarn
from random_models import tiny_config, transformers_config


def test_the_published_constants():
    """Figures of FACTS.md §1.4, worked out independently."""
    rope = yarn(RopeConfig(), 64)
    assert rope.concentration == pytest.approx(1.3465735902799727, rel=1e-15)
    assert len(rope.inv_freq) == 32
    for j, figure in {
        0: 1.0,
        1: 0.6890443059,
        8: 0.0508132748,
        9: 0.0317056962,
        12: 0.0067949595,
        16: 0.0004564839,
        17: 0.0001293187,
        18: 3.83088e-05,
        31: 3.0235e-07,
    }.items():
        assert rope.inv_freq[j] == pytest.approx(figure, rel=1e-5)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"truncate": True},
        {"factor": 8.0},
        {"theta": 10000.0},
        {"beta_fast": 64.0, "beta_slow": 0.5},
        {"original_max_position_embeddings": 128},  # the ramp would start below dimension 0
    ],
    ids=str,
)
def test_equals_transformers(head_dim, changes):
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    rope_config = replace(RopeConfig(), **changes)
    config = tiny_config(head_dim=head_dim, rope=rope_config)
    theirs = GptOssRotaryEmbedding(transformers_config(config))
    rope = yarn(rope_config, head_dim)
    # Theirs are blended in float32, which cancels some digits at the end of the ramp.
    np.testing.assert_allclose(rope.inv_freq, theirs.inv_freq.numpy(), rtol=1e-5)
    assert rope.concentration == pytest.approx(theirs.attention_scaling, rel=1e-12)


def test_factor_one_is_the_plain_rotary_embedding():
    rope = yarn(RopeConfig(factor=1.0), 64)
    np.testing.assert_allclose(rope.inv_freq, 150000.0 ** (-np.arange(32) / 32), rtol=1e-14)
    assert rope.concentration == 1.0
