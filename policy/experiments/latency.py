"""Milliseconds to plan one chunk for one robot, by network, number of steps, and how the policy is run.

    python -m policy.experiments.latency --repeats 100 --out benchmarks/results/policy/latency.json

Each row is a network of ``policy/conf/network`` with Push-T's keypoints, one thread and batch 1: as it is, compiled,
and exported for torch and for ONNX Runtime. Weights are random, on which time does not depend. With ``--lerobot`` and
the Python of an environment that has LeRobot, its policy with the same U-Net is timed in between. Numbers mean
something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core import results
from diffusion_core.configure import composed
from diffusion_core.errors import WorkbenchError
from diffusion_core.normalize import MinMax
from diffusion_core.results import Estimate
from diffusion_core.run import launch
from policy.config import PolicyConfig
from policy.export import Planner, example, export
from policy.model import Policy, assemble, sampling_table

logger = logging.getLogger("workbench.policy")
WARM_UP = 5
KEYPOINTS = 20


def untrained(network: str, steps: int) -> tuple[Policy, PolicyConfig]:
    """A policy for Push-T's keypoints with random weights, sampled by DDIM."""
    words = ["task=pusht", f"network={network}", "sampler=ddim", f"steps={steps}"]
    config = composed(PolicyConfig, "policy.conf", "train", words)
    seen, done = (MinMax(torch.zeros(n), torch.full((n,), 512.0)) for n in (KEYPOINTS, 2 * config.horizon))
    return assemble(config, seen, done).requires_grad_(False).eval(), config


def timed(call: Callable[[], Any], repeats: int) -> Estimate:
    """The median of ``repeats`` calls after some to warm up."""
    times = []
    for _ in range(repeats + WARM_UP):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return results.quantile(times[WARM_UP:], 0.5, "ms")


def runners(
    policy: Policy, config: PolicyConfig, folder: Path, ways: list[str]
) -> dict[str, Callable[[Tensor, dict[str, Tensor]], Any]]:
    """The ways to run a policy: each ``run(noise, obs)``.

    Raises:
        WorkbenchError: a way that there is not, or that needs something that is not installed.
    """
    planner = Planner(policy, sampling_table(config, policy))
    made: dict[str, Callable[[Tensor, dict[str, Tensor]], Any]] = {}
    for way in ways:
        match way:
            case "eager":
                made[way] = planner
            case "compiled":
                if shutil.which("g++") is None:
                    raise WorkbenchError("compiled: got no C++ compiler; expected g++, or other --ways.")
                made[way] = torch.compile(planner)
            case "exported":
                export(policy, config, folder / "policy.pt2")
                made[way] = torch.export.load(folder / "policy.pt2").module()
            case "onnx":
                export(policy, config, folder / "policy.onnx")
                made[way] = _onnx(folder / "policy.onnx")
            case _:
                raise WorkbenchError(f"ways: got {way!r}; expected eager, compiled, exported or onnx.")
    return made


def _onnx(path: Path) -> Callable[[Tensor, dict[str, Tensor]], Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise WorkbenchError(
            "onnx: got no onnxruntime; expected it: pip install 'diffusion-workbench[export]', or other --ways."
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(noise: Tensor, obs: dict[str, Tensor]) -> Any:
        named = {"noise": noise.numpy()} | {f"obs_{key}": value.numpy() for key, value in obs.items()}
        return session.run(["chunk"], named)

    return run


def lerobot(python: str, widths: list[int], steps: int, repeats: int) -> dict[str, Any]:
    """A row for LeRobot's policy with a U-Net of the same widths, in its own environment.

    Raises:
        WorkbenchError: it does not run there.
    """
    asked = {"widths": widths, "steps": steps, "repeats": repeats, "warm_up": WARM_UP, "solver": "DDIM"}
    program = Path(__file__).with_name("lerobot_peer.py")
    ran = subprocess.run([python, str(program), json.dumps(asked)], capture_output=True, text=True)
    if ran.returncode:
        reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WorkbenchError(f"lerobot: got {reason!r} from {python}; expected an environment that has LeRobot.")
    found = json.loads(ran.stdout.strip().splitlines()[-1])
    time_each = results.quantile(found["ms"], 0.5, "ms")
    return {
        "network": "unet1d",
        "steps": steps,
        "parameters": found["parameters"],
        "ms": {"lerobot": time_each},
        "versions": found["versions"],
    }


def arguments() -> argparse.ArgumentParser:
    """What the experiment is told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mlp_small", "mlp", "transformer", "dit", "unet1d"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 10, 100], help="denoising steps")
    parser.add_argument("--ways", nargs="+", default=["eager", "compiled", "exported", "onnx"])
    parser.add_argument("--repeats", type=int, default=50, help="calls per number")
    parser.add_argument("--lerobot", default="", help="the python of an environment that has LeRobot")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    return parser


def main() -> None:
    """Measure with one thread."""
    asked = arguments().parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for network in asked.networks:
        for steps in asked.steps:
            policy, config = untrained(network, steps)
            # unrolled along a long table a graph takes minutes to make, and nobody would run it
            ways = [way for way in asked.ways if way == "eager" or steps <= 20]
            with tempfile.TemporaryDirectory() as folder:
                made = runners(policy, config, Path(folder), ways)
                noise, obs = example(Planner(policy, sampling_table(config, policy)), config, 1)
                ms = {way: timed(partial(run, noise, obs), asked.repeats) for way, run in made.items()}
            parameters = sum(p.numel() for p in policy.denoiser.parameters())
            rows.append({"network": network, "steps": steps, "parameters": parameters, "ms": ms})
            logger.info("%s, %d steps: %s", network, steps, ", ".join(f"{way} {found}" for way, found in ms.items()))
            if network == "unet1d" and asked.lerobot:
                rows.append(lerobot(asked.lerobot, list(config.network["widths"]), steps, asked.repeats))
                logger.info("lerobot, %d steps: %s", steps, rows[-1]["ms"]["lerobot"])
            if asked.out:
                about = {
                    "what": "median milliseconds to plan one chunk, batch 1, one thread, random weights",
                    "command": f"python -m policy.experiments.latency {shlex.join(sys.argv[1:])}",
                    "commit": results.commit(),
                    "hardware": results.hardware(),
                }
                results.write_json(asked.out, about | {"rows": rows})


if __name__ == "__main__":
    launch(main)
