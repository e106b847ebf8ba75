"""A network over one Gaussian field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from diffusion_core.denoise.expert import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import F, Prediction, align, factor, input_scale, mixture, noise_label, to_x0
from diffusion_core.process import Process
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times
from diffusion_core.solvers.table import Learned


class _Views:
    """A time for every sample of a batch, at each of the bound times: the same views at every step of every run."""

    def __init__(self, told: Tensor) -> None:
        self.told = told
        self.kept: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def __call__(self, batch: int) -> tuple[Tensor, ...]:
        # read once, written once: a run in another thread may keep another batch's
        of, views = self.kept
        if of != batch:
            views = self.told.expand(-1, batch, *self.told.shape[2:]).unbind()
            self.kept = (batch, views)
        return views


class _Prepared(NamedTuple):
    """What a network denoiser makes of bound times: conversion, what the network is told, its views by batch."""

    times: Tensor
    c_x: Tensor
    c_p: Tensor
    x_factor: tuple[Tensor, ...]
    p_factor: list[float]
    told: Tensor
    scale: Tensor | None
    views: _Views


class NetworkDenoiser(nn.Module, Denoiser):
    """A network, what it predicts, and the schedule under which it was trained.

    Args:
        network: ``network(x_t, t, cond) -> prediction`` with x_t (batch, ...), t (batch,) float32 in [0, 1]; for
            the prediction F, x_t of unit variance and EDM's noise label for t.
        schedule: noise schedule.
        prediction: what the network's output means.
        clip: bound on ``|x0_hat|``; None leaves it free. Data must be normalised into this range.
        variance_axis: axis along which the output has two halves, the prediction and the variance's
            interpolation in [-1, 1] (Nichol & Dhariwal 2021, section 3.1, arXiv 2102.09672); None: no such half.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Prediction,
        clip: float | None = None,
        variance_axis: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.process = Gaussian(schedule)
        self.prediction: Prediction = prediction
        self.clip = clip
        self.variance_axis = variance_axis
        self._kept: _Prepared | None = None

    def forward(self, x_t: Tensor, t: Times, cond: Any = None) -> Tensor:
        """The raw prediction at per-sample times ``t`` (batch,), as trained."""
        return self.outputs(x_t, t, cond)[0]

    def outputs(self, x_t: Tensor, t: Times, cond: Any = None) -> tuple[Tensor, Tensor | None]:
        """The raw prediction and the variance's ``fraction`` in [0, 1] (None where it is not learned)."""
        if self._scaled:
            x_t = align(input_scale(self.prediction, self.schedule, t), x_t) * x_t
        label = noise_label(self.prediction, self.schedule, t)
        return self._halves(self.network(x_t, label.to(x_t.dtype), cond))

    def target(self, x0: Tensor, noise: Tensor, t: Times) -> Tensor:
        """What `forward` should have returned: ``k_x0 x0 + k_eps noise``."""
        k_x0, k_eps = (align(k, x0) for k in mixture(self.prediction, self.schedule, t))
        return k_x0 * x0 + k_eps * noise

    def x0_hat(self, x_t: Tensor, t: Times, cond: Any = None) -> Tensor:
        """``E[x0 | x_t]`` at per-sample times ``t`` (batch,), with gradients: for losses."""
        c_x, c_p = (align(c, x_t) for c in to_x0(self.prediction, self.schedule, t))
        return self._clipped(c_x * x_t + c_p * self(x_t, t, cond))

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        evaluate = self._bind(times, cond)
        return lambda x, i: evaluate(x, i)[0]

    def with_variance(self) -> WithVariance:
        """The same denoiser, giving its learned variance along: for ``ddpm(..., variance="learned")``."""
        if self.variance_axis is None:
            raise WorkbenchError(
                "denoiser: got variance_axis=None, no learned variance; expected an axis of the output."
            )
        return WithVariance(self)

    def bind_raw(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> tuple[Evaluate, Times, Times] | None:
        """The network's own ``p`` in place of ``x0_hat = c_x x + c_p p``: ``(evaluate, c_x, c_p)``.

        None where x0_hat is no such combination (it is clipped), or where nothing would be gained.
        """
        if self.clip is not None or self.prediction == "x0" or times.ndim > 1:
            return None
        at, network, outputs = self._prepared(times), self.network, self._look(times, cond)
        if at.scale is not None or self.variance_axis is not None:
            return (lambda x, i: outputs(x, i)[0]), at.c_x, at.c_p
        views = at.views
        # nothing but the network: in a small one every call around it shows
        return (lambda x, i: network(x, views(x.shape[0])[i], cond)), at.c_x, at.c_p

    def _bind(
        self, times: Float64[Tensor, "n *extra"], cond: Any
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor | None]]:
        at, look = self._prepared(times), self._look(times, cond)
        is_x0, one_time, x_factor, p_factor = self.prediction == "x0", times.ndim == 1, at.x_factor, at.p_factor

        def evaluate(x: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
            x0_hat, fraction = look(x, i)
            if not is_x0:
                if one_time:
                    x0_hat = (x * x_factor[i]).add_(x0_hat, alpha=p_factor[i])
                else:
                    x0_hat = align(at.c_x[i], x) * x + align(at.c_p[i], x) * x0_hat
            return self._clipped(x0_hat), fraction

        return evaluate

    def _look(
        self, times: Float64[Tensor, "n *extra"], cond: Any
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor | None]]:
        """The network's output at the i-th of ``times``: prediction and fraction."""
        at, network, halved = self._prepared(times), self.network, self.variance_axis is not None
        scale, views = at.scale, at.views

        def look(x: Tensor, i: int) -> tuple[Tensor, Tensor | None]:
            output = network(x if scale is None else factor(scale[i], x) * x, views(x.shape[0])[i], cond)
            return self._halves(output) if halved else (output, None)

        return look

    def _prepared(self, times: Float64[Tensor, "n *extra"]) -> _Prepared:
        """All that depends on the times alone; kept for the next run of the same plan."""
        parameter = next(self.network.parameters(), times)
        # the network's own precision, at least float32 (a float64 model is evaluated in float64)
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        kept = self._kept
        same = kept is not None and kept.times is times and kept.told.dtype == dtype
        # a schedule that learns changes under the same times
        if (
            kept is not None
            and same
            and kept.told.device == parameter.device
            and not isinstance(self.schedule, nn.Module)
        ):
            return kept
        c_x, c_p = to_x0(self.prediction, self.schedule, times)
        told = noise_label(self.prediction, self.schedule, times).to(parameter.device, dtype)
        scale = input_scale(self.prediction, self.schedule, times).to(dtype) if self._scaled else None
        one_time = times.ndim == 1
        # as a factor of a tensor a 0-dim tensor, as one inside of an operation a number: see solvers/table.py
        factors = (c_x.to(dtype).unbind(), c_p.tolist()) if one_time else ((), [])
        self._kept = _Prepared(times, c_x, c_p, *factors, told, scale, _Views(told[:, None] if one_time else told))
        return self._kept

    @property
    def _scaled(self) -> bool:
        return self.prediction == "F" or isinstance(self.prediction, F)

    def _halves(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.variance_axis is None:
            return output, None
        prediction, interpolation = output.chunk(2, self.variance_axis)
        return prediction, 0.5 * (interpolation + 1.0)

    def _clipped(self, x0_hat: Tensor) -> Tensor:
        return x0_hat if self.clip is None else x0_hat.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class WithVariance(Denoiser):
    """A network denoiser whose estimates bring their learned variance along."""

    denoiser: NetworkDenoiser

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        evaluate = self.denoiser._bind(times, cond)
        return lambda x, i: Learned(*evaluate(x, i))  # type: ignore[arg-type]
