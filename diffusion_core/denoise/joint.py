"""One network over a state of several fields, each with its own process, and its training loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws, Weighting, simple, uniform_times
from diffusion_core.predict import Prediction, align, factor, mixture, to_x0
from diffusion_core.process import Process
from diffusion_core.process.categorical import Categorical
from diffusion_core.process.categorical.kernel import trailing
from diffusion_core.process.categorical.reverse import log_x0
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.process.so3 import SO3
from diffusion_core.process.torus import ScoreScale, Torus
from diffusion_core.schedule import Times


class Head(ABC):
    """What the network's output for one field means, and what it costs to be wrong about it."""

    process: Process

    @abstractmethod
    def estimate(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        """``estimate(output, x_t, i)`` at the i-th of ``times`` (n, *extra)."""

    @abstractmethod
    def loss(self, output: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, t: Times) -> Tensor:
        """The loss of every entry, (batch, ...), at times ``t`` (batch,)."""


@dataclass(frozen=True)
class Regression(Head):
    """A Gaussian field whose output is a ``prediction`` of the table in ``predict``."""

    process: Gaussian
    prediction: Prediction = "x0"
    weighting: Weighting = simple

    def estimate(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        c_x, c_p = to_x0(self.prediction, self.process.schedule, times)
        return lambda output, x, i: factor(c_x[i], x) * x + factor(c_p[i], x) * output

    def loss(self, output: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, t: Times) -> Tensor:
        k_x0, k_eps = (align(k, x0) for k in mixture(self.prediction, self.process.schedule, t))
        weight = align(self.weighting(self.prediction, self.process.schedule, t), x0)
        return weight * (output - k_x0 * x0 - k_eps * noise) ** 2


@dataclass(frozen=True)
class Tangent(Head):
    """A field on a torus or of rotations whose output is a scaled score."""

    process: Torus | SO3
    scale: ScoreScale = "norm"

    def estimate(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        factors = self.process.output_scale(times, self.scale)
        return lambda output, x, i: factor(factors[i], output) * output

    def loss(self, output: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, t: Times) -> Tensor:
        return (output - self.process.target(x0, x_t, t, self.scale)) ** 2


@dataclass(frozen=True)
class Logits(Head):
    """A categorical field whose output is the logits of ``p(x0 | x_t)``; its loss is the cross-entropy."""

    process: Categorical

    def estimate(self, times: Times) -> Callable[[Tensor, Tensor, int], Tensor]:
        return lambda output, x, i: output

    def loss(self, output: Tensor, x0: Tensor, x_t: Tensor, noise: Tensor, t: Times) -> Tensor:
        likelihood = self.process.kernel(t, torch.zeros_like(t)).column(x_t)
        return -log_x0(likelihood, output).gather(-1, x0[..., None])[..., 0]


class JointDenoiser(nn.Module, Denoiser):
    """A network that sees all fields at once and answers for each.

    Args:
        network: ``network(x_t, t, cond) -> outputs``: dicts by field of x_t (batch, ...), of times (batch,) float32 in
            [0, 1] and of outputs as the heads want them.
        heads: field -> what its output means.
    """

    def __init__(self, network: nn.Module, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.network = network
        self.heads = dict(heads)
        self.process = Joint({name: head.process for name, head in heads.items()})

    def forward(self, x_t: Mapping[str, Tensor], t: Mapping[str, Times], cond: Any = None) -> dict[str, Tensor]:
        """The raw outputs at per-sample times ``t``, as trained."""
        outputs = self.network(x_t, {name: time.to(torch.float32) for name, time in t.items()}, cond)
        if outputs.keys() != self.heads.keys():
            raise WorkbenchError(f"joint network: got outputs {sorted(outputs)}; expected {sorted(self.heads)}.")
        return outputs

    def bind(self, times: Mapping[str, Float64[Tensor, "n *extra"]], cond: Any = None) -> Evaluate:
        estimates = {name: head.estimate(times[name]) for name, head in self.heads.items()}
        # one time for all samples is a batch axis of 1
        columns = {name: time[:, None] if time.ndim == 1 else time for name, time in times.items()}
        shapes = {name: time.shape[2:] for name, time in columns.items()}

        def evaluate(x: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
            t = {name: columns[name][i].to(x[name].device).expand(len(x[name]), *own) for name, own in shapes.items()}
            outputs = self(x, t, cond)
            return {name: estimate(outputs[name], x[name], i) for name, estimate in estimates.items()}

        return evaluate


def joint_loss(
    denoiser: JointDenoiser,
    x0: Mapping[str, Tensor],
    cond: Any,
    draws: Draws,
    times: Callable[[Draws, int], Float64[Tensor, " batch"]] = uniform_times,
    weights: Mapping[str, float] | None = None,
    masks: Mapping[str, Bool[Tensor, "batch ..."]] | None = None,
    known: Mapping[str, Bool[Tensor, "batch ..."]] | None = None,
    together: bool = True,
) -> Float[Tensor, " batch"]:
    """The weighted sum of the fields' losses, each averaged over its entries that exist.

    Args:
        x0: clean data by field, (batch, ...).
        times: how training times are drawn.
        weights: of the fields; None: 1 each.
        masks: which entries of a padded field exist; leading axes of its loss. Fields left out are whole.
        known: which entries the network is shown clean, leading axes of the field; they do not count in the average.
            For sampling with `Known(..., mode="clean")`.
        together: all fields of a sample have one time, as on equal grids; False: a time for each field.

    Raises:
        WorkbenchError: weights, masks or known entries of unknown fields.
    """
    weights, masks, known, batch = weights or {}, masks or {}, known or {}, len(next(iter(x0.values())))
    unknown = (weights.keys() | masks.keys() | known.keys()) - denoiser.heads.keys()
    if unknown:
        raise WorkbenchError(f"joint loss: got fields {sorted(unknown)}; expected some of {sorted(denoiser.heads)}.")
    one = times(draws, batch)
    t = {name: one if together else times(draws, batch) for name in denoiser.heads}
    noise = denoiser.process.noise(x0, draws)
    x_t = denoiser.process.corrupt(x0, t, noise)
    for name, clean in known.items():
        x_t[name] = torch.where(trailing(clean, x0[name].ndim), x0[name], x_t[name])
    outputs = denoiser(x_t, t, cond)
    total = torch.zeros(batch, dtype=torch.float32, device=one.device)
    for name, head in denoiser.heads.items():
        entries = head.loss(outputs[name], x0[name], x_t[name], noise[name], t[name])
        mask = masks.get(name)
        exists = torch.ones_like(entries) if mask is None else align(mask, entries).expand_as(entries)
        if name in known:
            exists = exists * ~trailing(known[name], entries.ndim)
        mean = (entries * exists).flatten(1).sum(1) / exists.flatten(1).sum(1).clamp(min=1.0)
        total = total + weights.get(name, 1.0) * mean.to(total.device, total.dtype)
    return total
