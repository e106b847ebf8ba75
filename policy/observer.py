"""What a policy sees: named observations made into one condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.normalize import MinMax
from policy import language
from policy.encoders import Encoder

Kind = Literal["low_dim", "image", "language"]


class Observer(nn.Module):
    """Observations of several kinds to a condition (batch, n_obs_steps * features).

    Low-dimensional ones are put side by side and normalised; every camera has an encoder of its own; embeddings of
    instructions are passed on as they are.

    Args:
        kinds: key of the environment's observation to its kind; the order is that of the features.
        normalizer: of the low-dimensional features side by side; its values are part of the weights.
        encoders: of each camera.
    """

    def __init__(self, kinds: Mapping[str, str], normalizer: MinMax, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        check_kinds(kinds)
        self.kinds = dict(kinds)
        self.normalizer = normalizer
        # as images come: on a CPU a third less time a training step, half with bf16
        self.encoders = nn.ModuleDict(encoders)
        cast(Any, self.encoders).to(memory_format=torch.channels_last)  # PyTorch's type stubs lack this overload
        texts = sum(kind == "language" for kind in kinds.values())
        self.features = len(normalizer.low) + sum(e.features for e in encoders.values()) + texts * language.DIM

    def forward(self, obs: Mapping[str, Tensor], draws: Draws | None = None) -> Float[Tensor, "batch cond"]:
        """The condition.

        Args:
            obs: of each key (batch, n_obs_steps, ...): numbers, images (height, width, channels) 0 to 255, or the
                embedding of an instruction.
            draws: random numbers of a training step, for the encoders' augmentation; None: not in training.
        """
        low = self.low_dim(obs)
        found = [self.normalizer.normalize(low)] if low is not None else []
        for key, kind in self.kinds.items():
            if kind == "image":
                encoder = cast(Encoder, self.encoders[key])
                images = obs[key].to(next(encoder.parameters()).dtype) / 127.5 - 1.0
                seen = encoder(images.flatten(0, 1).movedim(-1, 1), draws)
                found.append(seen.unflatten(0, images.shape[:2]))
            elif kind == "language":
                found.append(obs[key].to(self.normalizer.low.dtype))
        return torch.cat(found, -1).flatten(1)

    def low_dim(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "batch n_obs features"] | None:
        """The low-dimensional observations side by side, in their own units; None if there are none."""
        rows = [obs[key] for key, kind in self.kinds.items() if kind == "low_dim"]
        return torch.cat(rows, -1) if rows else None


def check_kinds(kinds: Mapping[str, str]) -> None:
    """Refuse words that are no kind of observation.

    Raises:
        WorkbenchError: names the key.
    """
    for key, kind in kinds.items():
        if kind not in get_args(Kind):
            raise WorkbenchError(f"task.obs.{key}: got {kind!r}; expected one of {', '.join(get_args(Kind))}.")
    if not kinds:
        raise WorkbenchError("task.obs: got no observations; expected a kind for each, like {agent_pos: low_dim}.")
