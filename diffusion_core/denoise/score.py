"""Networks that predict a score: the denoisers of the torus and of rotations, and their loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.loss import Draws, uniform_times
from diffusion_core.predict import align
from diffusion_core.process.so3 import SO3
from diffusion_core.process.torus import ScoreScale, Torus
from diffusion_core.schedule import Times


class ScoreNetwork(nn.Module, Denoiser):
    """A network on a manifold and the scale of its output: ``score = process.output_scale(t) network(x_t, t)``.

    Args:
        network: ``network(x_t, t, cond) -> output`` with t (batch,) in [0, 1]; on the torus of the shape of ``x_t``, on
            rotations (batch, ..., 3), a tangent in the body's frame.
        process: the manifold and its schedule.
        scale: ``"norm"`` for an output of unit variance at every sigma, ``"sigma"`` for ``sigma score``.
    """

    process: Torus | SO3

    def __init__(self, network: nn.Module, process: Torus | SO3, scale: ScoreScale = "norm") -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.scale: ScoreScale = scale

    def forward(self, x_t: Tensor, t: Times, cond: Any = None) -> Tensor:
        """The raw output at per-sample times ``t`` (batch,), as trained."""
        return self.network(x_t, t.to(x_t.dtype), cond)

    def target(self, x0: Tensor, x_t: Tensor, t: Times) -> Tensor:
        """What `forward` should have returned."""
        return self.process.target(x0, x_t, t, self.scale)

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        factors = self.process.output_scale(times, self.scale)
        parameter = next(self.network.parameters(), times)
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        t = times.to(parameter.device, dtype)
        one_time, network = times.ndim == 1, self.network
        numbers = factors.tolist() if one_time else []

        @lru_cache(maxsize=1)
        def per_sample(batch: int) -> tuple[Tensor, ...]:
            return (t[:, None] if one_time else t).expand(-1, batch, *t.shape[2:]).unbind()

        def evaluate(x: Tensor, i: int) -> Tensor:
            output = network(x, per_sample(x.shape[0])[i], cond)
            return output * (numbers[i] if one_time else align(factors[i], output))

        return evaluate


def score_loss(
    denoiser: ScoreNetwork,
    x0: Float[Tensor, "batch ..."],
    cond: Any,
    draws: Draws,
    times: Callable[[Draws, int], Float64[Tensor, " batch"]] = uniform_times,
) -> Float[Tensor, " batch"]:
    """``|network(x_t, t) - score(x_t | x0) / output_scale(t)|^2``, averaged over all axes but the batch.

    Source: Vincent 2011, denoising score matching; on the torus Jiao et al. 2023 (arXiv 2309.04475).
    """
    t = times(draws, x0.shape[0])
    x_t = denoiser.process.corrupt(x0, t, denoiser.process.noise(x0, draws))
    return ((denoiser(x_t, t, cond) - denoiser.target(x0, x_t, t)) ** 2).flatten(1).mean(1)
