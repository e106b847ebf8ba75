"""A training problem of a few hundred numbers, for what the loop promises whatever it trains.

``python -m tests.diffusion_core.toys RUN`` trains it for a very long time; a test sends it signals.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core.ema import Ema
from diffusion_core.loss import Draws
from diffusion_core.run import Run, launch
from diffusion_core.train import TrainConfig, fit

META = {"domain": "toys", "task": "line", "data": "24 points", "commit": "none"}


class Line(nn.Module):
    """``y = w x + b`` learned from noisy inputs; the noise comes from the loop's draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("scale", torch.tensor(0.1))
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.5, -0.2, 0.1]]))
            self.layer.bias.fill_(0.3)

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Tensor:
        x = batch["x"] + self.scale * draws.normal(batch["x"].shape)
        return (self.layer(x)[:, 0] - batch["y"]) ** 2


class Points:
    """24 points; ``before(rows)`` is called ahead of every batch, so that a test can do mischief there."""

    def __init__(self, n: int = 24, before: Callable[[Tensor], None] = lambda rows: None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(n, 3, generator=generator)
        self.y = self.x @ torch.tensor([1.0, 2.0, -1.0]) + 0.5
        self.before = before

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        self.before(rows)
        return {"x": self.x[rows], "y": self.y[rows]}


def config(**changes: Any) -> TrainConfig:
    """20 steps; the intervals are chosen so that they do not divide one another."""
    values = {
        "steps": 20,
        "batch_size": 5,
        "learning_rate": 0.05,
        "warmup_steps": 4,
        "ema": Ema(max_decay=0.9),
        "log_every": 3,
        "checkpoint_every": 4,
        "keep": 100,
        "gradient_clip": 1.0,
    }
    return TrainConfig(**(values | changes))


def train(path: Path, dataset: Points | None = None, training: TrainConfig | None = None, **more: Any) -> nn.Module:
    """Train in the folder ``path``, going on from what it holds."""
    path.mkdir(exist_ok=True)
    dataset, training = dataset or Points(), training or config()
    return fit(Line(), dataset, training, Run(path), saved_config={"toy": 1}, meta=META, device="cpu", **more)


def _endless() -> None:
    """Ten steps a second; the batch of step 8 takes a minute, as a stuck disk would."""
    calls = iter(range(10**9))

    def wait(rows: Tensor) -> None:
        time.sleep(60.0 if next(calls) == 8 and "stuck" in sys.argv else 0.05)

    train(Path(sys.argv[1]), Points(before=wait), config(steps=10**6, checkpoint_every=0, log_every=1))


if __name__ == "__main__":
    launch(_endless)
