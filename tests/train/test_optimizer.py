"""Muon in float32: the steps of torch's, without its rounding."""

from __future__ import annotations

import pytest
import torch

from eagle.train.optimizer import Float32Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_singular_values_are_brought_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, shape[1])
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalised(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7) @ right.T
    assert found.diagonal().min() > 0.5
    assert found.diagonal().max() < 1.5
    assert (found - found.diagonal().diag()).abs().max() < 1e-4


def test_steps_are_those_of_torch() -> None:
    source = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=source) for shape in ((24, 40), (40, 24))]
    models = []
    for kind in (torch.optim.Muon, Float32Muon):
        parameters = [torch.nn.Parameter(weights.clone()) for weights in start]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for step in range(4):
            for place, parameter in enumerate(parameters):
                numbers = torch.Generator().manual_seed(10 * step + place)
                parameter.grad = torch.randn(parameter.shape, generator=numbers)
            optimizer.step()
        models.append((parameters, optimizer.state_dict()))
    for ours, theirs, weights in zip(models[1][0], models[0][0], start, strict=True):
        # What bfloat16 rounds is its 8 bits in each of the steps.
        assert (ours - theirs).norm() < 0.02 * (theirs - weights).norm()
    # A training begun with one goes on with the other.
    assert models[0][1]["state"].keys() == models[1][1]["state"].keys()
    for ours, theirs in zip(models[1][1]["state"].values(), models[0][1]["state"].values(), strict=True):
        torch.testing.assert_close(ours["momentum_buffer"], theirs["momentum_buffer"])
