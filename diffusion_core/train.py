"""The one training loop.

Everything random in a step is a function of (seed, step), as no network here has dropout, and everything that
changes is a field of `TrainState`. So a run that was killed at any moment and resumed ends, on a CPU, bit for bit
where an undisturbed one ends, and the number of processes changes nothing but the order of a sum.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, PartialState
from jaxtyping import Int64
from torch import Tensor, nn

from diffusion_core import checkpoint
from diffusion_core.ema import Ema
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.loss import Draws
from diffusion_core.run import Run

logger = logging.getLogger("workbench.train")


@dataclass
class TrainConfig:
    """How long and how to train.

    Args:
        steps: optimizer steps.
        batch_size: samples per step, over all processes together.
        learning_rate: peak of the schedule: linear warm-up over ``warmup_steps``, then half a cosine to 0.
        betas, eps, weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient; 0 leaves it alone.
        ema: averaging of the weights.
        precision: "no" (float32) or "bf16" mixed precision, by accelerate.
        compile: torch.compile the model (pays on a GPU).
        log_every, checkpoint_every: in steps; checkpoint_every=0 saves at the end only.
        keep: how many checkpoints stay.
        seed: of the weights, the order of the data and the noise.
        threads: torch threads; 0 leaves the default.
    """

    steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.95, 0.999])
    eps: float = 1e-8
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    gradient_clip: float = 0.0
    ema: Ema = field(default_factory=Ema)
    precision: str = "no"
    compile: bool = False
    log_every: int = 100
    checkpoint_every: int = 2_000
    keep: int = 10
    seed: int = 42
    threads: int = 0

    def __post_init__(self) -> None:
        ones = ("steps", "batch_size", "log_every", "keep")
        require_at_least(1, {f"train.{name}": getattr(self, name) for name in ones})
        zeros = (
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "gradient_clip",
            "checkpoint_every",
            "seed",
            "threads",
        )
        require_at_least(0, {f"train.{name}": getattr(self, name) for name in zeros})

        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise WorkbenchError(f"train.betas: got {self.betas}; expected two numbers in [0, 1).")

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (0 is the first)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


@runtime_checkable
class Dataset(Protocol):
    """What the loop needs to know of data: how much there is, and how to get a batch."""

    def __len__(self) -> int: ...

    def batch(self, rows: Int64[Tensor, " batch"]) -> Any:
        """The samples ``rows``, on the training device."""


@dataclass
class TrainState:
    """All that changes in training; its fields are the checkpoint.

    ``losses`` are those since the last record, so that a resumed run writes the records of an undisturbed one.
    """

    step: int
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[Tensor] = field(default_factory=list)

    def save(self, run: Run, config: dict[str, Any], meta: dict[str, Any]) -> None:
        """Write a checkpoint of this state into the run."""
        training = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors = {
            "model": self.average.state_dict(),
            "training": training | checkpoint.optimizer_tensors(self.optimizer) | {"losses": torch.tensor(self.losses)},
        }
        checkpoint.save(run.checkpoints, self.step, tensors, config, meta)

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Become the state that ``saved`` holds."""
        training = saved.tensors("training")
        weights = {k.removeprefix("model."): v for k, v in training.items() if k.startswith("model.")}
        checkpoint.fill(self.model, weights, saved.path)
        checkpoint.fill(self.average, saved.tensors("model"), saved.path)
        checkpoint.fill_optimizer(self.optimizer, training)
        self.losses = list(training["losses"].to(next(self.model.parameters()).device))
        self.step = saved.step


def rows_of_step(step: int, batch_size: int, n: int, seed: int) -> Int64[Tensor, " batch"]:
    """Which samples step ``step`` sees: consecutive pieces of one shuffle of all n after another.

    A pure function, so that data order needs no state: epoch e is the permutation seeded by (seed, e).
    """
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    rows = torch.empty_like(positions)
    for epoch in range(int(positions[0]) // n, int(positions[-1]) // n + 1):
        here = positions // n == epoch
        rows[here] = _shuffle(n, seed, epoch)[positions[here] % n]
    return rows


@lru_cache(maxsize=2)
def _shuffle(n: int, seed: int, epoch: int) -> Int64[Tensor, " n"]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_mix(seed, epoch, 1)))


def processes(cpu: bool = False) -> PartialState:
    """This process among those that were launched together.

    accelerate only looks for the others on a CPU when it is told that this is one; else each trains on its own.

    Args:
        cpu: keep off a GPU that is there.

    Raises:
        WorkbenchError: several were launched and cannot talk to one another here.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    asked_for_cpu = cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    state = PartialState(cpu=asked_for_cpu or (launched > 1 and not torch.cuda.is_available()))
    if state.num_processes != launched:
        raise WorkbenchError(
            f"training: {launched} processes were launched and {state.num_processes} take part; expected all of them: "
            "set ACCELERATE_USE_CPU=true to train on the CPU, or launch one process."
        )
    if launched == 1 and asked_for_cpu and "MASTER_ADDR" in os.environ:
        logger.warning(
            "one process trains: accelerate launch --cpu starts several only through mpirun; "
            "torchrun --nproc_per_node 2 -m ... does on any machine"
        )
    return state


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    run: Run,
    *,
    saved_config: dict[str, Any],
    meta: dict[str, Any],
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    device: Literal["auto", "cpu"] = "auto",
) -> nn.Module:
    """Train ``model`` and return the average of its weights.

    Args:
        model: ``model(batch, draws) -> (batch,)`` losses; its ``forward`` is the training loss, so that
            accelerate's wrapper for several processes sees the call it synchronises on.
        dataset: what to train on.
        run: where records and checkpoints go. If it holds a checkpoint, training goes on from there.
        saved_config, meta: written into every checkpoint.
        evaluate: called with the averaged model and the step every ``evaluate_every`` steps.
        device: "cpu" keeps off a GPU that is there.

    Raises:
        WorkbenchError: the loss is not finite; the disk is full.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written; the message says how to resume.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    processes(device == "cpu")
    if config.precision not in ("no", "bf16"):
        raise WorkbenchError(
            f"train.precision: got {config.precision!r}; expected no or bf16 (fp16 needs a gradient scale that a "
            "resumed run would not have)."
        )
    accelerator = Accelerator(mixed_precision=config.precision, cpu=device == "cpu")
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.batch_size % world:
        raise WorkbenchError(
            f"training: got batch_size={config.batch_size} on {world} processes; expected a multiple of {world}."
        )
    model.to(accelerator.device)
    average = config.ema.shadow(model)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    state = TrainState(0, model, average, optimizer)
    if newest := checkpoint.listing(run.path)[-1:]:
        state.restore(checkpoint.load(newest[0]))
        logger.info("resumed %s at step %d of %d", run.path, state.step, config.steps)
    run.forget_after(state.step)
    wrapped, prepared = accelerator.prepare(torch.compile(model) if config.compile else model, optimizer)
    losses = state.losses
    generator = torch.Generator(device=accelerator.device)
    bar = run.progress(range(state.step, config.steps), "training", config.steps, state.step)
    clock, first = time.perf_counter(), state.step

    def save() -> None:
        if losses:  # every process goes on from what the main one saves
            losses[:] = accelerator.reduce(torch.stack(losses), "mean").unbind()
        _refuse_nonfinite(losses, state.step, config, len(dataset))
        _refuse_nonfinite_weights(model, state.step)
        if accelerator.is_main_process:
            state.save(run, saved_config, meta | {"world_size": world})
            checkpoint.prune(run.path, config.keep)
        accelerator.wait_for_everyone()

    def judge() -> None:
        if evaluate is not None and _due(state.step, evaluate_every, config.steps):
            run.record(step=state.step, **evaluate(average, state.step))

    if first and not any(r.get("step") == first and "loss" not in r for r in run.metrics()):
        judge()  # the run was killed between its checkpoint and the evaluation that follows
    with _StopSignals() as stop:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step)
            rows = rows_of_step(step, config.batch_size, len(dataset), config.seed)
            draws = Draws(generator.manual_seed(_mix(config.seed, step, 0)), rank, world)
            with accelerator.autocast():
                loss = wrapped(dataset.batch(rows[rank::world]), draws).mean()
            accelerator.backward(loss)
            if config.gradient_clip > 0.0:
                accelerator.clip_grad_norm_(model.parameters(), config.gradient_clip)
            prepared.step()
            prepared.zero_grad()
            state.step = step + 1
            config.ema.update(average, model, state.step)
            losses.append(loss.detach())
            if _due(state.step, config.log_every, config.steps):
                mean = _refuse_nonfinite(losses, state.step, config, len(dataset), accelerator)
                rate = (state.step - first) / (time.perf_counter() - clock)
                run.record(step=state.step, loss=mean, learning_rate=config.rate(step), steps_per_second=round(rate, 3))
                bar.set_postfix(loss=f"{mean:.4g}")
                losses.clear()
            saved = _due(state.step, config.checkpoint_every, config.steps)
            if saved:
                save()
            judge()
            if _all_stop(stop.requested, accelerator, _due(state.step, config.log_every, config.steps)):
                if not saved:
                    save()
                raise KeyboardInterrupt(
                    f"stopped at step {state.step} of {config.steps}, all of it saved; go on with resume={run.path}"
                )
    return average


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _all_stop(requested: bool, accelerator: Accelerator, look: bool) -> bool:
    """Whether to stop here; processes that train together agree on it, and ask one another only when ``look``."""
    if accelerator.num_processes == 1:
        return requested
    if not look:
        return False
    votes = accelerator.reduce(torch.tensor(float(requested), device=accelerator.device), "sum")
    return bool(votes.item() > 0.0)


def _mix(seed: int, index: int, stream: int) -> int:
    """One 63-bit seed from (seed, index, stream): splitmix64, so that neighbours are unrelated.

    Source: Steele, Lea & Flood 2014 (doi 10.1145/2660193.2660195), figure 16.
    """
    z = (seed * 0x9E3779B97F4A7C15 + index * 2 + stream + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


def _refuse_nonfinite(
    losses: list[Tensor], step: int, config: TrainConfig, n: int, accelerator: Accelerator | None = None
) -> float:
    """The mean loss since the last look (over all processes); not finite ends the run.

    Looking at every step would stop a GPU each time, so losses are kept and looked at together.
    """
    if not losses:
        return math.nan
    stacked = torch.stack(losses)
    if accelerator is not None:
        stacked = accelerator.reduce(stacked, "mean")
    values = stacked.tolist()
    for i, value in enumerate(values):
        if not math.isfinite(value):
            at = step - len(values) + i
            rows = rows_of_step(at, config.batch_size, n, config.seed)[:8].tolist()
            raise WorkbenchError(
                f"training: the loss of step {at} is {value} (its batch begins with samples {rows}); expected a finite "
                "number: look at these samples, or lower train.learning_rate or set train.gradient_clip=1; "
                "checkpoints written before this step are sound, and resume starts from the newest."
            )
    return sum(values) / len(values)


def _refuse_nonfinite_weights(model: nn.Module, step: int) -> None:
    """A finite loss can have a gradient that is not, and its weights must not become the newest checkpoint."""
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise WorkbenchError(
                f"training: after step {step - 1} {name} holds values that are not finite, though its loss was; "
                "expected finite gradients: lower train.learning_rate or set train.gradient_clip=1; checkpoints "
                "written before this step are sound, and resume starts from the newest."
            )


class _StopSignals:
    """Turns SIGINT and SIGTERM into a request that the loop honours between two steps; a second one is immediate.

    A repeat within a second is the same Ctrl-C: a launcher of several processes passes on what they got already.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: whoever is there handles signals
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is untouched")
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
