"""Poses as a network learns them: every rotation by two rows of its matrix.

A rotation vector is torn at half a turn, where a hand that points down happens to be; the first two rows of the matrix
are not: `encode` and `decode`.

Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks" (arXiv 1812.07035),
section 4; rows, where the paper has columns, as in pytorch3d and diffusion_policy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffusion_core.errors import WorkbenchError
from diffusion_core.process import so3

POSE, ENCODED = 7, 10
"""Numbers per arm: position 3, rotation vector 3 or two rows 6, gripper 1."""
PARALLEL = 1e-6
"""Sine of an angle between rows that span no plane."""


def encode(action: Float[Tensor, "*b absolute"]) -> Float[Tensor, "*b encoded"]:
    """Absolute actions of one or more arms, (..., 7) each -> (..., 10): rotation vector -> two rows.

    Raises:
        WorkbenchError: a width that is no multiple of 7.
    """
    arms = _arms(action, POSE)
    return torch.cat([arms[..., :3], rows(so3.exp(arms[..., 3:6])), arms[..., 6:]], -1).flatten(-2)


def decode(action: Float[Tensor, "*b encoded"]) -> Float[Tensor, "*b absolute"]:
    """What a network puts out for `encode`, (..., 10) per arm -> (..., 7).

    Raises:
        WorkbenchError: a width that is no multiple of 10.
    """
    arms = _arms(action, ENCODED)
    return torch.cat([arms[..., :3], so3.log(matrix(arms[..., 3:9])), arms[..., 9:]], -1).flatten(-2)


def rows(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """The first two, one after the other."""
    return rotation[..., :2, :].flatten(-2)


def matrix(six: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Gram and Schmidt's rows: ``b1 = n(a1), b2 = n(a2 - (b1.a2) b1), b3 = b1 x b2``; any six numbers will do.

    For a row of 0 and for parallel rows, which span no plane, an axis stands in: an arm must be told something.

    Source: Zhou et al. 2019, equation 15.
    """
    b1 = _unit(six[..., :3], torch.zeros_like(six[..., :3]))
    b2 = _unit(six[..., 3:], b1)
    return torch.stack([b1, b2, torch.linalg.cross(b1, b2)], -2)


def _unit(a: Tensor, b: Tensor) -> Tensor:
    """The direction of ``a`` across ``b``, a unit vector or 0; where there is none, of the axis farthest from ``b``."""
    axis = torch.nn.functional.one_hot(b.abs().argmin(-1), 3).to(a)
    across, instead = (v - (b * v).sum(-1, keepdim=True) * b for v in (a, axis))
    least = PARALLEL * a.norm(dim=-1, keepdim=True).clamp(min=PARALLEL)
    return functional.normalize(torch.where(across.norm(dim=-1, keepdim=True) > least, across, instead), dim=-1)


def _arms(action: Tensor, width: int) -> Tensor:
    if action.shape[-1] == 0 or action.shape[-1] % width:
        raise WorkbenchError(
            f"action: got {action.shape[-1]} numbers a step; expected {width} per arm: position, rotation, gripper."
        )
    return action.unflatten(-1, (-1, width))
