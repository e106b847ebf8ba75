"""Rotations of a robot's hand, and actions whose rotation a network can learn.

A rotation is three or four numbers in the files (rotation vector; unit quaternion x, y, z, w, as robosuite and scipy
have it), and every such form is torn somewhere. The first two rows of the matrix are not: `rotation_6d`.

Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks" (arXiv 1812.07035),
section 4; rows, where the paper has columns, as in pytorch3d and diffusion_policy.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from diffusion_core.errors import WorkbenchError

POSE, POSE_6D = 7, 10
"""Numbers per arm: position 3, rotation vector 3 or `rotation_6d` 6, gripper 1."""


def matrix_from_vector(vector: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3 3"]:
    """The rotation by ``|vector|`` radians about ``vector``."""
    return Rotation.from_rotvec(vector.reshape(-1, 3)).as_matrix().reshape(*vector.shape, 3)


def vector_from_matrix(matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 3"]:
    """The rotation vector of length at most pi; at pi itself one of the two."""
    return Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_rotvec().reshape(matrix.shape[:-1])


def matrix_from_quaternion(quaternion: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b 3 3"]:
    """The rotation of a quaternion x, y, z, w, of any length but 0.

    Raises:
        WorkbenchError: one is 0.
    """
    if (np.abs(quaternion) == 0.0).all(-1).any():
        raise WorkbenchError("quaternion: got 0, 0, 0, 0; expected a unit quaternion x, y, z, w: drop that step.")
    return Rotation.from_quat(quaternion.reshape(-1, 4)).as_matrix().reshape(*quaternion.shape[:-1], 3, 3)


def quaternion_from_matrix(matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 4"]:
    """The unit quaternion x, y, z, w with w at least 0."""
    found = Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_quat()
    return np.where(found[:, 3:] < 0.0, -found, found).reshape(*matrix.shape[:-2], 4)


def sixd_from_matrix(matrix: Float[np.ndarray, "*b 3 3"]) -> Float[np.ndarray, "*b 6"]:
    """The first two rows, one after the other."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)


def matrix_from_sixd(sixd: Float[np.ndarray, "*b 6"]) -> Float[np.ndarray, "*b 3 3"]:
    """Gram and Schmidt's rows: ``b1 = n(a1), b2 = n(a2 - (b1.a2) b1), b3 = b1 x b2``; any six numbers will do.

    Raises:
        WorkbenchError: the two rows are parallel, or one is 0.

    Source: Zhou et al. 2019, equation 15.
    """
    a1, a2 = sixd[..., :3], sixd[..., 3:]
    b1 = a1 / np.linalg.norm(a1, axis=-1, keepdims=True).clip(1e-12)
    rest = a2 - (b1 * a2).sum(-1, keepdims=True) * b1
    length = np.linalg.norm(rest, axis=-1, keepdims=True)
    if (length <= 1e-6 * np.linalg.norm(a2, axis=-1, keepdims=True)).any() or not b1.any(-1).all():
        raise WorkbenchError("rotation_6d: got parallel rows, or a row of 0; expected two that span a plane.")
    b2 = rest / length
    return np.stack([b1, b2, np.cross(b1, b2)], axis=-2)


def encode_action(action: Float[np.ndarray, "*b absolute"]) -> Float[np.ndarray, "*b encoded"]:
    """Absolute actions of one or more arms, (..., 7) each -> (..., 10): rotation vector -> `rotation_6d`.

    Raises:
        WorkbenchError: a width that is no multiple of 7.
    """
    arms = _arms(action, POSE)
    sixd = sixd_from_matrix(matrix_from_vector(arms[..., 3:6])).astype(action.dtype)
    return np.concatenate([arms[..., :3], sixd, arms[..., 6:]], -1).reshape(*action.shape[:-1], -1)


def decode_action(action: Float[np.ndarray, "*b encoded"]) -> Float[np.ndarray, "*b absolute"]:
    """What a network puts out for `encode_action`, (..., 10) per arm -> (..., 7); its rows need not be orthonormal.

    Raises:
        WorkbenchError: a width that is no multiple of 10, or rows that span no plane.
    """
    arms = _arms(action, POSE_6D)
    vector = vector_from_matrix(matrix_from_sixd(arms[..., 3:9])).astype(action.dtype)
    return np.concatenate([arms[..., :3], vector, arms[..., 9:]], -1).reshape(*action.shape[:-1], -1)


def _arms(action: np.ndarray, width: int) -> np.ndarray:
    if action.shape[-1] == 0 or action.shape[-1] % width:
        raise WorkbenchError(
            f"action: got {action.shape[-1]} numbers a step; expected {width} per arm: position, rotation, gripper."
        )
    return action.reshape(*action.shape[:-1], -1, width)
