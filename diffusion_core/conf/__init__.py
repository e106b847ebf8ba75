"""Configuration groups that every domain shares: schedule, sampler, grid, loss."""
