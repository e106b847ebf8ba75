"""Rotations: against the core's own exponential, by round trips, and where a representation is torn."""

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.process import so3
from policy.data import rotation


def vectors(n: int = 500, seed: int = 0) -> np.ndarray:
    """Rotation vectors of every length below pi."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=(n, 3))
    return axis / np.linalg.norm(axis, axis=1, keepdims=True) * rng.uniform(0, np.pi - 1e-3, (n, 1))


def test_matrices_are_those_of_the_core():
    v = vectors()
    ours = rotation.matrix_from_vector(v)
    np.testing.assert_allclose(ours, so3.exp(torch.as_tensor(v)).numpy(), atol=1e-13)
    np.testing.assert_allclose(rotation.vector_from_matrix(ours), so3.log(torch.as_tensor(ours)).numpy(), atol=1e-11)


def test_round_trips():
    v = vectors().reshape(50, 10, 3)
    m = rotation.matrix_from_vector(v)
    np.testing.assert_allclose(rotation.matrix_from_sixd(rotation.sixd_from_matrix(m)), m, atol=1e-14)
    np.testing.assert_allclose(rotation.matrix_from_quaternion(rotation.quaternion_from_matrix(m)), m, atol=1e-14)
    np.testing.assert_allclose(rotation.vector_from_matrix(m), v, atol=1e-11)
    assert (rotation.quaternion_from_matrix(m)[..., 3] >= 0).all()


def test_conventions_by_hand():
    quarter = rotation.matrix_from_vector(np.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(quarter @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    # rows: the transpose, which the paper's columns would give, is the rotation back
    np.testing.assert_allclose(rotation.sixd_from_matrix(quarter), [0, -1, 0, 1, 0, 0], atol=1e-15)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rotation.quaternion_from_matrix(quarter), [0, 0, half, half], atol=1e-15)


def test_any_six_numbers_give_the_rotation_of_their_plane():
    rng = np.random.default_rng(1)
    six = rng.normal(size=(200, 6))
    m = rotation.matrix_from_sixd(six)
    np.testing.assert_allclose(m @ m.swapaxes(-1, -2), np.broadcast_to(np.eye(3), m.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(m), 1.0, atol=1e-12)
    scaled = np.concatenate([3.0 * six[:, :3], 0.1 * six[:, 3:] + 5.0 * six[:, :3]], 1)
    np.testing.assert_allclose(rotation.matrix_from_sixd(scaled), m, atol=1e-9)


def test_six_numbers_do_not_jump_where_the_vector_does():
    below, above = np.array([[0.0, 0.0, np.pi - 1e-4]]), np.array([[0.0, 0.0, np.pi + 1e-4]])
    folded = rotation.vector_from_matrix(rotation.matrix_from_vector(above))
    assert np.abs(folded - below).max() > 6.0
    near = [rotation.sixd_from_matrix(rotation.matrix_from_vector(v)) for v in (below, folded)]
    assert np.abs(near[0] - near[1]).max() < 3e-4


@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_of_one_and_two_arms(arms, dtype):
    rng = np.random.default_rng(2)
    parts = [
        np.concatenate([rng.normal(size=(30, 3)), vectors(30, s), rng.uniform(-1, 1, (30, 1))], 1) for s in range(arms)
    ]
    action = np.concatenate(parts, 1).astype(dtype)
    encoded = rotation.encode_action(action)
    assert encoded.shape == (30, 10 * arms) and encoded.dtype == dtype
    np.testing.assert_array_equal(encoded[:, [0, 1, 2, 9]], action[:, [0, 1, 2, 6]])
    np.testing.assert_allclose(rotation.decode_action(encoded), action, atol=2e-5 if dtype == np.float32 else 1e-11)
    if arms == 2:
        np.testing.assert_array_equal(encoded[:, 10:], rotation.encode_action(action[:, 7:]))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: rotation.encode_action(np.zeros((2, 8))), "got 8 numbers a step; expected 7 per arm"),
        (lambda: rotation.decode_action(np.zeros((2, 7))), "got 7 numbers a step; expected 10 per arm"),
        (lambda: rotation.matrix_from_sixd(np.array([1.0, 0, 0, 2, 0, 0])), "parallel rows"),
        (lambda: rotation.matrix_from_sixd(np.array([0.0, 0, 0, 2, 0, 0])), "a row of 0"),
        (lambda: rotation.matrix_from_quaternion(np.zeros((2, 4))), "got 0, 0, 0, 0"),
    ],
)
def test_mistakes(call, text):
    with pytest.raises(WorkbenchError, match=text):
        call()
