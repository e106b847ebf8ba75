"""Noise schedules: how much signal and how much noise there is at each time.

A schedule is a pair of functions of time ``t`` in [0, 1] (0 is data, 1 is noise),

    x_t = alpha_t x0 + sigma_t eps,        log_snr(t) = log(alpha_t^2 / sigma_t^2),

together with their derivatives and the inverse of ``log_snr``. Everything is computed in float64: tables
are built once, in full precision, and only their entries meet float32 data.

A schedule knows nothing of steps. A choice of times is a grid (``diffusion_core.grid``), and what a solver
does between two of them is a table (``diffusion_core.solvers``).
"""

from diffusion_core.schedule.betas import (
    DiscreteBetas,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
)
from diffusion_core.schedule.change import Range, Shifted, ZeroTerminal
from diffusion_core.schedule.definition import Schedule, Times, VariancePreserving
from diffusion_core.schedule.formula import (
    Cosine,
    GeometricVarianceExploding,
    Laplace,
    Linear,
    RectifiedFlow,
    Sigmoid,
    SubVariancePreserving,
    VarianceExploding,
)
from diffusion_core.schedule.learned import LearnedLogSnr

__all__ = [
    "Cosine",
    "DiscreteBetas",
    "GeometricVarianceExploding",
    "Laplace",
    "LearnedLogSnr",
    "Linear",
    "Range",
    "RectifiedFlow",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "SubVariancePreserving",
    "Times",
    "VarianceExploding",
    "VariancePreserving",
    "ZeroTerminal",
    "cosine_betas",
    "linear_betas",
    "scaled_linear_betas",
    "sigmoid_betas",
]
