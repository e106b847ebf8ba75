"""Grids with a time for every token: some are clean while others are still noise.

Such a grid has shape (n + 1, 1, tokens), the middle axis for the batch. A token may stand still for a row, and then
keeps its value. The solvers with one row a step take these grids as they are: `ddim`, `ddpm`, `dpm_solver_pp_2m`, ...
The denoiser is given times of shape (batch, tokens), so the network must have been trained on such.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid, check_grid

TokenGrid = Float64[Tensor, "rows 1 tokens"]


def pyramid(grid: Grid, tokens: int, delay: int = 1) -> TokenGrid:
    """Every token goes down ``grid``, each ``delay`` rows after the one before it: the past is clear before the future.

    ``delay = 0`` denoises all together, ``delay = len(grid) - 1`` one after another.

    Args:
        grid: falling times of one token, (n + 1,).
        tokens: how many.
        delay: rows.

    Raises:
        WorkbenchError: not such a grid, or numbers out of range.

    Source: Chen et al. 2024, "Diffusion forcing", section 3 (arXiv 2407.01392).
    """
    n = _falling(grid) - 1
    if tokens < 1 or not 0 <= delay <= n:
        raise WorkbenchError(f"pyramid: got tokens={tokens}, delay={delay}; expected tokens >= 1, 0 <= delay <= {n}.")
    rows = torch.arange(n + delay * (tokens - 1) + 1)[:, None]
    place = (rows - delay * torch.arange(tokens)).clamp(0, n)
    return grid[place][:, None]


def staircase(grid: Grid, tokens: int) -> TokenGrid:
    """One turn of a stream: token k comes in at level k + 1 of ``tokens`` and goes out at level k.

    The first token leaves clean and is executed; all others move up by one place, and a token of pure noise is put
    behind them: the next turn has the same grid.

    Args:
        grid: falling times of a token's whole way, (n + 1,), with n a multiple of ``tokens``.
        tokens: in the buffer.

    Raises:
        WorkbenchError: not such a grid.

    Source: Hoeg et al. 2024, "Streaming diffusion policy" (arXiv 2406.04806).
    """
    n = _falling(grid) - 1
    if tokens < 1 or n % tokens:
        raise WorkbenchError(f"staircase: got {n} steps for {tokens} tokens; expected a multiple of the tokens.")
    share = n // tokens
    entry = n - share * torch.arange(1, tokens + 1)
    return grid[entry + torch.arange(share + 1)[:, None]][:, None]


def _falling(grid: Grid) -> int:
    check_grid(grid)
    if grid.ndim > 1 or bool(grid[-1] > grid[0]):
        raise WorkbenchError(f"token grid: got a grid of shape {tuple(grid.shape)}; expected one falling time per row.")
    return len(grid)
