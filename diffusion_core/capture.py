"""The whole sampling loop as one unit: a CUDA graph, or one compiled function.

A small network spends most of a step waiting for Python to launch it. The loop reads no tensor and branches on
none, so all its steps can be recorded once and replayed: inputs are copied into fixed buffers, the recording runs,
the result is copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise, Shared
from diffusion_core.plan import Plan
from diffusion_core.sample import bound, loop, sample, script

Captured = Callable[..., Any]
"""``captured(x, cond=None, noise=None) -> x``: `sample`, with the shapes of the example and nothing else."""


@torch.no_grad()
def capture(
    denoiser: Denoiser,
    plan: Plan,
    x: Any,
    cond: Any = None,
    noise: Noise | None = None,
    how: Literal["cuda_graph", "compile"] = "cuda_graph",
    backend: str = "inductor",
) -> Captured:
    """Record ``sample(denoiser, plan, x, cond, noise)`` for later calls with other inputs of the same shapes.

    The weights are read where they are, so that a change in place is seen. With `noise.Shared` on the CUDA device a
    graph draws inside, from the very generator that was given; any other source is drawn from before the replay,
    in the loop's own order. Either way the result is `sample`'s.

    Args:
        denoiser, plan, x, cond, noise: an example; see `sample`. Its values do not matter; its noise is drawn from.
        how: "cuda_graph" replays the loop's kernels; "compile" makes one function of it (``torch.compile``,
            fullgraph), on any device: seconds to minutes at the first call.
        backend: of ``torch.compile``.

    Raises:
        WorkbenchError: a CUDA graph of what is not on a CUDA device; later, inputs unlike the example.
    """
    device, example = pytree.tree_leaves(x)[0].device, noise
    if how == "cuda_graph" and device.type != "cuda":
        raise WorkbenchError(
            f'capture: got a sample on {device} for a CUDA graph; expected one on a CUDA device, or how="compile".'
        )
    inside = how == "cuda_graph" and isinstance(noise, Shared) and noise.generator.device.type == "cuda"
    recorded = _Recorded(noise) if noise is not None and not inside else None
    if recorded is not None:
        # one run tells which draws there are
        sample(denoiser, plan, x, cond, recorded)
    buffers = recorded.draws if recorded else []
    fixed_x, fixed_cond = (pytree.tree_map_only(Tensor, torch.clone, value) for value in (x, cond))
    evaluate, plan = bound(denoiser, plan, fixed_cond)
    rows = script(plan)

    def run() -> Any:
        source = noise if inside else _Replayed(buffers)
        end = fixed_x
        for state in loop(rows, evaluate, plan, fixed_x, source):
            end = state.x
        return end

    # once as it is: what a denoiser makes at its first call must be there
    run()
    if how == "compile":
        # the compiler keeps what it made by code object and gives up after a few: each recording has its own
        run.__code__ = run.__code__.replace(co_name=f"run_{id(fixed_x)}")  # type: ignore[attr-defined]
        replay = torch.compile(run, fullgraph=True, backend=backend)
    else:
        replay = _graph(run, noise.generator if inside else None)  # type: ignore[union-attr]

    @torch.no_grad()
    def captured(x: Any, cond: Any = None, noise: Noise | None = None) -> Any:
        _copy("x", fixed_x, x)
        _copy("cond", fixed_cond, cond)
        if inside and noise is not example:
            raise WorkbenchError(
                "captured sampling: got another noise source than the example; expected that one, whose generator is "
                "part of the graph: seed it anew instead."
            )
        if recorded is not None:
            if noise is None:
                raise WorkbenchError("captured sampling: got noise=None; expected a source, as in the example.")
            for buffer, (kind, shape, dtype, on) in zip(buffers, recorded.asked, strict=True):
                buffer.copy_(getattr(noise, kind)(shape, dtype, on))
        return pytree.tree_map(torch.clone, replay())

    return captured


class _Recorded:
    """A noise source that remembers what it was asked for."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.asked: list[tuple[str, tuple[int, ...], torch.dtype, torch.device]] = []
        self.draws: list[Tensor] = []

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._draw("normal", shape, dtype, device)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._draw("uniform", shape, dtype, device)

    def _draw(self, kind: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.asked.append((kind, tuple(shape), dtype, device))
        self.draws.append(getattr(self.noise, kind)(shape, dtype, device))
        return self.draws[-1]


class _Replayed:
    """A noise source that gives out the buffers one after another."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self.buffers, self.given = buffers, 0

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.given += 1
        return self.buffers[self.given - 1]

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.normal(shape, dtype, device)


def _graph(run: Callable[[], Any], generator: torch.Generator | None) -> Callable[[], Any]:
    # handles and workspaces must exist before the capture, on a stream of its own as CUDA demands
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        end = run()

    def replay() -> Any:
        graph.replay()
        return end

    return replay


def _copy(name: str, fixed: Any, new: Any) -> None:
    (old_leaves, old_tree), (new_leaves, new_tree) = pytree.tree_flatten(fixed), pytree.tree_flatten(new)
    shapes = [[tuple(v.shape) if isinstance(v, Tensor) else v for v in leaves] for leaves in (old_leaves, new_leaves)]
    if old_tree != new_tree or shapes[0] != shapes[1]:
        raise WorkbenchError(f"captured sampling: got {name} of {shapes[1]}; expected {shapes[0]}, as in the example.")
    for old, value in zip(old_leaves, new_leaves, strict=True):
        if isinstance(old, Tensor):
            old.copy_(value)
