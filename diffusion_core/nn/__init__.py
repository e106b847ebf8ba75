"""Networks with no diffusion in them: ``network(x, t, cond) -> tensor of x's shape``."""
