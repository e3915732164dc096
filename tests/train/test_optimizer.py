"""Muon's update is near the orthogonal factor of the momentum, per matrix."""

from __future__ import annotations

import pytest
import torch

from ossia.train.optimizer import QUINTICS, Muon, orthogonalize


def test_every_singular_value_that_is_not_tiny_comes_near_one():
    values = torch.linspace(0.003, 1, 100_000, dtype=torch.float64)
    for a, b, c in QUINTICS:
        values = a * values + b * values**3 + c * values**5
    assert values.min() > 0.77 and values.max() < 1.22


@pytest.mark.parametrize("shape", [(20, 20), (8, 30), (30, 8), (3, 16, 24), (2, 2, 24, 16)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4 and values.max() < 1.35
    # The same directions as the polar factor.
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), (u @ vt).flatten(), dim=0)
    assert cosine > 0.95


def test_each_matrix_of_a_stack_is_by_itself():
    stack = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([orthogonalize(matrix) for matrix in stack])
    assert torch.allclose(orthogonalize(stack), alone, atol=0.02)


def test_solves_a_linear_problem():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 10, generator=generator)
    weight = torch.zeros(6, 10, requires_grad=True)
    inputs = torch.randn(200, 10, generator=generator)
    optimizer = Muon([weight], lr=0.1)
    losses: list[float] = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = ((inputs @ weight.T - inputs @ target.T) ** 2).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]
