from diffusion_core.oracles.categorical import *  # noqa: F403
