"""The mathematics of diffusion and the one way to train, save, load and sample. Knows no domain.

Notation, everywhere in the project: ``t`` in [0, 1], 0 is data and 1 is noise; a step goes from ``t`` to
``s < t``; ``x_t = alpha_t x0 + sigma_t eps``; ``log_snr = log(alpha_t^2 / sigma_t^2)``.
"""
