"""Solvers: pure functions ``(schedule, grid) -> Table``. The tree by what a step costs and remembers."""

from diffusion_core.solvers.jumps import renoise, repaint, restart
from diffusion_core.solvers.langevin import annealed_langevin, corrected, langevin, pc
from diffusion_core.solvers.multistep import (
    deis,
    dpm_solver_2m,
    dpm_solver_3m,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    dpm_solver_pp_3m,
    dpm_solver_pp_3m_sde,
    lms,
)
from diffusion_core.solvers.predictor_corrector import sa_solver, unipc
from diffusion_core.solvers.single import consistency, ddim, ddpm, euler, flow_coefficients
from diffusion_core.solvers.staged import dpm_solver_2s, dpm_solver_3s, dpm_solver_pp_2s, dpm_solver_pp_3s, edm, heun
from diffusion_core.solvers.table import Learned, Row, Solver, Table

__all__ = [
    "Learned",
    "Row",
    "Solver",
    "Table",
    "annealed_langevin",
    "consistency",
    "corrected",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver_2m",
    "dpm_solver_2s",
    "dpm_solver_3m",
    "dpm_solver_3s",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_2m_sde",
    "dpm_solver_pp_2s",
    "dpm_solver_pp_3m",
    "dpm_solver_pp_3m_sde",
    "dpm_solver_pp_3s",
    "edm",
    "euler",
    "flow_coefficients",
    "heun",
    "langevin",
    "lms",
    "pc",
    "renoise",
    "repaint",
    "restart",
    "sa_solver",
    "unipc",
]
