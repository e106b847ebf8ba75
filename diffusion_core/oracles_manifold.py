from diffusion_core.oracles.manifold import *  # noqa: F403
