"""Likelihoods: the variational bound, the losses made of it, and the density along the flow.

Everything is in nats per sample, summed over its elements; `bits_per_dim` converts. Two routes lead to
``log p(x0)``: a bound from the chain of Gaussian steps (`variational_bound`, `continuous_bound`), which holds for
the stochastic sampler, and the exact density of the probability flow (`log_likelihood`), which is the deterministic
sampler's. Either may be called the model's likelihood; they agree only if the denoiser is exact.
"""

from diffusion_core.likelihood.bound import (
    Bound,
    Rows,
    Steps,
    continuous_bound,
    continuous_term,
    hybrid_loss,
    interpolated_log_variance,
    prior_kl,
    uniform_rows,
    variational_bound,
    vlb_loss,
)
from diffusion_core.likelihood.decode import Decoder, bits_per_dim, discretised, normal, normal_kl
from diffusion_core.likelihood.density import (
    Divergence,
    Likelihood,
    exact_divergence,
    hutchinson,
    log_likelihood,
    probes,
)

__all__ = [
    "Bound",
    "Decoder",
    "Divergence",
    "Likelihood",
    "Rows",
    "Steps",
    "bits_per_dim",
    "continuous_bound",
    "continuous_term",
    "discretised",
    "exact_divergence",
    "hutchinson",
    "hybrid_loss",
    "interpolated_log_variance",
    "log_likelihood",
    "normal",
    "normal_kl",
    "prior_kl",
    "probes",
    "uniform_rows",
    "variational_bound",
    "vlb_loss",
]
