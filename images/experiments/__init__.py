"""One module for each system: its row, against its own baseline, on the same data and budget, and its figure.

Every module has one function, ``experiment(lab: Lab) -> Report``.
"""

from __future__ import annotations

EXPERIMENTS = (
    "nonequilibrium",
    "ncsn",
    "ddpm",
    "improved_ddpm",
    "adm",
    "classifier_free",
    "ddim",
    "predictions",
    "zero_terminal",
    "cascade",
    "latent",
    "dit",
    "rectified_flow",
    "consistency",
    "progressive",
    "denoising_gan",
    "diffusion_classifier",
    "autoregressive",
)
"""In the order of the gallery."""
