"""The denoiser: the only thing a solver calls.

A solver wants ``x0_hat(x_t, t)`` and nothing else. A `Denoiser` gives it for a whole list of times at once:
``bind`` does everything that depends on the times alone (conversion coefficients, embeddings of time, checks,
and later: which guidance branches are active), once, in float64, before the loop. What is left for the loop
is the network and at most two multiplications.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from diffusion_core.predict import Prediction, align, mixture, to_x0
from diffusion_core.schedule import Schedule, Times

Evaluate = Callable[[Tensor, int], Tensor]
"""``evaluate(x, i) -> x0_hat``: the expected clean sample given ``x`` at the i-th bound time."""


class Denoiser(ABC):
    """The posterior mean ``E[x0 | x_t]`` under a schedule."""

    schedule: Schedule

    @abstractmethod
    def bind(self, times: Float64[Tensor, " n"], cond: Any = None) -> Evaluate:
        """Prepare evaluations at ``times``.

        Args:
            times: (n,) float64, in any order, repeats allowed.
            cond: what the sample is conditioned on, as the denoiser understands it; batch axis first.

        Returns:
            ``evaluate(x, i)``: (batch, ...) -> (batch, ...), for i in 0..n-1.

        Raises:
            WorkbenchError: at one of the times x0 cannot be recovered.
        """


class NetworkDenoiser(nn.Module, Denoiser):
    """A network, what it predicts, and the schedule under which it was trained.

    Args:
        network: ``network(x_t, t, cond) -> prediction`` with x_t (batch, ...), t (batch,) float32 in [0, 1].
        schedule: noise schedule.
        prediction: what the network's output means.
        clip: bound on ``|x0_hat|``; None leaves it free. Data must be normalised into this range.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, prediction: Prediction, clip: float | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.clip = clip

    def forward(self, x_t: Tensor, t: Times, cond: Any = None) -> Tensor:
        """The raw prediction at per-sample times ``t`` (batch,), as trained."""
        return self.network(x_t, t.to(x_t.dtype), cond)

    def target(self, x0: Tensor, noise: Tensor, t: Times) -> Tensor:
        """What `forward` should have returned: ``k_x0 x0 + k_eps noise``."""
        k_x0, k_eps = (align(k, x0) for k in mixture(self.prediction, self.schedule, t))
        return k_x0 * x0 + k_eps * noise

    def bind(self, times: Float64[Tensor, " n"], cond: Any = None) -> Evaluate:
        c_x, c_p = to_x0(self.prediction, self.schedule, times)
        parameter = next(self.network.parameters(), times)
        # the network's own precision, at least float32 (a float64 model is evaluated in float64)
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        t = times.to(parameter.device, dtype)
        # factors as 0-dim tensors: see sample.py
        x_factor, p_factor = c_x.to(dtype).unbind(), c_p.tolist()
        network, clip, is_x0 = self.network, self.clip, self.prediction == "x0"

        @lru_cache(maxsize=1)
        def per_sample(batch: int) -> tuple[Tensor, ...]:
            # the same views at every step of a run: made at its first
            return t[:, None].expand(-1, batch).unbind()

        def evaluate(x: Tensor, i: int) -> Tensor:
            x0_hat = network(x, per_sample(x.shape[0])[i], cond)
            if not is_x0:
                x0_hat = (x * x_factor[i]).add_(x0_hat, alpha=p_factor[i])
            return x0_hat if clip is None else x0_hat.clamp(-clip, clip)

        return evaluate
