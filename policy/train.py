"""Train a policy: ``python -m policy.train task=pusht``.

Loads demonstrations, trains, rolls the policy out in the simulator and leaves a run folder with checkpoints,
metrics, an evaluation, videos and ``report.html``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from diffusion_core import checkpoint, results
from diffusion_core.configure import build, plain
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.normalize import MinMax
from diffusion_core.resume import open_run, require_same_data, resumable
from diffusion_core.run import Run, command, launch, one_line_errors
from diffusion_core.train import fit, processes
from policy import evaluate, language, poses
from policy.config import PolicyConfig
from policy.data import sources
from policy.data.demonstrations import Demonstrations
from policy.data.replay import ReplayBuffer, concatenate
from policy.data.windows import limit_episodes, train_validation_split
from policy.heads.consistency import Consistency
from policy.model import Policy, assemble, restore, sampling_table
from policy.observer import check_kinds

logger = logging.getLogger("workbench.policy")
BATCH = 1024
"""Windows of the validation loss at a time."""
VALIDATION_SEEDS = range(50_000, 50_010)
"""Starts of the rollouts during training: neither the test seeds (100000...) nor the demonstrations'."""


@dataclass(frozen=True)
class Data:
    """What training needs of the demonstrations."""

    training: Demonstrations
    validation: Demonstrations | None
    provenance: str


def load_data(config: PolicyConfig, device: torch.device | None = None) -> Data:
    """The demonstrations that ``config.data`` names, split and cut into windows.

    Raises:
        WorkbenchError: they are missing or damaged.
    """
    task = config.task
    check_kinds(task.obs)
    env = build(task.env)
    space = env.action_space
    env.close()
    told = [key for key, kind in task.obs.items() if kind == "language"]
    reads = task.reads or [key for key in task.obs if key not in told]
    buffer, provenance = sources.load(
        config.data.source,
        [*reads, *(["task_index"] if told else [])],
        {"action": space.shape},
        filter_key=config.data.filter,
    )
    sentences = embedded(buffer) if told else None
    limits = MinMax(torch.as_tensor(space.low), torch.as_tensor(space.high))
    limits.check(torch.as_tensor(buffer.arrays["action"], dtype=torch.float32), f"{config.data.source}: action")
    training, validation = train_validation_split(buffer.n_episodes, config.data.validation_fraction, config.data.seed)
    if config.data.max_episodes:
        training = limit_episodes(training, config.data.max_episodes, config.data.seed)

    def cut(episodes: Any, mirror: bool) -> Demonstrations:
        part = buffer.subset(episodes.tolist())
        if mirror and task.mirror is not None:
            part = concatenate([part, replace(part, arrays=build(task.mirror, part.arrays))])
        seen = dict(build(task.stored, part.arrays) if task.stored else part.arrays)
        if sentences is not None:
            seen |= dict.fromkeys(told, sentences[part.arrays["task_index"].ravel()])
        return Demonstrations(
            {key: seen[key] for key in task.obs},
            part.arrays["action"],
            part.episode_ends,
            config.horizon,
            config.n_obs_steps,
            config.n_action_steps,
            device,
        )

    held_out = cut(validation, False) if len(validation) else None
    return Data(cut(training, config.data.mirror), held_out, provenance)


def embedded(buffer: ReplayBuffer) -> np.ndarray:
    """The embedding of each instruction that ``task_index`` counts, (tasks, `language.DIM`).

    Raises:
        WorkbenchError: the store does not say what its tasks are.
    """
    tasks = buffer.attributes.get("tasks")
    most = int(buffer.arrays["task_index"].max())
    if not isinstance(tasks, list) or len(tasks) <= most:
        raise WorkbenchError(
            f"{buffer.source}: got {tasks!r} as its tasks, and task_index up to {most}; expected an instruction for "
            "each, as policy.data generate and LeRobot's data sets have them."
        )
    return language.embed([str(task) for task in tasks])


def untrained(config: PolicyConfig, data: Data) -> Policy:
    """The policy that ``config`` describes, its normalizers fitted to the training data."""
    keys = [key for key, kind in config.task.obs.items() if kind == "low_dim"]
    chunks = data.training.chunks(keys, config.task.reference)
    if config.task.rotations:
        chunks = poses.encode(chunks.unflatten(1, (config.horizon, -1))).flatten(1)
    scales = MinMax.fit(data.training.low_dim(keys)), MinMax.fit(chunks)
    if config.units:
        like, _ = restore(checkpoint.find(config.units, evaluate.PRETRAINED))
        theirs = like.observer.normalizer, like.action_normalizer
        if any(len(ours.low) != len(their.low) for ours, their in zip(scales, theirs, strict=True)):
            raise WorkbenchError(
                f"units: got {config.units}, which sees and does something else; expected a run of the same task, "
                "horizon and observations."
            )
        scales = theirs
    policy = assemble(config, *scales, chunks)
    if config.teacher:
        learn_from(policy, config)
    if (table := sampling_table(config, policy)) is not None:
        # an impossible combination (eps at zero signal, a grid of another schedule) is refused now, not after training
        policy.denoiser.bind(table.times)
    return policy


def learn_from(policy: Policy, config: PolicyConfig) -> None:
    """Begin with the weights and the units of the policy ``config.teacher``, and learn from its flow.

    Raises:
        WorkbenchError: the head learns from nobody, or the teacher is another kind of policy.
    """
    if not isinstance(policy.head, Consistency):
        raise WorkbenchError(f"teacher: got {config.teacher} for a head that has none; expected head=consistency.")
    saved = checkpoint.find(config.teacher, evaluate.PRETRAINED)
    teacher, theirs = restore(saved)
    for name in ("schedule", "prediction", "network", "n_obs_steps", "horizon"):
        if getattr(theirs, name) != getattr(config, name):
            raise WorkbenchError(
                f"teacher: got {config.teacher} with {name}={getattr(theirs, name)}; expected {getattr(config, name)}, "
                f"that of this run: set {name} to the teacher's, or take another."
            )
    checkpoint.fill(policy, teacher.state_dict(), saved.path)
    policy.head.taught_by(teacher.denoiser)


def validator(config: PolicyConfig, data: Data, run: Run) -> Callable[[nn.Module, int], dict[str, float]]:
    """A function that judges a policy during training: held-out loss, and the score of a few rollouts."""

    @torch.no_grad()
    def validate(policy: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(policy, Policy)
        judged = evaluate.rollout(policy, config, VALIDATION_SEEDS, sampling_table(config, policy))
        values = {"validation_score": evaluate.metrics(judged)[evaluate.SCORE].value}
        if data.validation is not None:
            # the same rows and noise every time, so that the curve shows the policy and not the draw
            rows = torch.arange(len(data.validation))
            draws = Draws(torch.Generator(device=data.validation.action.device).manual_seed(0))
            losses = [policy(data.validation.batch(part), draws) for part in rows.split(BATCH)]
            values["validation_loss"] = float(torch.cat(losses).mean())
        return values

    return validate


def run(config: PolicyConfig) -> Path:
    """Train, evaluate and report; returns the run's folder."""
    distributed = processes()
    torch.manual_seed(config.train.seed)
    here = open_run(config, f"policy-{config.task.name}", distributed)
    here.log_to_file()
    data = load_data(config, distributed.device)
    logger.info("data: %s; %d training windows", data.provenance, len(data.training))
    policy = untrained(config, data)
    logger.info("run: %s; %d parameters", here.path, sum(p.numel() for p in policy.parameters()))
    require_same_data(here, data.provenance, "demonstrations")
    meta = {"domain": "policy", "task": config.task.name, "data": data.provenance, "commit": results.commit()}
    average = fit(
        policy,
        data.training,
        config.train,
        here,
        saved_config=plain(config),
        meta=meta,
        evaluate=validator(config, data, here),
        evaluate_every=config.validate_every,
    )
    if distributed.is_main_process:
        assert isinstance(average, Policy)
        newest = checkpoint.find(here.path)
        evaluate.evaluate_and_report(
            [newest], config, config.evaluation, here.path / "evaluation", command=command("policy.train"), run=here
        )
    return here.path


@hydra.main(version_base=None, config_path="conf", config_name="train")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(PolicyConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
