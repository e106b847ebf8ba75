"""Judge a model of crystals; the measures are in ``materials.metrics``."""

from __future__ import annotations

from pathlib import Path

from diffusion_core.checkpoint import Checkpoint
from diffusion_core.run import Run
from materials.config import EvaluationConfig, MaterialsConfig


def evaluate_and_report(
    saved: Checkpoint, config: MaterialsConfig, evaluation: EvaluationConfig, out: Path, command: str, run: Run
) -> None:
    """To come."""
