"""Training losses: how far a prediction is from its target, weighted by noise level."""

from diffusion_core.draws import Draws
from diffusion_core.loss.denoising import denoising_loss, importance_loss
from diffusion_core.loss.weighting import (
    LearnedWeights,
    Weighting,
    edm,
    min_snr,
    p2,
    sigmoid,
    simple,
    snr,
)
from diffusion_core.times import uniform_times

__all__ = [
    "Draws",
    "LearnedWeights",
    "Weighting",
    "denoising_loss",
    "edm",
    "importance_loss",
    "min_snr",
    "p2",
    "sigmoid",
    "simple",
    "snr",
    "uniform_times",
]
