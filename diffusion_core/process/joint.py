"""A state of several fields, each with its own process, schedule and times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.process import Process, Source

State = Mapping[str, Any]


@dataclass(frozen=True)
class Joint(Process):
    """Independent noising of the fields of a dict: ``q(x_t | x0) = prod_f q_f(x_t,f | x0,f)``.

    Everything that is a dict of states is a dict here: times, base noise, estimates. The fields meet in the denoiser
    alone.

    Args:
        fields: name -> process; at least one.
    """

    fields: Mapping[str, Process]

    def __post_init__(self) -> None:
        if not self.fields:
            raise WorkbenchError("Joint: got no fields; expected at least one process.")

    def noise(self, x0: State, source: Source) -> dict[str, Any]:
        self._check(x0)
        return {name: process.noise(x0[name], source) for name, process in self.fields.items()}

    def corrupt(self, x0: State, t: Any, noise: State) -> dict[str, Any]:
        """``t``: a dict of times, or one tensor of times for all fields."""
        self._check(x0)
        times = self.times(t)
        return {name: process.corrupt(x0[name], times[name], noise[name]) for name, process in self.fields.items()}

    def prior(self, noise: State, t: float = 1.0, exponent: float = 1.0) -> dict[str, Any]:
        return {name: process.prior(noise[name], t, exponent) for name, process in self.fields.items()}

    def combine(self, weights: Tensor, times: Any) -> Callable[[State, Sequence[State], int], dict[str, Any]]:
        of = {name: process.combine(weights, t) for name, (process, t) in self._with(times)}
        return lambda x, estimates, i: {name: f(x[name], [e[name] for e in estimates], i) for name, f in of.items()}

    def mix(self, times: Any) -> Callable[[State, Sequence[State], Tensor, int], dict[str, Any]]:
        of = {name: process.mix(t) for name, (process, t) in self._with(times)}
        return lambda x, estimates, shares, i: {
            name: f(x[name], [e[name] for e in estimates], shares, i) for name, f in of.items()
        }

    def clean(self, times: Any) -> Callable[[State, State, int], dict[str, Any]]:
        of = {name: process.clean(t) for name, (process, t) in self._with(times)}
        return lambda x, estimate, i: {name: f(x[name], estimate[name], i) for name, f in of.items()}

    def tilt(self, times: Any, of: Literal["x_t", "x0_hat"]) -> Callable[[State, State, State, int], dict[str, Any]]:
        tilts = {name: process.tilt(t, of) for name, (process, t) in self._with(times)}
        return lambda x, estimate, gradient, i: {n: f(x[n], estimate[n], gradient[n], i) for n, f in tilts.items()}

    def pin(self, times: Any) -> Callable[[State, State, Any, Any, int], dict[str, Any]]:
        """``mask`` and ``values`` are dicts; a field that is not in them is free."""
        of = {name: process.pin(t) for name, (process, t) in self._with(times)}
        return lambda x, estimate, mask, values, i: {
            name: f(x[name], estimate[name], mask[name], values[name], i) if name in mask else estimate[name]
            for name, f in of.items()
        }

    def times(self, t: Any) -> Mapping[str, Any]:
        """Times per field: ``t`` itself, or the same tensor for each."""
        return t if isinstance(t, Mapping) else dict.fromkeys(self.fields, t)

    def _with(self, times: Any) -> list[tuple[str, tuple[Process, Any]]]:
        per_field = self.times(times)
        return [(name, (process, per_field[name])) for name, process in self.fields.items()]

    def _check(self, state: State) -> None:
        if state.keys() != self.fields.keys():
            raise WorkbenchError(f"state: got the fields {sorted(state)}; expected {sorted(self.fields)}.")
