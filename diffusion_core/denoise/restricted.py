"""A hard constraint on classes: what may not be never is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from diffusion_core.denoise.expert import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.process import Process


@dataclass(frozen=True, eq=False)
class Restricted(Denoiser):
    """A denoiser of several fields times the indicator that every entry of a categorical field is of ``allowed``.

    The logits of the other classes are -inf, so no sample ever violates it. Each entry is restricted for itself: exact
    where entries are independent and for the last masked one (its conditional); before that, the denoiser averages over
    what the other masked entries could be without the restriction, as in a product of class fields.

    Args:
        denoiser: of a `Joint` process.
        allowed: field -> (classes,) or (batch, classes), True for what may be.

    Raises:
        WorkbenchError: nothing is allowed.
    """

    denoiser: Denoiser
    allowed: Mapping[str, Bool[Tensor, "..."]]

    def __post_init__(self) -> None:
        for name, classes in self.allowed.items():
            if not bool(classes.any(-1).all()):
                raise WorkbenchError(f"restriction of {name}: got no allowed class; expected at least one.")

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        evaluate = self.denoiser.bind(times, cond)

        def restricted(x: Any, i: int) -> Any:
            estimate = dict(evaluate(x, i))
            for name, classes in self.allowed.items():
                logits = estimate[name]
                own = classes.to(logits.device)
                own = own if own.ndim == 1 else own.reshape(len(own), *[1] * (logits.ndim - 2), own.shape[-1])
                estimate[name] = logits.masked_fill(~own, -torch.inf)
            return estimate

        return restricted
