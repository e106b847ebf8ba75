"""Train with ``accelerate launch`` on two CPU processes and on one, the same global batch, and compare the losses.

``python -m benchmarks.two_processes`` writes ``benchmarks/results/two_processes.json``. Both see the same samples and
the same noise; what differs is the order of the sums, so the curves drift apart by rounding only.

``accelerate launch --cpu --num_processes 2`` is not it: without mpirun that starts one process and says nothing. Its
launcher of several processes is behind ``--multi_gpu``, and ``ACCELERATE_USE_CPU`` keeps these off a GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kill_and_resume import ROOT, demonstrations, only_run, overrides
from diffusion_core import checkpoint, results
from diffusion_core.run import read_metrics

LAUNCH = "--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 -m policy.train"
HOW_MANY = {1: "--num_processes 1", 2: "--multi_gpu --num_processes 2"}


def train(processes: int, words: Sequence[str], runs: Path) -> Path:
    """``accelerate launch ... -m policy.train <words>`` on the CPU; returns the run.

    Raises:
        RuntimeError: it failed, or other than ``processes`` took part.
    """
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *HOW_MANY[processes].split(), *LAUNCH.split(), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    if done.returncode:
        raise RuntimeError(f"accelerate launch ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    run = only_run(runs)
    assert run is not None
    took_part = checkpoint.find(run).meta["world_size"]
    if took_part != processes:
        raise RuntimeError(f"expected {processes} processes to train, {took_part} did")
    return run


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [r["loss"] for r in read_metrics(run) if "loss" in r]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "two_processes.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        data = demonstrations(here / "expert.zarr.zip")
        curves = {n: losses(train(n, overrides(data, here / str(n), asked.steps, 0), here / str(n))) for n in (1, 2)}
    apart = [abs(b / a - 1.0) for a, b in zip(curves[1], curves[2], strict=True)]
    found = {
        "what": "training loss with one and with two processes, same global batch, step by step",
        "command": f"python -m benchmarks.two_processes --steps {asked.steps}",
        "launched": f"ACCELERATE_USE_CPU=true accelerate launch {HOW_MANY[2]} {LAUNCH}",
        "steps": asked.steps,
        "first_loss": [curves[1][0], curves[2][0]],
        "last_loss": [curves[1][-1], curves[2][-1]],
        "largest_relative_difference": max(apart),
        "at_step": apart.index(max(apart)) + 1,
        "commit": results.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": results.hardware(),
    }
    results.write_json(asked.out, found)
    print(f"largest relative difference of the losses: {max(apart):.2g}; {asked.out}")


if __name__ == "__main__":
    main()
