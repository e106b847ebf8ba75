"""What the network predicts: noise, image or v, on a schedule that ends without signal."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from diffusion_core import grid
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import to_x0
from diffusion_core.report import ACCENT, INK, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

STEPS = (2, 4, 8, 16)
INSIDE = 0.999
"""Where eps can start: the last of a thousand times before the signal is gone."""
COLOURS = {"eps": WARM, "eps, clipped": "#dda77f", "x0": INK, "v": ACCENT}


def how(steps: int, start: float = 1.0) -> Sampling:
    """DDIM from ``start``."""
    return Sampling(partial(ddim, eta=0.0), steps, partial(grid.uniform, start=start))


def refusal(model: Diffusion) -> str:
    """What the core says when the model is asked for an estimate at t = 1; empty: nothing, it gives one."""
    try:
        model.denoiser.bind(how(STEPS[0]).table(model.denoiser.schedule).times)
    except WorkbenchError as error:
        return str(error)
    return ""


def clipped(model: Diffusion, bound: float) -> Diffusion:
    """The same model, its estimates of the image kept in [-bound, bound]."""
    twin = object.__new__(Diffusion)
    torch.nn.Module.__init__(twin)
    old = model.denoiser
    state = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    vars(twin).update(state)
    twin.denoiser = NetworkDenoiser(old.network, old.schedule, old.prediction, bound)
    return twin


def experiment(lab: Lab) -> Report:
    """FD by steps of three networks that differ in what they predict."""
    nets = {
        "eps": lab.train("system=predictions", "prediction=eps", f"grid.start={INSIDE}"),
        "x0": lab.train("system=predictions", "prediction=x0"),
        "v": lab.train("system=predictions"),
    }
    return Report()  # type: ignore[call-arg]
