"""What the sampling loop costs beyond the model: ours against diffusers', k-diffusion's and azula's.

    pip install -e ".[bench]"
    python -m benchmarks.sampler_overhead --out benchmarks/results/sampler_overhead.json

The model is free: it returns a tensor made beforehand, and every library calls it with one time per sample. What is
left is what a step pays to the library: its Python, the conversion of the prediction, the solver's update, fresh noise.
Every library runs as its users run it at its fastest: diffusers without clipping, thresholding or output classes;
k-diffusion and azula with a model that is a denoiser already, so that they convert nothing.

Fresh noise costs every library the same, and more than the rest of our step, so a solver that draws is also compared
without it: the draw alone is timed in the same run and taken off both sides. The *floor* is a bare loop with the
arithmetic of our table, in numbers known beforehand, and the same model: where a peer's step is little more than that
(Euler on a flow: two operations), no ratio can be large.

What a sampler makes once for a model and a grid (our table, diffusers' scheduler) is made before; what each run does
before its first step is counted (our ``bind``, their ``set_timesteps``, which resets the state that a scheduler keeps).
All samplers run in turn, round after round, in one process on one thread. Times are of the process's CPU, so that a
busy machine disturbs them little; medians and minima are over the rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_core import grid as grids
from diffusion_core import results, solvers
from diffusion_core.contracts import HOST_READS
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.noise import Shared
from diffusion_core.predict import Prediction
from diffusion_core.sample import sample
from diffusion_core.schedule import RectifiedFlow, Schedule, VarianceExploding, linear_betas
from diffusion_core.solvers import Solver

SHAPE = (256, 16, 2)
STEPS = 100
DRAWING = ("ddpm", "euler ancestral", "dpm_solver_pp_2m_sde")
Run = Callable[[], Any]
Prepare = Callable[[int], Run]
"""``prepare(steps)`` makes what is made once and gives the run that is measured."""


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
    """Counts aten operations, and those among them that make Python wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.reads += func.overloadpacket.__name__ in HOST_READS
        return func(*args, **(kwargs or {}))


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def ours(solver: Solver, schedule: Schedule, prediction: Prediction) -> Prepare:
    def prepare(steps: int) -> Run:
        model, noise, x = (
            NetworkDenoiser(Free(), schedule, prediction),
            Shared(torch.Generator().manual_seed(2)),
            start(),
        )
        table = solver(schedule, grids.trailing(1000, steps))
        sample(model, table, x, noise=noise)
        return lambda: sample(model, table, x, noise=noise)

    return prepare


def floor(solver: Solver, schedule: Schedule, prediction: Prediction) -> Prepare:
    """The arithmetic of our own table and the model's call, in a bare loop."""

    def prepare(steps: int) -> Run:
        network, generator, x_start = Free(), torch.Generator().manual_seed(2), start()
        times, batch = torch.linspace(1.0, 0.0, steps), SHAPE[0]
        table = solver(schedule, grids.trailing(1000, steps))
        raw = NetworkDenoiser(Free(), schedule, prediction).bind_raw(table.bound)
        table = table if raw is None else table.folded(raw[1], raw[2])
        newest, rows = table.estimate[:, 0].float().unbind(), table.rows
        n_x, n_p = table.x.shape[1], table.estimate.shape[1]
        told = [times[min(i, steps - 1)].expand(batch) for i in range(len(rows))]

        @torch.no_grad()
        def run() -> Tensor:
            xs, ps = (x_start,), ()
            for i, row in enumerate(rows):
                ps = (network(xs[0], told[i]), *ps)[:n_p]
                new = ps[0] * newest[i]
                for k, b in row.estimate:
                    new.add_(ps[k], alpha=b)
                for k, a in row.x:
                    new.add_(xs[k], alpha=a)
                if row.noise:
                    new.add_(torch.randn(SHAPE, generator=generator), alpha=row.noise)
                xs = (new, *xs)[:n_x]
            return xs[0]

        return run

    return prepare


def draw(steps: int) -> Run:
    """Fresh noise for every step, and nothing else."""
    generator = torch.Generator().manual_seed(2)

    def run() -> None:
        for _ in range(steps):
            torch.randn(SHAPE, generator=generator)

    return run


def of_diffusers(name: str, **options: Any) -> Prepare:
    """A scheduler and the loop that its documentation shows."""
    flow = name.startswith("Flow")
    draws = (
        name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") or options.get("algorithm_type", "")[:3] == "sde"
    )

    def prepare(steps: int) -> Run:
        scheduler, model, x_start = getattr(diffusers, name)(**options), Free(), start()
        noisy = {"generator": torch.Generator().manual_seed(2)} if draws else {}
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

        return run

    return prepare


def of_k_diffusion(name: str) -> Prepare:
    def prepare(steps: int) -> Run:
        from k_diffusion import sampling

        model, x, sigmas = Free(), 80.0 * start(), sampling.get_sigmas_karras(steps, 0.002, 80.0)
        # theirs by default is a Brownian tree, whose cost is another matter
        noisy = {"noise_sampler": lambda *_: torch.randn_like(x)} if "sde" in name or "ancestral" in name else {}
        call = torch.no_grad()(getattr(sampling, name))
        return lambda: call(model, x, sigmas, disable=True, **noisy)

    return prepare


def of_azula(name: str, **options: Any) -> Prepare:
    def prepare(steps: int) -> Run:
        from azula import denoise, noise
        from azula import sample as samplers

        class Posterior(denoise.Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.network, self.schedule = Free(), noise.VPSchedule()

            def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
                return denoise.DiracPosterior(self.network(x_t, t))

        sampler, x = getattr(samplers, name)(Posterior(), steps=steps, silent=True, **options), start()
        return lambda: sampler(x)

    return prepare


def samplers() -> dict[str, dict[str, Prepare]]:
    """For each solver: ours, the floor under it, and the peers that have it."""
    betas, flow, exploding = linear_betas(), RectifiedFlow(), VarianceExploding(80.0)
    multistep: dict[str, Any] = {"thresholding": False, "timestep_spacing": "trailing"}
    plain = {"clip_sample": False, "thresholding": False, "timestep_spacing": "trailing"}

    def group(solver: Solver, schedule: Schedule, prediction: Prediction, **peers: Prepare) -> dict[str, Prepare]:
        return {"ours": ours(solver, schedule, prediction), "floor": floor(solver, schedule, prediction), **peers}

    d, k, a = of_diffusers, of_k_diffusion, of_azula
    dpm = "DPMSolverMultistepScheduler"
    return {
        "ddpm": group(solvers.ddpm, betas, "eps", diffusers=d("DDPMScheduler", **plain), azula=a("DDPMSampler")),
        "ddim": group(solvers.ddim, betas, "eps", diffusers=d("DDIMScheduler", **plain), azula=a("DDIMSampler")),
        "euler": group(
            solvers.euler,
            exploding,
            "eps",
            diffusers=d("EulerDiscreteScheduler", timestep_spacing="trailing"),
            **{"k-diffusion": k("sample_euler")},
            azula=a("EulerSampler"),
        ),
        "euler ancestral": group(
            lambda schedule, grid: solvers.ddim(schedule, grid, 1.0),
            exploding,
            "eps",
            diffusers=d("EulerAncestralDiscreteScheduler", timestep_spacing="trailing"),
            **{"k-diffusion": k("sample_euler_ancestral")},
        ),
        "euler on a flow": group(
            solvers.euler, flow, "velocity", diffusers=d("FlowMatchEulerDiscreteScheduler", shift=1.0)
        ),
        "heun": group(
            solvers.heun,
            exploding,
            "eps",
            diffusers=d("HeunDiscreteScheduler", clip_sample=False, timestep_spacing="trailing"),
            **{"k-diffusion": k("sample_heun")},
            azula=a("HeunSampler"),
        ),
        "dpm_solver_pp_2m": group(
            solvers.dpm_solver_pp_2m,
            betas,
            "eps",
            diffusers=d(dpm, algorithm_type="dpmsolver++", solver_order=2, **multistep),
            **{"k-diffusion": k("sample_dpmpp_2m")},
            azula=a("xEABSampler", order=2),
        ),
        "dpm_solver_pp_2m_sde": group(
            solvers.dpm_solver_pp_2m_sde,
            betas,
            "eps",
            diffusers=d(dpm, algorithm_type="sde-dpmsolver++", solver_order=2, **multistep),
            **{"k-diffusion": k("sample_dpmpp_2m_sde")},
        ),
        "dpm_solver_pp_3m": group(
            lambda schedule, grid: solvers.dpm_solver_pp_3m(schedule, grid, warm_up="published"),
            betas,
            "eps",
            diffusers=d(dpm, algorithm_type="dpmsolver++", solver_order=3, **multistep),
            azula=a("xEABSampler", order=3),
        ),
        "dpm_solver_pp_2s": group(
            solvers.dpm_solver_pp_2s,
            betas,
            "eps",
            diffusers=d(
                "DPMSolverSinglestepScheduler", algorithm_type="dpmsolver++", solver_order=2, thresholding=False
            ),
        ),
        "unipc": group(
            solvers.unipc, betas, "eps", diffusers=d("UniPCMultistepScheduler", solver_order=2, **multistep)
        ),
        "deis": group(
            lambda schedule, grid: solvers.deis(schedule, grid, order=2),
            betas,
            "eps",
            diffusers=d("DEISMultistepScheduler", solver_order=2, **multistep),
            azula=a("zEABSampler", order=2),
        ),
        "lms": group(
            lambda schedule, grid: solvers.lms(schedule, grid, warm_up="published"),
            exploding,
            "eps",
            diffusers=d("LMSDiscreteScheduler", timestep_spacing="trailing"),
            **{"k-diffusion": k("sample_lms")},
        ),
    }


def available() -> dict[str, str]:
    """The peers that are installed, and their versions."""
    found = {"diffusers": diffusers.__version__}
    for name in ("k-diffusion", "azula"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            logging.getLogger(__name__).warning("%s is not installed (pip install -e '.[bench]'): left out", name)
    return found


def operations_per_step(prepare: Prepare) -> tuple[float, float]:
    """Aten operations, and host reads, of one more step: two lengths, so that what a run costs once cancels."""
    counts = []
    for steps in (STEPS // 2, STEPS):
        run = prepare(steps)
        with Operations() as operations:
            run()
        counts.append((operations.count, operations.reads))
    return tuple((late - early) / (STEPS - STEPS // 2) for early, late in zip(*counts, strict=True))  # type: ignore[return-value]


def measure(rounds: int, libraries: set[str], warm_up: int = 3) -> list[dict[str, Any]]:
    """CPU microseconds per step of every sampler, interleaved."""
    chosen = {
        (solver, library): prepare
        for solver, group in samplers().items()
        for library, prepare in group.items()
        if library in libraries
    }
    chosen["", "draw"] = draw
    runs = {key: prepare(STEPS) for key, prepare in chosen.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for i in range(warm_up + rounds):
        for key, run in runs.items():
            begin = time.process_time()
            run()
            if i >= warm_up:
                seconds[key].append(time.process_time() - begin)
    rows = []
    for (solver, library), prepare in chosen.items():
        operations, reads = operations_per_step(prepare)
        values = [s / STEPS * 1e6 for s in seconds[solver, library]]
        rows.append(
            {
                "solver": solver,
                "library": library,
                "us_per_step_median": round(statistics.median(values), 2),
                "us_per_step_min": round(min(values), 2),
                "aten_ops_per_step": operations,
                "host_reads_per_step": reads,
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every peer: its time over ours; for solvers that draw also without the draw. Of medians."""
    time_of = {(row["solver"], row["library"]): row["us_per_step_median"] for row in rows}
    least = time_of["", "draw"]
    found = []
    for solver, library in time_of:
        if library not in ("ours", "floor", "draw"):
            mine, theirs = time_of[solver, "ours"], time_of[solver, library]
            ratio: dict[str, Any] = {"solver": solver, "library": library, "time": round(theirs / mine, 2)}
            if solver in DRAWING:
                ratio["time_without_draw"] = round((theirs - least) / (mine - least), 2)
            found.append(ratio)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampler_overhead.json"))
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    peers = available()
    rows = measure(arguments.rounds, {"ours", "floor", *peers})
    found = ratios(rows)
    report = {
        "what": "CPU time per step of the sampling loop with a free model; ratios are peer / ours",
        "command": f"python -m benchmarks.sampler_overhead --rounds {arguments.rounds} --out {arguments.out}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": results.commit(),
        "hardware": results.hardware(),
        "peers": peers,
        "shape": SHAPE,
        "dtype": "float32",
        "steps": STEPS,
        "repeats": arguments.rounds,
        "rows": rows,
        "ratios": found,
    }
    results.write_json(arguments.out, report)
    print(f"{'solver':24}{'library':14}{'median us/step':>15}{'min':>9}{'ops':>7}{'reads':>7}")
    for row in rows:
        numbers = f"{row['us_per_step_median']:15.1f}{row['us_per_step_min']:9.1f}"
        print(
            f"{row['solver']:24}{row['library']:14}{numbers}{row['aten_ops_per_step']:7.1f}{row['host_reads_per_step']:7.1f}"
        )
    for ratio in found:
        without = f", {ratio['time_without_draw']:.2f} without the draw" if "time_without_draw" in ratio else ""
        print(f"{ratio['solver']:24}{ratio['library']:14}{ratio['time']:6.2f} times ours{without}")


if __name__ == "__main__":
    main()
