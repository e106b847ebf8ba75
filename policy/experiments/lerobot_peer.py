"""LeRobot's diffusion policy, timed: run by the Python of an environment that has LeRobot; prints one line of JSON.

    python lerobot_peer.py '{"widths": [256, 512, 1024], "steps": 10, "repeats": 50, "solver": "DDIM"}'

It is a program of its own, which imports nothing of this project: LeRobot and this project need not agree on versions.
"""

from __future__ import annotations

import json
import sys
import time


def main(asked: dict) -> dict:
    """Milliseconds of every call of ``generate_actions`` at batch 1, Push-T's keypoints as environment state."""
    import lerobot
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.set_num_threads(1)
    config = DiffusionConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (18,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        horizon=16,
        n_obs_steps=2,
        n_action_steps=8,
        down_dims=tuple(asked["widths"]),
        kernel_size=5,
        n_groups=8,
        diffusion_step_embed_dim=256,
        noise_scheduler_type=asked["solver"],
        num_inference_steps=asked["steps"],
        device="cpu",
    )
    model = DiffusionPolicy(config).eval().diffusion
    batch = {"observation.state": torch.rand(1, 2, 2), "observation.environment_state": torch.rand(1, 2, 18)}
    times = []
    with torch.no_grad():
        for _ in range(asked["repeats"] + asked["warm_up"]):
            began = time.perf_counter()
            model.generate_actions(batch)
            times.append(1e3 * (time.perf_counter() - began))
    return {
        "ms": times[asked["warm_up"] :],
        "parameters": sum(p.numel() for p in model.unet.parameters()),
        "versions": {"lerobot": lerobot.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
