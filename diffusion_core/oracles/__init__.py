"""Closed-form worlds: data whose every noised marginal, score, posterior and flow is known exactly.

They are denoisers like any other, so every schedule, solver and composition is tested against the truth rather than
against another implementation. All arithmetic is float64.
"""

from diffusion_core.oracles.categorical import CategoricalTable
from diffusion_core.oracles.gaussian import GaussianData, GaussianMixture
from diffusion_core.oracles.manifold import RotationMixture, WrappedMixture

__all__ = ["CategoricalTable", "GaussianData", "GaussianMixture", "RotationMixture", "WrappedMixture"]
