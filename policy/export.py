"""A policy as one file that runs without this project: ``python -m policy.export checkpoint=... out=policy.pt2``.

What is written is the whole sampler: normalizers, encoders, and the denoising loop unrolled along its table. Inputs are
the last observations in their own units, by key (batch, n_obs_steps, ...), and the noise (draws, batch, horizon,
action), standard normal; the output is the chunk (batch, horizon, action) in the environment's units, whose row
``n_obs_steps - 1`` is for now. ``.pt2`` is read by torch alone::

    extra = {"policy.json": ""}
    run = torch.export.load("policy.pt2", extra_files=extra).module()
    chunk = run(torch.randn(json.loads(extra["policy.json"])["noise"]), {"state": observations})

and ``.onnx`` by any ONNX runtime, its inputs named ``noise`` and ``obs_<key>``. Options: ``steps=`` other denoising
steps, ``batch=`` robots (fixed in the file).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core import checkpoint, results
from diffusion_core.configure import build
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch, options
from diffusion_core.sample import loop, script
from diffusion_core.solvers import Table
from envs.rollout import stack
from policy.config import PolicyConfig
from policy.evaluate import PRETRAINED, with_sampler
from policy.heads.diffusion import Diffusion
from policy.model import Observations, Policy, restore, sampling_table

logger = logging.getLogger("workbench.policy")
NAME = "policy.json"


@dataclass
class Handed:
    """Normal numbers that are handed in, one draw after the other: a noise source for tracing.

    Args:
        values: (draws, ...) standard normal.
        drawn: how many were asked for.
    """

    values: Tensor
    drawn: int = field(default=0)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.drawn >= len(self.values) or tuple(shape) != tuple(self.values.shape[1:]):
            raise WorkbenchError(
                f"export: got draw {self.drawn + 1} of shape {tuple(shape)}; expected at most {len(self.values)} of "
                f"shape {tuple(self.values.shape[1:])}: this head cannot be exported with numbers handed in."
            )
        self.drawn += 1
        return self.values[self.drawn - 1].to(device, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        raise WorkbenchError("export: got a head that draws uniform numbers; expected one of Gaussian noise.")


class Planner(nn.Module):
    """A policy with its table: ``(noise, obs) -> chunk``, all in the environment's units.

    A tracer cannot read a tensor's value, so for a diffusion all that depends on the times alone is made here.
    """

    def __init__(self, policy: Policy, table: Table | None) -> None:
        super().__init__()
        self.policy, self.table = policy, table
        self._rows: list[tuple[bool, bool, Any]] | None = None
        if isinstance(policy.head, Diffusion) and table is not None:
            self._rows = script(table)
            self._scale = float(policy.denoiser.schedule.sigma(table.times[:1]))

    @property
    def draws(self) -> int:
        """Normal tensors a chunk takes: the start, and one for every row that adds noise."""
        return 1 + (0 if self.table is None else int((self.table.noise != 0.0).sum()))

    @torch.no_grad()
    def forward(
        self, noise: Float[Tensor, "draws batch horizon action"], obs: Observations
    ) -> Float[Tensor, "batch horizon action"]:
        if self._rows is None or self.table is None:
            return self.policy.plan(obs, self.table, Handed(noise))
        x, later = self._scale * noise[0], Handed(noise[1:])
        evaluate = self.policy.denoiser.bind(self.table.bound, self.policy.condition(obs))
        for state in loop(self._rows, evaluate, self.table, x, later):
            x = state.x
        return self.policy.actions(x, obs)


def example(planner: Planner, config: PolicyConfig, batch: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise and the observations of a reset, as an artefact is traced with."""
    env = build(config.task.env)
    seen = [env.reset(seed=seed + i)[0] for i in range(batch)]
    env.close()
    obs = planner.policy.seen(stack([stack([o] * planner.policy.n_obs_steps) for o in seen]))
    dim = len(planner.policy.action_normalizer.low) // planner.policy.horizon
    shape = (planner.draws, batch, planner.policy.horizon, dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)), obs


def export(policy: Policy, config: PolicyConfig, out: Path, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Write the artefact; returns what is said of it inside.

    Args:
        policy: float32, on the CPU.
        out: ends in .pt2 or .onnx.
        batch: robots; fixed in the file.

    Raises:
        WorkbenchError: another ending, or ONNX's packages are not installed.
    """
    if out.suffix not in (".pt2", ".onnx"):
        raise WorkbenchError(f"export: got out={out}; expected a name that ends in .pt2 or .onnx.")
    planner = Planner(policy, sampling_table(config, policy)).requires_grad_(False).eval()
    noise, obs = example(planner, config, batch, seed)
    # what depends on the times alone is made and kept by the first call: a trace must find it made
    planner(noise, obs)
    about = {
        "task": config.task.name,
        "noise": list(noise.shape),
        "observations": {key: [*value.shape] for key, value in obs.items()},
        "chunk": [batch, policy.horizon, noise.shape[-1]],
        "now": policy.n_obs_steps - 1,
        "n_action_steps": policy.n_action_steps,
        "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
        "commit": results.commit(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    program = torch.export.export(planner, (noise, obs), strict=False)
    if out.suffix == ".pt2":
        torch.export.save(program, out, extra_files={NAME: json.dumps(about)})
    else:
        _write_onnx(program, out, noise, obs, about)
    return about


def _write_onnx(
    program: torch.export.ExportedProgram, out: Path, noise: Tensor, obs: Mapping[str, Tensor], about: dict[str, Any]
) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401  what torch translates with
    except ImportError as error:
        raise WorkbenchError(
            f"export: got out={out.name} and no {error.name}; expected it: pip install 'diffusion-workbench[export]', "
            "or take out=<name>.pt2."
        ) from error
    names = ["noise", *(f"obs_{key}" for key in obs)]
    torch.onnx.export(program, (noise, dict(obs)), out, input_names=names, output_names=["chunk"], external_data=False)
    model = onnx.load(str(out))
    onnx.helper.set_model_props(model, {NAME: json.dumps(about)})
    onnx.save(model, str(out))


def main() -> None:
    """Read the words of the command and export."""
    words = options("policy.export", {"checkpoint": "", "out": "", "steps": "0", "batch": "1"})
    if not words["checkpoint"] or not words["out"]:
        raise WorkbenchError("export: got no checkpoint or no out; expected checkpoint=<run> out=<name>.pt2 or .onnx.")
    if not (words["steps"].isdigit() and words["batch"].isdigit() and int(words["batch"]) > 0):
        raise WorkbenchError(f"export: got steps={words['steps']} batch={words['batch']}; expected whole numbers.")
    policy, config = restore(checkpoint.find(words["checkpoint"], PRETRAINED).require("policy"))
    out = Path(words["out"])
    about = export(policy, with_sampler(config, None, None, int(words["steps"])), out, int(words["batch"]))
    logger.info("wrote %s (%.1f MB): %s", out, out.stat().st_size / 1e6, json.dumps(about))


if __name__ == "__main__":
    launch(main)
