"""The torch kernels against `reference` over random shapes, their gradients against differences of
the loss, and what they add for training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import KernelError
from ossia.kernels.interface import Part, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor, decode
from ossia.kernels.reference import ReferenceKernels
from ossia.kernels.torch import TorchKernels
from ossia.kernels.torch import experts as torch_experts
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging, RandomModel, self_test
from ossia.model.transformer import Architecture, forward, prepare_weights
from random_models import tiny_config

# Sums in another order, of logits handed over in float32: 2^-23 of the largest.
FLOAT64_TOLERANCE = 1e-6


def run(kernels, model, inputs, source=None, cache=None):
    architecture = Architecture.of(model.config)
    weights = prepare_weights(architecture, kernels, source or model.part)
    return kernels.to_host(forward(architecture, kernels, weights, inputs, cache=cache))


def documents(model, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, model.config.vocab_size, n).tolist() for n in lengths]


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1.0, np.ptp(expected))


@st.composite
def models(draw):
    kv_heads = draw(st.sampled_from((1, 2, 3)))
    experts = draw(st.integers(1, 9))
    return RandomModel(
        tiny_config(
            num_hidden_layers=2,
            hidden_size=32 * draw(st.integers(1, 3)),
            intermediate_size=32 * draw(st.integers(1, 3)),
            num_attention_heads=kv_heads * draw(st.integers(1, 4)),
            num_key_value_heads=kv_heads,
            head_dim=draw(st.sampled_from((2, 16, 64))),
            num_local_experts=experts,
            num_experts_per_tok=draw(st.integers(1, min(4, experts))),
            vocab_size=draw(st.integers(2, 70)),
            sliding_window=draw(st.integers(1, 40)),
        ),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(max_examples=40, deadline=None)
@given(models(), st.lists(st.integers(1, 70), min_size=1, max_size=6), st.data())
def test_equals_reference_on_packed_documents(model, lengths, data):
    total = sum(lengths)
    rows = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=8))
    inputs = packed_input(documents(model, lengths), logit_rows=rows)
    expected = run(ReferenceKernels(dtype=np.float64), model, inputs)
    assert_close(run(TorchKernels(dtype=torch.float64), model, inputs), expected, FLOAT64_TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(models(), st.lists(st.integers(2, 70), min_size=1, max_size=4), st.integers(0, 2**16))
def test_any_chunking_through_the_cache_equals_whole_documents(model, lengths, seed):
    rng = np.random.default_rng(seed)
    docs = documents(model, lengths)
    kernels = TorchKernels(dtype=torch.float64)
    expected = run(kernels, model, packed_input(docs))
    architecture = Architecture.of(model.config)
    weights = prepare_weights(architecture, kernels, model.part)
    paging = Paging(architecture, lengths, seed=seed)
    cache = kernels.allocate_cache(paging.spec)
    found = [np.zeros((0, model.config.vocab_size))] * len(docs)
    while any(len(f) < len(d) for f, d in zip(found, docs, strict=True)):
        chunks = {}
        for s, doc in enumerate(docs):
            start = len(found[s])
            if start < len(doc) and (rng.random() < 0.7 or not chunks):
                chunks[s] = (start, doc[start : start + int(rng.integers(1, 40))])
        inputs = paging.inputs(chunks)
        logits = kernels.to_host(forward(architecture, kernels, weights, inputs, cache=cache))
        for s, first, last in zip(
            chunks, inputs.cu_seqlens_S1[:-1], inputs.cu_seqlens_S1[1:], strict=True
        ):
            found[s] = np.concatenate([found[s], logits[first:last]])
    assert_close(np.concatenate(found), expected, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_passes_the_self_test(dtype):
    for check in self_test(TorchKernels(dtype=dtype)):
        assert check.passed, check


def test_bfloat16_products_stay_near():
    model = RandomModel(tiny_config(num_hidden_layers=2))
    inputs = packed_input(documents(model, [50, 3]))
    expected = run(ReferenceKernels(), model, inputs)
    found = run(TorchKernels(dtype=torch.bfloat16), model, inputs)
    # The typical difference: single rows may route a token elsewhere.
    assert np.median(np.abs(found - expected)) < 0.01 * np.ptp(expected)


def test_logits_stay_as_the_product_gives_them_where_asked():
    model = RandomModel(tiny_config(num_hidden_layers=1))
    architecture = Architecture.of(model.config)
    inputs = packed_input(documents(model, [9]))
    wide, narrow = (
        forward(architecture, kernels, prepare_weights(architecture, kernels, model.part), inputs)
        for kernels in (
            TorchKernels(dtype=torch.bfloat16),
            TorchKernels(dtype=torch.bfloat16, widen_logits=False),
        )
    )
    assert (wide.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(wide, narrow.float())


def test_packed_experts_and_query_tiles_change_nothing(monkeypatch):
    model = RandomModel(tiny_config(num_hidden_layers=2, sliding_window=20))
    inputs = packed_input(documents(model, [100, 7]))
    kernels = TorchKernels(dtype=torch.float64)
    expected = run(kernels, model, inputs)
    monkeypatch.setattr("ossia.kernels.torch.kernels.DECODE_ONCE_BYTES", 0)
    monkeypatch.setattr("ossia.kernels.torch.self_attention.QUERY_TILE", 16)
    monkeypatch.setattr("ossia.kernels.torch.attention.QUERY_TILE", 16)
    weight = kernels.prepare(Part.MOE, model.part(Part.MOE, 0), model.config.dims())
    assert isinstance(weight.gate_up, torch_experts.PackedExperts)
    assert isinstance(weight.down, torch_experts.PackedExperts)
    assert_close(run(kernels, model, inputs), expected, FLOAT64_TOLERANCE)
    assert all(check.passed for check in self_test(TorchKernels()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_decodes_mxfp4_exactly(dtype):
    rng = np.random.default_rng(0)
    # 254 and 255 overflow or are NaN in float32; mxfp4.decode's own tests cover them.
    packed = Mxfp4Tensor(
        rng.integers(0, 256, (5, 3, 2, 16), np.uint8), rng.integers(0, 250, (5, 3, 2), np.uint8)
    )
    found = torch_experts.decode_mxfp4(
        torch.from_numpy(packed.blocks), torch.from_numpy(packed.scales), dtype
    )
    assert np.array_equal(found.double().numpy(), decode(packed, np.float64))
    assert found.dtype == dtype


# -- Gradients ------------------------------------------------------------------------------------


def trainable(model):
    """The model's tensors as leaves in float64, and a source of them."""
    leaves = {}

    def source(part, layer):
        if (part, layer) not in leaves:
            leaves[part, layer] = {
                name: torch.tensor(value.astype(np.float64), requires_grad=True)
                for name, value in model.dense_part(part, layer).items()
            }
        return leaves[part, layer]

    return leaves, source


@pytest.mark.parametrize(
    ("lengths", "window"),
    [([127], 128), ([128], 128), ([129], 128), ([4, 5, 6, 11], 5), ([40, 3, 37], 128)],
)
def test_gradient_equals_the_slope_of_the_loss(lengths, window, monkeypatch):
    """For every tensor, along a random direction, by central differences in float64."""
    monkeypatch.setattr("ossia.kernels.torch.self_attention.QUERY_TILE", 64)
    model = RandomModel(
        tiny_config(
            num_hidden_layers=2,
            hidden_size=32,
            intermediate_size=32,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=4,  # all chosen: no step in the loss where a route changes
            vocab_size=20,
            sliding_window=window,
            max_position_embeddings=4096,
        )
    )
    architecture = Architecture.of(model.config)
    kernels = TorchKernels(dtype=torch.float64)
    leaves, source = trainable(model)
    inputs = packed_input(documents(model, lengths))
    probe = torch.from_numpy(np.random.default_rng(1).standard_normal((sum(lengths), 20)))

    def loss():
        weights = prepare_weights(architecture, kernels, source)
        logits = forward(architecture, kernels, weights, inputs)
        return (logits.log_softmax(-1) * probe).sum()

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for (part, layer), tensors in leaves.items():
        for name, leaf in tensors.items():
            used = leaf.grad != 0
            assert used.any(), f"{part} {layer} {name} has no gradient"
            direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            epsilon = 1e-7  # small: SwiGLU has a kink where it is clamped
            with torch.no_grad():
                leaf += epsilon * direction
                above = loss()
                leaf -= 2 * epsilon * direction
                below = loss()
                leaf += epsilon * direction
            slope = float((above - below) / (2 * epsilon))
            expected = float((leaf.grad * direction).sum())
            assert slope == pytest.approx(expected, rel=1e-4, abs=1e-5), f"{part} {layer} {name}"


def test_gradients_flow_to_experts_that_were_chosen_only():
    model = RandomModel(tiny_config(num_hidden_layers=1))
    architecture = Architecture.of(model.config)
    kernels = TorchKernels(dtype=torch.float64, record_routing=True)
    leaves, source = trainable(model)
    weights = prepare_weights(architecture, kernels, source)
    forward(architecture, kernels, weights, packed_input(documents(model, [1]))).sum().backward()
    (routing,) = kernels.routing
    reached = leaves[Part.MOE, 0]["down"].grad.abs().amax((1, 2)) > 0
    assert reached.tolist() == (routing.counts_E > 0).tolist()
    assert int(routing.counts_E.sum()) == model.config.num_experts_per_tok
    assert routing.probabilities_TE.sum(-1).item() == pytest.approx(1)


# -- Refusals -------------------------------------------------------------------------------------


def test_refuses_missing_and_misshapen_tensors():
    model = RandomModel(tiny_config())
    dims = model.config.dims()
    tensors = model.part(Part.ATTENTION, 0)
    del tensors["sinks"]
    with pytest.raises(KernelError, match="expected a tensor sinks, got none"):
        TorchKernels().prepare(Part.ATTENTION, tensors, dims)
    for part in Part:
        for name in part_shapes(part, dims):
            tensors = model.dense_part(part, None if part in (Part.EMBEDDING, Part.HEAD) else 0)
            tensors[name] = tensors[name][..., :-1]
            with pytest.raises(KernelError, match=rf"{part.value}\.{name} of shape"):
                TorchKernels().prepare(part, tensors, dims)


def test_refuses_ids_outside_the_vocabulary():
    model = RandomModel(tiny_config())
    for token in (-1, model.config.vocab_size):
        with pytest.raises(KernelError, match=r"\[embed\] expected"):
            run(TorchKernels(), model, packed_input([[token]]))


def test_the_padding_of_one_step_is_not_used_for_another():
    model = RandomModel(tiny_config(num_hidden_layers=2))
    kernels = TorchKernels(dtype=torch.float64)
    for lengths in ([5, 9], [9, 5], [14]):
        inputs = packed_input(documents(model, lengths))
        expected = run(ReferenceKernels(dtype=np.float64), model, inputs)
        assert_close(run(kernels, model, inputs), expected, FLOAT64_TOLERANCE)
        assert_close(
            run(kernels, model, replace(inputs, cu_seqlens_S1=inputs.cu_seqlens_S1.copy())),
            expected,
            FLOAT64_TOLERANCE,
        )
