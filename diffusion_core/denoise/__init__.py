"""The denoiser: the only thing a solver calls.

A solver wants ``x0_hat(x_t, t)`` and nothing else. A `Denoiser` gives it for a whole list of times at once:
``bind`` does everything that depends on the times alone (conversion coefficients, embeddings of time, checks,
which experts of a product are active), once, in float64, before the loop. What is left for the loop is the
network and at most two multiplications.
"""

from diffusion_core.denoise.expert import Denoiser, Evaluate, Expert
from diffusion_core.denoise.network import NetworkDenoiser, WithVariance

__all__ = ["Denoiser", "Evaluate", "Expert", "NetworkDenoiser", "WithVariance"]
