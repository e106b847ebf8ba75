"""Solvers: pure functions ``(schedule, grid) -> Table``. The tree by what a step costs and remembers."""

from diffusion_core.solvers.multistep import dpm_solver_pp_2m
from diffusion_core.solvers.single import consistency, ddim, ddpm, euler, flow_coefficients
from diffusion_core.solvers.staged import heun
from diffusion_core.solvers.table import Learned, Row, Solver, Table

__all__ = [
    "Learned",
    "Row",
    "Solver",
    "Table",
    "consistency",
    "ddim",
    "ddpm",
    "dpm_solver_pp_2m",
    "euler",
    "flow_coefficients",
    "heun",
]
