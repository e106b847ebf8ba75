"""Poses: by round trips, where a rotation vector is torn, and where rows span no plane."""

import math

import pytest
import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.process import so3
from policy import poses
from tests.policy.conftest import config


def actions(arms: int, n: int = 300, seed: int = 0) -> Tensor:
    """Poses with rotation vectors of every length below pi, float64."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, arms, 7, generator=generator, dtype=torch.float64)
    axis = torch.nn.functional.normalize(a[..., 3:6], dim=-1)
    a[..., 3:6] = axis * torch.rand(n, arms, 1, generator=generator, dtype=torch.float64) * (math.pi - 1e-3)
    return a.flatten(1)


@pytest.mark.parametrize("arms", [1, 2])
def test_actions_of_one_and_two_arms_come_back(arms):
    action = actions(arms)
    encoded = poses.encode(action)
    assert encoded.shape == (300, 10 * arms)
    assert torch.equal(encoded[:, [0, 1, 2, 9]], action[:, [0, 1, 2, 6]])
    torch.testing.assert_close(poses.decode(encoded), action, atol=1e-10, rtol=0.0)
    torch.testing.assert_close(poses.decode(poses.encode(action.float())), action.float(), atol=1e-3, rtol=0.0)
    if arms == 2:
        assert torch.equal(encoded[:, 10:], poses.encode(action[:, 7:]))


def test_rows_by_hand():
    quarter = so3.exp(torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64))
    # rows: the transpose, which the paper's columns would give, is the rotation back
    expected = torch.tensor([0.0, -1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(poses.rows(quarter), expected, atol=1e-15, rtol=0.0)


def test_any_six_numbers_give_the_rotation_of_their_plane():
    six = torch.randn(200, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    m = poses.matrix(six)
    torch.testing.assert_close(m @ m.mT, torch.eye(3, dtype=torch.float64).expand(200, 3, 3), atol=1e-12, rtol=0.0)
    torch.testing.assert_close(torch.linalg.det(m), torch.ones(200, dtype=torch.float64))
    scaled = torch.cat([3.0 * six[:, :3], 0.1 * six[:, 3:] + 5.0 * six[:, :3]], 1)
    torch.testing.assert_close(poses.matrix(scaled), m, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize(
    "six", [[1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, -1, 1e-9], [0, 3, 0, 0, 0, 0]]
)
def test_rows_that_span_no_plane_still_give_a_rotation(six):
    """A network may put out anything, and an arm in motion must be told something."""
    m = poses.matrix(torch.tensor(six, dtype=torch.float32))
    torch.testing.assert_close(m @ m.mT, torch.eye(3), atol=1e-5, rtol=0.0)
    assert torch.linalg.det(m) == pytest.approx(1.0, abs=1e-5)
    if any(six[:3]):
        torch.testing.assert_close(m[0], torch.nn.functional.normalize(torch.tensor(six[:3]).float(), dim=0))


def test_rows_do_not_jump_where_the_vector_does():
    below, above = (torch.tensor([[0, 0, 0, 0, 0, math.pi + by, 1]], dtype=torch.float64) for by in (-1e-4, 1e-4))
    folded = poses.decode(poses.encode(above))
    assert (folded - below).abs().max() > 6.0
    assert (poses.encode(folded) - poses.encode(below)).abs().max() < 3e-4


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: poses.encode(torch.zeros(2, 8)), "got 8 numbers a step; expected 7 per arm"),
        (lambda: poses.decode(torch.zeros(2, 7)), "got 7 numbers a step; expected 10 per arm"),
        (lambda: config("task=lift_absolute", "task.reference=[0]"), "got rotations and reference="),
    ],
)
def test_mistakes(call, text):
    with pytest.raises(WorkbenchError, match=text):
        call()
