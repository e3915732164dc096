"""Gradients of the training forward pass: against an independent statement of the formulas
(training_formulas.py), against differences of the loss, and exactly zero wherever the formulas cut
an influence off.

Legend: T tokens, D model width, E experts, I expert width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from ossia.kernels.mxfp4 import decode, encode
from ossia.kernels.torch import TorchKernels
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.inputs import ForwardInput, packed_input
from ossia.model.transformer import Architecture, forward, prepare_weights
from ossia.train.loop import balance_loss
from ossia.train.parameters import EXPERTS, Parameters
from random_models import tiny_config
from training_formulas import formulas, trainable

WINDOW = 128
LENGTHS = (127, 128, 129, 140)
"""The window has room left, is full, has just been passed, and has been passed by some."""

ROPES = {
    "published": RopeConfig(),
    # Reached by every sequence of LENGTHS. With the published beta_fast the ramp would begin below
    # dimension 0, where the published code is not defined.
    "original context of 64": RopeConfig(original_max_position_embeddings=64, beta_fast=4.0),
}

FORMULA_TOLERANCE = 1e-5
"""Of a tensor's largest gradient. Cosines may be rounded to float32 (2^-24 = 6e-8), as in the
published code; attention scores of some tens and two layers amplify that. Measured: below 4e-7."""

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


# -- What the tests share ---------------------------------------------------------------------


def config_of(layers: str = "sf", **changes) -> ModelConfig:
    """One letter for each layer: sliding or full."""
    sizes = {
        "num_hidden_layers": len(layers),
        "sliding_layers": tuple(letter == "s" for letter in layers),
        "intermediate_size": 32,
        "vocab_size": 320,
        "sliding_window": WINDOW,
    }
    return tiny_config(**(sizes | changes))


def distinct_ids(config: ModelConfig, length: int) -> list[int]:
    """No token twice: row i of the embedding's gradient is that of one position."""
    return np.random.default_rng(length).permutation(config.vocab_size)[:length].tolist()


def trained_logits(
    parameters: Parameters,
    inputs: ForwardInput,
    dtype: torch.dtype = torch.float64,
    *,
    rounded: bool = False,
) -> Tensor:
    """The forward pass as the training loop runs it."""
    architecture, kernels = Architecture.of(parameters.config), TorchKernels(dtype=dtype)
    weights = prepare_weights(architecture, kernels, parameters.source(rounded=rounded))
    return forward(architecture, kernels, weights, inputs)


def probe_like(logits: Tensor, seed: int = 1) -> Tensor:
    """Random weights of a loss that reads every logit."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.dtype)


def gradients(loss: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        loss, list(tensors.values()), retain_graph=True, materialize_grads=True
    )
    return dict(zip(tensors, found, strict=True))


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest, as a share of the largest expected value."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def assert_as_formulas(
    parameters: Parameters, inputs: ForwardInput, expected: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The logits, and the gradients of a loss that reads all of them. Returns those gradients: of
    the training forward, and of the formulas."""
    logits, probe = trained_logits(parameters, inputs), probe_like(expected)
    assert difference(logits, expected) < FORMULA_TOLERANCE
    found = gradients((logits * probe).sum(), parameters.tensors)
    wanted = gradients((expected * probe).sum(), parameters.tensors)
    for key, value in wanted.items():
        assert value.abs().max() > 0, f"{key} has no gradient: the comparison means nothing"
        assert difference(found[key], value) < FORMULA_TOLERANCE, key
    return found, wanted


# -- Every tensor -----------------------------------------------------------------------------


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_gradient_is_that_of_the_formulas(length, rope):
    config = config_of(rope=ROPES[rope])
    parameters, ids = trainable(config), distinct_ids(config, length)
    expected = formulas(config, parameters.tensors, ids)
    assert_as_formulas(parameters, packed_input([ids]), expected)


@pytest.mark.parametrize(
    "fault",
    [
        {"sliding_window": WINDOW - 1},
        {"sliding_window": WINDOW + 1},
        {"concentration": 1.0},
        {"rope": RopeConfig(factor=31.0)},
        {"rope": RopeConfig(original_max_position_embeddings=4000)},
        {"swiglu_limit": 6.9},
        {"num_experts_per_tok": 3},
        {"rms_norm_eps": 1e-4},
    ],
    ids=str,
)
def test_the_comparison_sees_small_faults(fault):
    """Formulas with one constant slightly wrong are told from the right ones."""
    config = config_of()
    tensors, ids = trainable(config).tensors, distinct_ids(config, 140)
    own = {key: fault[key] for key in ("concentration",) if key in fault}
    other = replace(config, **{key: value for key, value in fault.items() if key not in own})
    right, wrong = formulas(config, tensors, ids), formulas(other, tensors, ids, **own)
    probe = probe_like(right)
    expected, found = (gradients((logits * probe).sum(), tensors) for logits in (right, wrong))
    seen = max(difference(found[key], value) for key, value in expected.items())
    assert seen > 10 * FORMULA_TOLERANCE


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
    "length", [129, *(pytest.param(n, marks=pytest.mark.slow) for n in LENGTHS if n != 129)]
)
def test_gradients_are_slopes_of_the_loss(length, rope):
    """Central differences of the training forward itself: of each tensor the element with the
    largest gradient and one drawn at random."""
    config = config_of(rope=ROPES[rope])
    parameters, inputs = trainable(config), packed_input([distinct_ids(config, length)])
    probe = probe_like(torch.zeros(length, config.vocab_size, dtype=torch.float64))

    def loss() -> Tensor:
        return (trained_logits(parameters, inputs) * probe).sum()

    rng = np.random.default_rng(length)
    for key, gradient in gradients(loss(), parameters.tensors).items():
        flat, largest = gradient.flatten(), float(gradient.abs().max())
        for at in (int(flat.abs().argmax()), int(rng.integers(len(flat)))):
            slope = central_difference(loss, parameters.tensors[key], at)
            # A loss of some hundred, known to 1e-14 of that, over 2e-6: 1e-6 of noise.
            assert slope == pytest.approx(float(flat[at]), rel=1e-5, abs=1e-6 * largest + 1e-6), key


def central_difference(loss: Callable[[], Tensor], leaf: Tensor, at: int) -> float:
    epsilon = 1e-6  # small: SwiGLU has kinks where it is clamped
    values = leaf.detach().view(-1)
    before = values[at].clone()
    with torch.no_grad():
        values[at] = before + epsilon
        above = loss()
        values[at] = before - epsilon
        below = loss()
        values[at] = before
    return float((above - below) / (2 * epsilon))


@pytest.mark.parametrize(
    ("layers", "positions"),
    [
        ("sf", np.arange(4090, 4230)),
        ("sf", np.arange(131072 - 140, 131072)),
        # Distances beyond the original context. Full layers only: there the window, which counts
        # keys, plays no part.
        ("ff", np.concatenate([np.arange(70), np.arange(4090, 4160)])),
        ("ff", np.concatenate([np.arange(100), [5000, 20000, 60000, 131071]])),
    ],
    ids=["around 4096", "up to 131071", "a gap over 4096", "gaps up to 131071"],
)
def test_positions_beyond_the_original_context(layers, positions):
    config = config_of(layers)
    parameters, ids = trainable(config), distinct_ids(config, len(positions))
    inputs = replace(packed_input([ids]), positions_T=positions.astype(np.int32))
    expected = formulas(config, parameters.tensors, ids, positions=positions)
    assert_as_formulas(parameters, inputs, expected)


@pytest.mark.parametrize(
    ("length", "layers"),
    [(1100, "sf"), (4230, "f")],
)
def test_long_sequences(length, layers):
    """Beyond what attention takes at a time; and beyond the original context, token by token. Rows
    of logits in any order, one of them twice."""
    config = config_of(layers, num_attention_heads=1, num_key_value_heads=1, vocab_size=50)
    parameters = trainable(config)
    ids = np.random.default_rng(0).integers(0, 50, length).tolist()
    rows = [length - 1, 0, 127, 128, 511, 512, length - 129, length // 2, 512]
    expected = formulas(config, parameters.tensors, ids, rows=rows)
    assert_as_formulas(parameters, packed_input([ids], logit_rows=rows), expected)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-5), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("lengths", [(129,), (127, 1, 300, 128, 17)])
def test_gradients_in_the_dtypes_of_training(dtype, bound, lengths):
    """By the norm of the difference, for single elements may be small by cancellation. Rounding to
    bfloat16 is off by 2^-9 / √3 = 0.11 % (root mean square), in some ten places one after another
    in each of two layers, forwards and backwards: √40 · 0.11 % = 0.7 %, which scores of some tens
    and SwiGLU amplify. Measured over eight seeds: 3 to 5 % in the middle, 9 % at most
    (float32: 5e-6).
    A term that is missing or counted twice is off by more than half of what it gives.

    All experts are chosen here, so that rounding sends no token elsewhere.
    """
    config = config_of(num_local_experts=4)
    rng = np.random.default_rng(3)
    inputs = packed_input([rng.integers(0, config.vocab_size, n).tolist() for n in lengths])
    leaves = trainable(config, dtype=torch.float32)
    exact = trainable(config)

    def found(parameters: Parameters, dtype: torch.dtype) -> dict[str, Tensor]:
        logits = trained_logits(parameters, inputs, dtype)
        return gradients((logits * probe_like(logits)).sum(), parameters.tensors)

    expected = found(exact, torch.float64)
    for key, gradient in found(leaves, dtype).items():
        assert gradient.dtype == torch.float32
        off = (gradient.double() - expected[key]).norm() / expected[key].norm()
        assert off < bound, f"{key}: {off:.2g}"


# -- The window -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_logit_depends_on_its_window_alone(dtype):
    """One sliding layer: on the own token and the 127 before it, exactly."""
    config = config_of("s")
    parameters, ids = trainable(config), distinct_ids(config, 140)
    logits = trained_logits(parameters, packed_input([ids]), dtype)
    for row in (0, 1, 126, 127, 128, 129, 139):
        gradient = gradients(logits[row].sum(), parameters.tensors)["embedding.weight"]
        reached = set(gradient.abs().amax(1).nonzero().flatten().tolist())
        assert reached == set(ids[max(0, row - 127) : row + 1]), row


@pytest.mark.parametrize(
    ("layers", "length", "reached"),
    [
        *(("s", length, length <= 128) for length in LENGTHS),
        # Two windows, of which each takes 127 steps back: from row 254 at most.
        *(("ss", length, length <= 255) for length in (129, 254, 255, 256)),
        *(("sf", length, True) for length in (129, 256)),
    ],
)
def test_how_far_the_first_token_reaches(layers, length, reached):
    """The gradient of one logit of the last row with respect to the first token's embedding."""
    config = config_of(layers)
    parameters, ids = trainable(config), distinct_ids(config, length)
    logits = trained_logits(parameters, packed_input([ids], logit_rows=[length - 1]))
    found = gradients(logits[0, 7], parameters.tensors)["embedding.weight"]
    plain = formulas(config, parameters.tensors, ids)[-1, 7]
    expected = gradients(plain, parameters.tensors)["embedding.weight"]
    first = ids[0]
    if reached:
        assert found[first].abs().max() > 0
        # By its own size, which is far below that of the last token's.
        assert difference(found[first], expected[first]) < 20 * FORMULA_TOLERANCE
    else:
        assert torch.equal(found[first], torch.zeros_like(found[first]))
    assert difference(found, expected) < FORMULA_TOLERANCE


# -- Sinks ------------------------------------------------------------------------------------

SINKS = (-30.0, 0.5, 8.0, 15.0)
"""One that is not there, one among the keys, one that has most of the weight and one that leaves
the keys nearly none."""


def with_sinks(config: ModelConfig, values: Sequence[float]) -> Parameters:
    parameters = trainable(config)
    with torch.no_grad():
        for n in range(config.num_hidden_layers):
            parameters.tensors[f"attention.{n}.sinks"].copy_(torch.tensor(values))
    return parameters


@pytest.mark.parametrize("length", [1, *LENGTHS])
def test_sinks_of_any_size(length):
    config = config_of()
    parameters = with_sinks(config, SINKS)
    inputs = packed_input([ids := distinct_ids(config, length)])
    expected = formulas(config, parameters.tensors, ids)
    probe = probe_like(expected)

    def loss() -> Tensor:
        return (trained_logits(parameters, inputs) * probe).sum()

    found, wanted = assert_as_formulas(parameters, inputs, expected)
    for n in range(2):
        key = f"attention.{n}.sinks"
        gone, *others = wanted[key].tolist()
        # e^-30 is 1e-13: nothing.
        assert abs(gone) < 1e-9 and found[key][0].item() == pytest.approx(gone, abs=1e-9)
        assert found[key][1:].tolist() == pytest.approx(others, rel=20 * FORMULA_TOLERANCE)
        for head in range(4):
            slope = central_difference(loss, parameters.tensors[key], head)
            assert found[key][head].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_the_sink_of_one_key_by_hand():
    """A sequence of one token attends to itself with the share σ(score − sink), whose derivative
    with respect to the sink is −σ·(1 − σ). Its value is the bias alone, for v is zero, so that the
    gradient of that bias is the share times what comes back: grad_sink = −(1 − σ) · v · grad_v.
    """
    config = config_of("s", num_key_value_heads=4)
    parameters = with_sinks(config, SINKS)
    tensors = parameters.tensors
    with torch.no_grad():
        for name in ("q", "k", "v", "q_bias"):
            tensors[f"attention.0.{name}"].zero_()  # the score is 0
    logits = trained_logits(parameters, packed_input([[5]]))
    found = gradients((logits * probe_like(logits)).sum(), tensors)
    values, back = (t["attention.0.v_bias"].view(4, 64).detach() for t in (tensors, found))
    kept = 1 / (1 + torch.tensor(SINKS, dtype=torch.float64).exp())
    expected = -(1 - kept) * (values * back).sum(1)
    np.testing.assert_allclose(found["attention.0.sinks"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_sinks_in_the_dtypes_of_training(dtype):
    """Neither overflow nor NaN, forwards or backwards."""
    config = config_of(num_local_experts=4)
    parameters = with_sinks(config, (-1000.0, -30.0, 30.0, 1000.0))
    inputs = packed_input([distinct_ids(config, 129), [3]])
    logits = trained_logits(parameters, inputs, dtype)
    assert logits.isfinite().all()
    for key, gradient in gradients(logits.sum(), parameters.tensors).items():
        assert gradient.isfinite().all(), key
        if key.endswith("sinks"):
            largest = gradient.abs().max()
            assert gradient[[0, 1, 3]].abs().max() <= 1e-3 * largest or largest < 1e-3


# -- Router and experts -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_that_were_not_chosen_have_no_gradient(dtype):
    config = config_of("s")
    parameters = trainable(config)
    routers: list[Tensor] = []
    formulas(config, parameters.tensors, [5], routers=routers)
    chosen = routers[0][0].topk(4).indices.sort().values.tolist()
    logits = trained_logits(parameters, packed_input([[5]]), dtype)
    found = gradients((logits * probe_like(logits)).sum(), parameters.tensors)
    for name in ("router", "router_bias", "gate_up", "gate_up_bias", "down", "down_bias"):
        gradient = found[f"moe.0.{name}"]
        reached = gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]
        assert reached.abs().amax(1).nonzero().flatten().tolist() == chosen, name
    # A softmax does not change when all its logits do.
    bias = found["moe.0.router_bias"].double()
    assert abs(bias.sum()) < {8: 1e-12, 4: 1e-5, 2: 1e-1}[dtype.itemsize] * bias.abs().max()


@pytest.mark.parametrize("length", [1, 129])
def test_the_balance_loss_reaches_every_expert(length):
    """E · Σ_e (share of the assignments) · (mean probability), over all experts' logits."""
    config = config_of()
    parameters, ids = trainable(config), distinct_ids(config, length)
    architecture = Architecture.of(config)
    kernels = TorchKernels(dtype=torch.float64, record_routing=True)
    weights = prepare_weights(architecture, kernels, parameters.source())
    forward(architecture, kernels, weights, packed_input([ids]))
    found = gradients(balance_loss(kernels.routing), parameters.tensors)

    routers: list[Tensor] = []
    formulas(config, parameters.tensors, ids, routers=routers)
    expected = torch.zeros((), dtype=torch.float64)
    for logits in routers:
        shares = np.bincount(logits.topk(4).indices.flatten().numpy(), minlength=8) / (4 * length)
        expected = expected + 8 * (torch.from_numpy(shares) * logits.softmax(-1).mean(0)).sum()
    for key, value in gradients(expected, parameters.tensors).items():
        if value.any():
            assert difference(found[key], value) < FORMULA_TOLERANCE, key
        else:
            assert not found[key].any(), key
    for n in range(2):
        assert (found[f"moe.{n}.router_bias"] != 0).all()


def test_swiglu_at_and_beyond_its_limit():
    """With gate_up zero, the hidden values are the bias, the same for all tokens; then the
    gradient of each follows from that of the expert's output by hand.

    The gate is cut from above only, the up on both sides. At the limit itself either one-sided
    derivative will do.
    """
    limit, alpha = 7.0, 1.702
    gates = np.array([-40.0, -9.0, -7.0, -1.0, 0.0, 6.999, 7.0, 7.001, 30.0])
    ups = np.array([-30.0, -7.001, -7.0, -6.999, -1.0, 0.5, 7.0, 7.001, 30.0])
    # 81 pairs and 15 more of no interest: the width is a multiple of 32.
    pairs = np.array([[g, u] for g in gates for u in ups] + [[0.5, 0.5]] * 15)
    config = config_of("s", intermediate_size=96)
    parameters = trainable(config)
    tensors = parameters.tensors
    with torch.no_grad():
        tensors["moe.0.gate_up"].zero_()
        tensors["moe.0.gate_up_bias"].copy_(torch.from_numpy(pairs.reshape(-1)))
    logits = trained_logits(parameters, packed_input([distinct_ids(config, 129)]))
    found = gradients((logits * probe_like(logits)).sum(), tensors)

    gate, up = np.minimum(pairs[:, 0], limit), np.clip(pairs[:, 1], -limit, limit)
    sigmoid = 1 / (1 + np.exp(-alpha * gate))
    act = gate * sigmoid * (up + 1)
    gate_slope = (sigmoid + alpha * gate * sigmoid * (1 - sigmoid)) * (up + 1)
    up_slope = gate * sigmoid
    back_ED = found["moe.0.down_bias"].numpy()
    np.testing.assert_allclose(
        found["moe.0.down"], back_ED[:, :, None] * act, rtol=1e-9, atol=1e-12
    )
    back_EI = np.einsum("edi,ed->ei", tensors["moe.0.down"].detach().numpy(), back_ED)
    hidden = found["moe.0.gate_up_bias"].numpy()
    used = back_ED.any(axis=1)
    low = (pairs[:, 0] < -limit) & (gate_slope != 0)
    assert used.sum() >= 4 and low.sum() == 16
    assert hidden[used][:, 0::2][:, low].all()  # not cut from below
    for slopes, values, at_limit, beyond in (
        (hidden[:, 0::2], gate_slope, pairs[:, 0] == limit, pairs[:, 0] > limit),
        (hidden[:, 1::2], up_slope, abs(pairs[:, 1]) == limit, abs(pairs[:, 1]) > limit),
    ):
        expected = back_EI * values
        inside = ~(at_limit | beyond)
        assert np.array_equal(slopes[:, beyond], np.zeros_like(slopes[:, beyond]))
        np.testing.assert_allclose(slopes[:, inside], expected[:, inside], rtol=1e-8, atol=1e-13)
        ends = np.sort([np.zeros_like(expected[:, at_limit]), expected[:, at_limit]], axis=0)
        slack = 1e-9 * np.abs(ends).max()
        assert (slopes[:, at_limit] >= ends[0] - slack).all()
        assert (slopes[:, at_limit] <= ends[1] + slack).all()


# -- Packed documents -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_gradient_crosses_documents(dtype):
    """Neither in attention, nor among the tokens that share an expert, nor through padding."""
    lengths = (127, 1, 128, 129, 17, 40)
    config = config_of(vocab_size=sum(lengths))
    parameters = trainable(config)
    order = np.random.default_rng(0).permutation(sum(lengths))
    documents = [ids.tolist() for ids in np.split(order, np.cumsum(lengths)[:-1])]
    logits = trained_logits(parameters, packed_input(documents), dtype)
    probe = probe_like(logits)
    splits = np.split(np.arange(len(order)), np.cumsum(lengths)[:-1])
    for ids, rows in zip(documents, splits, strict=True):
        found = gradients((logits[rows] * probe[rows]).sum(), parameters.tensors)
        reached = found["embedding.weight"].abs().amax(1).nonzero().flatten()
        assert reached.tolist() == sorted(ids)
        if dtype == torch.float64:
            alone = trained_logits(parameters, packed_input([ids]))
            expected = gradients((alone * probe[rows]).sum(), parameters.tensors)
            for key, value in expected.items():
                # Sums in another order; experts that none of this document's tokens chose are 0.
                assert torch.allclose(found[key], value, rtol=1e-9, atol=1e-9), key


# -- Rounded weights --------------------------------------------------------------------------


def test_rounding_passes_the_gradient_of_the_rounded_point():
    """As the last part of training runs: the gradient is that at the values of the export, and
    arrives at the weights unchanged."""
    config = config_of()
    parameters = trainable(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # off the grid of MXFP4, on which the random model's experts lie
        for value in parameters.tensors.values():
            value.mul_(1 + 0.2 * torch.randn(value.shape, generator=generator))
    inputs = packed_input([distinct_ids(config, 129), [4, 5]])

    def rounded(key: str, value: Tensor) -> Tensor:
        """As the export's own codec does it, not as training does."""
        array = value.detach().numpy()
        if key.rpartition(".")[2] in EXPERTS:
            array = decode(encode(array))
        else:
            array = array.astype(ml_dtypes.bfloat16).astype(np.float32)
        return torch.from_numpy(array).requires_grad_()

    point = Parameters(config, {key: rounded(key, t) for key, t in parameters.tensors.items()})
    logits = trained_logits(parameters, inputs, torch.float32, rounded=True)
    expected = trained_logits(point, inputs, torch.float32)
    assert torch.equal(logits, expected)
    probe = probe_like(logits)
    found = gradients((logits * probe).sum(), parameters.tensors)
    for key, value in gradients((expected * probe).sum(), point.tensors).items():
        assert torch.equal(found[key], value), key
    # And it is another one than that of the unrounded weights.
    unrounded = trained_logits(parameters, inputs, torch.float32)
    other = gradients((unrounded * probe).sum(), parameters.tensors)
    assert all(difference(found[key], other[key]) > 1e-3 for key in found)
