"""What the sampling loop costs beyond the model: ours against diffusers'.

    python -m benchmarks.sampler_overhead --out benchmarks/results/sampler_overhead.json

The model is free: it returns a tensor made beforehand, and both call it alike, with one time per sample. What
is left is what every step pays to the library: x0 from eps and the solver's update. What a run must do before
its first step is counted, spread over the steps: our ``bind``, their ``set_timesteps`` (which resets the state
that a scheduler keeps). diffusers runs at its fastest: no clipping, no thresholding, tuples returned.

All samplers run in turn, round after round, in one process on one thread. Times are of the process's CPU, so
that a busy machine disturbs them little; minima and medians are over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_core import grid as grids
from diffusion_core import results
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.noise import Shared
from diffusion_core.predict import Prediction
from diffusion_core.sample import sample
from diffusion_core.schedule import RectifiedFlow, Schedule, linear_betas
from diffusion_core.solvers import Solver, ddim, ddpm, dpm_solver_pp_2m, euler, heun

SHAPE = (256, 16, 2)
STEPS = 100
PAIRS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm_solver_pp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_flow": "FlowMatchEulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}


@dataclass(frozen=True)
class Sampler:
    """``prepare(steps)`` does what is not counted and returns the run that is, and its part before the first step."""

    library: str
    prepare: Callable[[int], tuple[Callable[[], Any], Callable[[], Any]]]


class Free(nn.Module):
    """Any prediction, at no cost."""

    def __init__(self) -> None:
        super().__init__()
        # marks the network as one in float32
        self.weight = nn.Parameter(torch.zeros(1))
        self.output = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.output


class Operations(TorchDispatchMode):
    """Counts aten operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def ours(solver: Solver, schedule: Schedule, prediction: Prediction) -> Sampler:
    model = NetworkDenoiser(Free(), schedule, prediction)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def prepare(steps: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        table = solver(schedule, grids.trailing(1000, steps))
        table.rows  # noqa: B018  made once per table
        noise = Shared(torch.Generator().manual_seed(2))
        return lambda: sample(model, table, x, noise=noise), lambda: model.bind(table.times)

    return Sampler("ours", prepare)


def theirs(name: str) -> Sampler:
    options: dict[str, dict[str, Any]] = {
        "DDPMScheduler": {"clip_sample": False, "thresholding": False, "timestep_spacing": "trailing"},
        "DDIMScheduler": {"clip_sample": False, "thresholding": False, "timestep_spacing": "trailing"},
        "DPMSolverMultistepScheduler": {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "thresholding": False,
            "timestep_spacing": "trailing",
        },
        "EulerDiscreteScheduler": {"timestep_spacing": "trailing"},
        "HeunDiscreteScheduler": {"timestep_spacing": "trailing", "clip_sample": False},
        "FlowMatchEulerDiscreteScheduler": {"shift": 1.0},
    }
    scheduler = getattr(diffusers, name)(**options[name])
    noisy = {"generator": torch.Generator().manual_seed(2)} if name == "DDPMScheduler" else {}
    flow = name.startswith("Flow")
    model = Free()
    x_start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))

    def prepare(steps: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        timesteps: dict[str, Any] = (
            {"sigmas": np.linspace(1.0, 1.0 / steps, steps)} if flow else {"num_inference_steps": steps}
        )

        @torch.no_grad()
        def run() -> Tensor:
            x, batch = x_start, x_start.shape[0]
            scheduler.set_timesteps(**timesteps)
            for t in scheduler.timesteps:
                scaled = x if flow else scheduler.scale_model_input(x, t)
                x = scheduler.step(model(scaled, t.expand(batch)), t, x, return_dict=False, **noisy)[0]
            return x

        return run, lambda: scheduler.set_timesteps(**timesteps)

    return Sampler("diffusers", prepare)


def samplers() -> dict[str, Sampler]:
    betas = linear_betas()
    return {
        "ddpm": ours(ddpm, betas, "eps"),
        "ddim": ours(ddim, betas, "eps"),
        "dpm_solver_pp_2m": ours(dpm_solver_pp_2m, betas, "eps"),
        "euler": ours(euler, betas, "eps"),
        "euler_flow": ours(euler, RectifiedFlow(), "velocity"),
        "heun": ours(heun, betas, "eps"),
        **{name: theirs(name) for name in PAIRS.values()},
    }


def operations_per_step(sampler: Sampler) -> float:
    """Aten operations of one more step: two lengths, so that what a run costs once cancels."""
    counts = []
    for steps in (STEPS // 2, STEPS):
        run, _ = sampler.prepare(steps)
        with Operations() as operations:
            run()
        counts.append(operations.count)
    return (counts[1] - counts[0]) / (STEPS - STEPS // 2)


def measure(rounds: int, warm_up: int = 5) -> dict[str, dict[str, Any]]:
    """CPU microseconds per step of every sampler, interleaved."""
    every = samplers()
    seconds: dict[str, list[float]] = {name: [] for name in every}
    before: dict[str, list[float]] = {name: [] for name in every}
    for i in range(warm_up + rounds):
        for name, sampler in every.items():
            run, set_up = sampler.prepare(STEPS)
            begin = time.process_time()
            run()
            middle = time.process_time()
            set_up()
            if i >= warm_up:
                seconds[name].append(middle - begin)
                before[name].append(time.process_time() - middle)
    return {
        name: {
            "library": sampler.library,
            "us_per_step_min": round(min(seconds[name]) / STEPS * 1e6, 2),
            "us_per_step_median": round(statistics.median(seconds[name]) / STEPS * 1e6, 2),
            "of_which_set_up_us_per_step_min": round(min(before[name]) / STEPS * 1e6, 2),
            "of_which_set_up_us_per_step_median": round(statistics.median(before[name]) / STEPS * 1e6, 2),
            "aten_ops_per_step": operations_per_step(sampler),
        }
        for name, sampler in every.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampler_overhead.json"))
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = measure(arguments.rounds)
    ratios = {
        f"{peer} / {name}": {
            kind: round(measured[peer][f"us_per_step_{kind}"] / measured[name][f"us_per_step_{kind}"], 2)
            for kind in ("min", "median")
        }
        for name, peer in PAIRS.items()
    }
    report = {
        "what": "CPU time per step of the sampling loop with a free model; ratio = diffusers / ours",
        "command": f"python -m benchmarks.sampler_overhead --rounds {arguments.rounds} --out {arguments.out}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "diffusers": diffusers.__version__,
        "shape": SHAPE,
        "dtype": "float32",
        "steps": STEPS,
        "repeats": arguments.rounds,
        "samplers": measured,
        "ratios": ratios,
    }
    results.write_json(arguments.out, report)
    print(f"{'sampler':34}{'min us/step':>12}{'median':>9}{'ops/step':>10}")
    for name, result in measured.items():
        row = f"{result['us_per_step_min']:12.1f}{result['us_per_step_median']:9.1f}{result['aten_ops_per_step']:10.1f}"
        print(f"{name:34}{row}")
    for pair, ratio in ratios.items():
        print(f"{pair:54}{ratio['min']:6.2f} (min) {ratio['median']:6.2f} (median)")


if __name__ == "__main__":
    main()
