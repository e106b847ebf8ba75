"""The learned prior of single moves."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import bind, build, table, typed
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Weighting, denoising_loss, simple
from diffusion_core.normalize import MinMax
from diffusion_core.predict import PREDICTIONS
from diffusion_core.solvers import Table
from envs.stacking import BLOCKS, REACH, STATE, WIDTH
from planning.stacking.config import BlocksConfig


class MovePrior(nn.Module):
    """``p(move | first state)`` as a diffusion over normalised states; which block, and whereto, is open.

    Args:
        denoiser: over (batch, horizon, 16), conditioned on the first state (batch, 16).
        normalizer: of states.
        horizon: nodes.
        weighting: of the training loss.
    """

    def __init__(
        self, denoiser: NetworkDenoiser, normalizer: MinMax, horizon: int, weighting: Weighting = simple
    ) -> None:
        super().__init__()
        self.denoiser, self.normalizer, self.horizon, self.weighting = denoiser, normalizer, horizon, weighting

    def forward(self, batch: Float[Tensor, "batch horizon 16"], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each move."""
        x0 = self.normalizer.normalize(batch)
        return denoising_loss(self.denoiser, x0, x0[:, 0], draws, weighting=self.weighting, known=self.clean(x0))

    def clean(self, x0: Float[Tensor, "batch horizon 16"]) -> Bool[Tensor, "batch horizon 16"]:
        """The first state."""
        known = torch.zeros(x0.shape, dtype=torch.bool, device=x0.device)
        known[:, 0] = True
        return known


def normalizer() -> MinMax:
    """Of states: the table's part that is used, and the height of four blocks with a hand above."""
    (x0, x1), (y0, y1) = REACH
    low, high = [x0, y0, 0.0], [x1, y1, 0.32]
    return MinMax(torch.tensor([*low, 0.0, *low * BLOCKS]), torch.tensor([*high, WIDTH, *high * BLOCKS]))


def assemble(config: BlocksConfig) -> MovePrior:
    """The prior that ``config`` describes, with new weights."""
    if config.prediction not in PREDICTIONS:
        raise WorkbenchError(f"prediction: got {config.prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    network = build(config.network, horizon=config.horizon, dim=STATE, cond_dim=STATE)
    denoiser = NetworkDenoiser(network, build(config.schedule), config.prediction)
    return MovePrior(denoiser, normalizer(), config.horizon, bind(config.loss))


def sampling_table(config: BlocksConfig, prior: MovePrior) -> Table:
    """The solver's table that ``config`` asks for."""
    return table(config.sampler, config.grid, config.steps, prior.denoiser.schedule)


def restore(saved: Checkpoint) -> tuple[MovePrior, BlocksConfig]:
    """The prior in a checkpoint, in evaluation mode, and its configuration.

    Raises:
        WorkbenchError: the checkpoint is not one of these, or is damaged.
    """
    saved.require("stacking")
    config = typed(BlocksConfig, saved.config)
    prior = assemble(config)
    fill(prior, saved.tensors("model"), saved.path)
    return prior.requires_grad_(False).eval(), config
