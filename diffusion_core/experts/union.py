"""Mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate, Expert
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.batched import batched, with_condition
from diffusion_core.experts.factors import has_log_density, log_density
from diffusion_core.process import Process
from diffusion_core.process.gaussian import Gaussian


@dataclass(frozen=True)
class Union(Denoiser):
    """``sum_k p_k(x)``, a mixture with equal shares. Written with ``|``.

    Its estimate is the mean of the parts' estimates (of their probabilities, for classes), weighted by how likely each
    makes ``x_t``. Where every part knows
    its log-density, by that. Where one does not, by how likely each made the path so far:

        log share_k += log N(x_s; a x_t + b x0_hat_k, std^2),

    the ancestral kernel of part k. That holds for steps that draw the ancestral noise (`ddpm`), from pure noise
    on, without correctors.

    Source: the shares from the path follow SuperDiff, Skreta et al. 2024 (arXiv 2412.17762), here in discrete time: by
    Bayes' rule ``p_k(x_s) = p_k(x_t) p_k(x_s | x_t) / q(x_t | x_s)``, whose denominator all parts share.
    """

    parts: tuple[Denoiser, ...]

    def __post_init__(self) -> None:
        if any(part.process != self.parts[0].process for part in self.parts):
            raise WorkbenchError(
                f"mixture of experts: got the processes {[str(part.process) for part in self.parts]}; expected one: "
                "experts must share the schedule (and normalizer) they were trained with."
            )

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.parts[0].process

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        evaluate_all = batched([with_condition(part, cond) for part in self.parts], times)
        mix = self.process.mix(times)
        log_shares = self._from_densities(times, cond) if self.has_log_density else self._from_the_path(times)

        def evaluate(x: Any, i: int) -> Any:
            estimates = evaluate_all(x, i)
            return mix(x, estimates, log_shares(x, estimates, i).softmax(1), i)

        return evaluate

    @property
    def has_log_density(self) -> bool:
        return all(has_log_density(part) for part in self.parts)

    def bind_log_density(self, times: Any, cond: Any = None) -> Callable[[Any, int], Tensor]:
        """``log sum_k p_k(x_t)``."""
        terms = [log_density(part, times, cond) for part in self.parts]
        return lambda x, i: torch.stack([term(x, i) for term in terms], 1).logsumexp(1)

    def _from_densities(self, times: Any, cond: Any) -> Callable[[Any, Sequence[Any], int], Tensor]:
        terms = [log_density(part, times, cond) for part in self.parts]
        return lambda x, estimates, i: torch.stack([term(x, i) for term in terms], 1)

    def _from_the_path(self, times: Any) -> Callable[[Any, Sequence[Any], int], Tensor]:
        if not isinstance(self.process, Gaussian) or times.ndim > 1:
            raise WorkbenchError(
                f"mixture of experts: got parts without log-densities on {self.process}; expected a Gaussian field "
                "with one time for all samples."
            )
        a, b, std = (value.tolist() for value in self.process.posterior(times[:-1], times[1:]))
        last: tuple[Tensor, Sequence[Tensor]] | None = None
        log_share: Tensor | None = None

        def log_shares(x: Tensor, estimates: Sequence[Tensor], i: int) -> Tensor:
            nonlocal last, log_share
            if i == 0 or log_share is None or last is None:
                log_share = x.new_zeros(x.shape[0], len(estimates))
            else:
                x_t, x0_hats = last
                missed = [(x - a[i - 1] * x_t - b[i - 1] * x0_hat).flatten(1).square().sum(1) for x0_hat in x0_hats]
                if std[i - 1] > 0.0:
                    log_share = log_share - torch.stack(missed, 1) / (2.0 * std[i - 1] ** 2)
            last = (x, estimates)
            return log_share

        return log_shares


def union(a: Expert, b: Expert) -> Union:
    """``p_a + p_b``, both with share one half (a third each for ``a | b | c``)."""
    parts: list[Denoiser] = []
    for expert in (a, b):
        if not isinstance(expert, Denoiser):
            raise WorkbenchError(
                f"mixture of experts: got {type(expert).__name__}; expected denoisers: multiply an Energy or Known "
                "into one."
            )
        parts += expert.parts if isinstance(expert, Union) else [expert]
    return Union(tuple(parts))
