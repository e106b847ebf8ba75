"""Lattices as numbers: cell parameters, and the six that a diffusion model sees.

A lattice is known up to a rotation, so what counts is its metric ``G = L L^T = S^2``. The six numbers are

    vector = entries of log S = 1/2 log G,    off-diagonal ones times sqrt(2),

which no rotation changes, which any real numbers stand for a cell of positive volume, and in which distance is that of
strains. ``trace(log S) = log(volume)``.

Source: the symmetric polar part: Jiao et al. 2024 (DiffCSP++, arXiv 2402.03992), section 4.2; Zeni et al. 2025
(MatterGen, doi 10.1038/s41586-025-08628-5).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

_ROWS, _COLUMNS = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)
_WEIGHTS = (1.0, 1.0, 1.0, math.sqrt(2.0), math.sqrt(2.0), math.sqrt(2.0))


def matrix(cell: Float64[np.ndarray, "*n 6"]) -> Float64[np.ndarray, "*n 3 3"]:
    """Rows a, b, c in Å from a, b, c, alpha, beta, gamma; a along x, b in the plane of x and y."""
    cell = np.asarray(cell, dtype=np.float64)
    lengths, angles = cell[..., :3], np.radians(cell[..., 3:])
    cosines, sin_gamma = np.cos(angles), np.sin(angles[..., 2])
    # exactly 0 for a right angle, so that a cube is a cube
    cosines = np.where(np.abs(cosines) < 1e-15, 0.0, cosines)
    x = cosines[..., 1]
    y = (cosines[..., 0] - cosines[..., 1] * cosines[..., 2]) / sin_gamma
    z = np.sqrt(np.clip(1.0 - x**2 - y**2, 0.0, None))
    zero, one = np.zeros_like(x), np.ones_like(x)
    unit = np.stack([one, zero, zero, cosines[..., 2], sin_gamma, zero, x, y, z], -1)
    return unit.reshape(*cell.shape[:-1], 3, 3) * lengths[..., None]


def parameters(lattice: Float64[np.ndarray, "*n 3 3"]) -> Float64[np.ndarray, "*n 6"]:
    """a, b, c in Å and alpha, beta, gamma in degrees of rows a, b, c."""
    lengths = np.linalg.norm(lattice, axis=-1)
    unit = lattice / lengths[..., None]
    pairs = [(unit[..., i, :] * unit[..., j, :]).sum(-1) for i, j in ((1, 2), (0, 2), (0, 1))]
    angles = np.degrees(np.arccos(np.clip(np.stack(pairs, -1), -1.0, 1.0)))
    return np.concatenate([lengths, angles], -1)


def to_vector(lattice: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 6"]:
    """``1/2 log(L L^T)`` as six numbers (xx, yy, zz, xy, xz, yz)."""
    values, axes = torch.linalg.eigh(lattice @ lattice.mT)
    log_s = (axes * (0.5 * values.log())[..., None, :]) @ axes.mT
    return log_s[..., _ROWS, _COLUMNS] * log_s.new_tensor(_WEIGHTS)


def to_lattice(vector: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """The symmetric lattice ``exp(log S)`` that `to_vector` takes to ``vector``."""
    return torch.linalg.matrix_exp(symmetric(vector))


def metric(vector: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """``G = L L^T``, Å²."""
    return torch.linalg.matrix_exp(2.0 * symmetric(vector))


def symmetric(vector: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 3 3"]:
    """The matrix ``log S`` whose entries ``vector`` has."""
    entries = vector / vector.new_tensor(_WEIGHTS)
    xx, yy, zz, xy, xz, yz = entries.unbind(-1)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))


def log_volume(vector: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """``log(volume)``, volume in Å³."""
    return vector[..., :3].sum(-1)
