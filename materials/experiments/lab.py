"""What the experiments share: models, and a file of results that says where it comes from."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_core import results
from diffusion_core.configure import typed
from diffusion_core.run import launch
from materials.config import MaterialsConfig
from materials.evaluate import opened
from materials.models import CrystalModel, restore

logger = logging.getLogger("workbench.materials")

SEED = 300_000
"""Of the first crystal: those of evaluations begin elsewhere."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A model and how it was trained."""

    model: CrystalModel
    config: MaterialsConfig
    commit: str

    @classmethod
    def of(cls, name: str) -> Trained:
        """The model of a run.

        Raises:
            WorkbenchError: there is none.
        """
        saved = opened(name)
        return cls(restore(saved)[0], typed(MaterialsConfig, saved.config), saved.meta["commit"])

    def described(self) -> dict[str, Any]:
        """For the results."""
        return {
            "task": self.config.task.name,
            "network": str(self.config.network["_target_"]).rpartition(".")[2],
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "labels": list(self.model.labels),
            "seed": self.config.train.seed,
            "steps": self.config.train.steps,
            "batch_size": self.config.train.batch_size,
            "commit": self.commit,
        }


Experiment = Callable[[argparse.Namespace], dict[str, Any]]


def run(experiment: Experiment, parser: argparse.ArgumentParser, name: str) -> None:
    """Measure with one thread and write what came of it to ``--out``."""
    parser.add_argument("--out", type=Path, help="a JSON file for the results")

    def main() -> None:
        asked = parser.parse_args()
        torch.set_num_threads(1)
        began = time.perf_counter()
        found = experiment(asked)
        found |= {
            "command": f"python -m materials.experiments.{name} {shlex.join(sys.argv[1:])}",
            "commit": results.commit(),
            "seconds": round(time.perf_counter() - began, 1),
            "hardware": results.hardware(),
        }
        if asked.out:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            results.write_json(asked.out, found)
            logger.info("wrote %s", asked.out)

    launch(main)
