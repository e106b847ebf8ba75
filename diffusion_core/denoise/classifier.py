"""A network that classifies: the denoiser of a categorical process."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.process.categorical.process import Categorical


class Classifier(nn.Module, Denoiser):
    """A network whose outputs are the logits of ``p(x0 | x_t)``.

    Nothing is asked of the logits where ``x_t`` leaves no choice: losses and solvers normalise them over the classes
    that can have led to ``x_t`` (`log_x0`).

    Args:
        network: ``network(x_t, t, cond) -> logits`` with x_t (batch, ...) indices below ``process.states``, t (batch,)
            float32 in [0, 1] (or with the leading axes of x_t), logits (batch, ..., classes).
        process: the noising it is trained on.
    """

    process: Categorical

    def __init__(self, network: nn.Module, process: Categorical) -> None:
        super().__init__()
        self.network = network
        self.process = process

    def forward(
        self, x_t: Int64[Tensor, "batch ..."], t: Float64[Tensor, "batch ..."], cond: Any = None
    ) -> Float[Tensor, "batch ... k"]:
        """Logits at per-sample times ``t``."""
        return self.network(x_t, t.to(torch.float32), cond)

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        parameter = next(self.network.parameters(), times)
        t = times.to(parameter.device, torch.float32)
        shared, network = times.ndim == 1, self.network

        def evaluate(x: Tensor, i: int) -> Tensor:
            return network(x, t[i].expand(x.shape[0]) if shared else t[i], cond)

        return evaluate
